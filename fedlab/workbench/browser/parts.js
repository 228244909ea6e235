// @ts-check
// Parts of the live view: elements, numbers, ticks, and the types of what Python sends. The files of this folder are
// modules; widget.py joins them into one, so a name at the top of a file is used once in all of those that it joins.
// Text is always set as text, never as HTML.

/** @typedef {number | string} Value  where a knob stands */
/** What `view.describe_knob` says. Those of text have no low, high, whole or log, those of numbers no choices.
 * @typedef {{name: string, label: string, kind: "number", low: number, high: number, whole: boolean, log: boolean,
 *   unit: string, meaning: string, live: boolean, group: string, default: number, start: number, choices?: undefined}} NumberKnob */
/** @typedef {{name: string, label: string, kind: "choice" | "several" | "text", choices: string[], unit: string,
 *   meaning: string, live: boolean, group: string, default: string, start: string}} TextKnob */
/** @typedef {NumberKnob | TextKnob} Knob */
/** @typedef {[number[], (number | null)[]]} Line  rounds and values */
/** @typedef {[number, number]} Point  a round and its value, which is known */
/** @typedef {[number, string]} Mark  a round and what was turned before it */
/** A run in the charts; alike is the same for runs that differ in nothing but their seed. A band has, for the same rounds as
 * the series of its name, the lowest and the highest of several runs.
 * @typedef {{id: string, name: string, colour: number, series: Record<string, Line>, marks: Mark[],
 *   beside: Record<string, Record<string, number>>, alike: number, seed: number, band?: Record<string, [number[], number[]]>}} Shown */
/** @typedef {{low: number, high: number, counts: number[], median: number | null, clients: number,
 *   whole: boolean}} Spread */
/** @typedef {{lines: Shown[], spreads: Record<string, Spread>, total: number, done: number, progress: number,
 *   reference: Shown | null}} Picture */
/** @typedef {{id: string, name: string, state: string, error: string, open: boolean, pinned: boolean, colour: number | null,
 *   rounds: number, best: Record<string, [number, number] | null>, beside: Record<string, number>, lead: string, verdict: string,
 *   differs: Record<string, string>}} Row */
/** @typedef {{run: string, name: string, at: Value[], value: number | null, state: string,
 *   error: string, round: number}} Cell */
/** @typedef {{over: {name: string, values: Value[]}[], random: boolean, metric: string, mode: string,
 *   planned: number, cells: Cell[]}} Heat */
/** Of a look (`fedlab.workbench.inside`): what stays, who took part, and what was seen.
 * @typedef {{count: number, x: number[], size: number[], ends: string[][], people: string[]}} People */
/** @typedef {{items: string[], ids: string[], categories: string[], colours: number[]}} Named */
/** @typedef {{people?: People, map?: Named}} Stays */
/** @typedef {{round: number, cohort: number[], loss: (number | null)[], since: number[], met: number}} Dots */
/** @typedef {{round: number, since: number, xy: Point[]}} Places */
/** @typedef {{round: number, cohort: number[], of: number, out: number, arrows: Point[], mean: Point, taken: Point | null,
 *   rule: string, agreement: number, held: number, long: number, drawn: boolean, reach: number, lines: Point[][], liars: number[]}} Steps */
/** @typedef {{rows: number, numbers: number, learned: number, sent: number, stages: string[], summed: string[], hidden: boolean,
 *   read: {item: string, true: boolean}[], auc?: number, alone?: number, right?: number}} Upload */
/** @typedef {{user: string, client: number, clicks: number, lately: string[], top: string[],
 *   held: {item: string, place: number, of: number}[], starts?: boolean, upload?: Upload, why?: string}} Person */
/** @typedef {{name: string, places: [number, number, number][]}} Followed */
/** @typedef {{why?: string, map?: Places | {xy?: undefined}, steps?: Steps | {arrows?: undefined, why: string},
 *   person?: Person | {user?: undefined}, item?: Followed}} Seen */
/** @typedef {{on: boolean, user: string, item: string, at: number}} Inside */
/** What stands beside a preset. @typedef {{look: string, ask: string, answer: string, turn: string}} Card */
/** The challenge that is on. @typedef {{name: string, ask: string, liar: boolean, met: boolean, words: string}} Tried */
/** @typedef {{knobs: Knob[], inside: boolean, recorded?: boolean, sweeps: boolean, metrics: Record<string, string>, presets: string[], finds: string[], exports: string[],
 *   lines: string[], spreads: Record<string, string>, meanings: Record<string, string>, cards: Record<string, Card>, challenges: string[]}} Spec */
/** The traits of widget.py.
 * @typedef {{spec: Spec, values: Record<string, Value>, used: Record<string, Value>, unread: Record<string, string>,
 *   charts: string[], state: string, message: string, notice: string, wrong: Record<string, string>, news: string,
 *   saving: string, preset: {name: string, turned: string[]}, text: string, line: string, picture: Picture, table: Row[],
 *   report: string, heat: Heat | {over?: undefined}, lacks: string[], inside: Inside, challenge: Tried | {name?: undefined}, stays: Stays, dots: Dots | {round?: undefined},
 *   seen: Seen, looking: boolean}} Traits */
/** A widget's model, as anywidget gives it.
 * @template [T=Traits] @typedef {{get<K extends keyof T>(name: K): T[K], set<K extends keyof T>(name: K, value: T[K]): void,
 *   save_changes(): void, send(message: object): void, on(event: string, call: (...given: any[]) => void): void,
 *   off(event: string, call: (...given: any[]) => void): void}} Model */
/** @typedef {"svg" | "path" | "line" | "text" | "tspan" | "title" | "circle" | "g" | "rect"} Drawn  tags of SVG */
/** @template {string} K @typedef {K extends Drawn ? SVGElementTagNameMap[K] : K extends keyof HTMLElementTagNameMap
 *   ? HTMLElementTagNameMap[K] : never} Made */

const SVG = "http://www.w3.org/2000/svg";
export const COLOURS = 7;

/** @template {Drawn | keyof HTMLElementTagNameMap} K @param {K} tag @param {Record<string, string | number>} [attributes]
 * @param {...(Node | string)} children */
export function make(tag, attributes = {}, ...children) {
  const node = ["svg", "path", "line", "text", "tspan", "title", "circle", "g", "rect"].includes(tag)
    ? document.createElementNS(SVG, tag) : document.createElement(tag);
  // without this JupyterLab takes arrow keys, Enter and letters for its own shortcuts
  if (["input", "button", "select", "textarea", "summary"].includes(tag)) {
    node.setAttribute("data-lm-suppress-shortcuts", "true");
  }
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, String(value));
  node.append(...children);
  return /** @type {Made<K>} */ (node);
}

/** @param {{send(message: object): void}} model @param {string} command @param {...unknown} given */
export const tell = (model, command, ...given) => model.send({ command, given });

/** @param {string} text @param {() => void} pressed @param {Record<string, string | number>} [attributes] */
export function button(text, pressed, attributes = {}) {
  const node = make("button", { type: "button", ...attributes }, text);
  node.addEventListener("click", pressed);
  return node;
}

/** A label that belongs to a field. @param {HTMLElement} field @param {...(string | Node)} words */
export function labelOf(field, ...words) {
  field.id ||= `fedlab-${Math.random().toString(36).slice(2)}`;
  return make("label", { for: field.id }, ...words);
}

/** @param {string} label @param {HTMLElement} field */
export function labelled(label, field) {
  return make("span", { class: "field" }, labelOf(field, label), field);
}

/** @param {string[]} options @param {Record<string, string | number>} [attributes] */
export const select = (options, attributes = {}) =>
  make("select", attributes, ...options.map((o) => make("option", { value: o }, o)));

/** @param {unknown} x */
export const format = (x) => typeof x === "string" ? x : typeof x !== "number" || !Number.isFinite(x) ? "not a number"
  : Math.abs(x) >= 1000 || Number.isInteger(x) ? String(Math.round(x)) : String(Number(x.toPrecision(3)));

/** @template T @param {T[]} items at least one */
export const last = (items) => items[items.length - 1];

/** A round step that cuts a range into about `count` parts. @param {number} low @param {number} high @param {number} count */
export function stepOf(low, high, count) {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  return ([1, 2, 5, 10].find((m) => m * power >= raw * (1 - 1e-9)) ?? 10) * power;
}

/** The range, widened to whole steps. @param {number} low @param {number} high @returns {[number, number]} */
export function rounded(low, high, count = 4) {
  const step = stepOf(low, high, count);
  return [Number((Math.floor(low / step + 1e-9) * step).toPrecision(12)),
    Number((Math.ceil(high / step - 1e-9) * step).toPrecision(12))];
}

/** @param {number} low @param {number} high */
export function ticks(low, high, count = 4) {
  const step = stepOf(low, high, count), found = [];
  for (let x = Math.ceil(low / step - 1e-9) * step; x <= high + 1e-9 * step; x += step) {
    found.push(Number(x.toPrecision(12)));
  }
  return found;
}

/** Marks of a logarithmic scale: 1, 2 and 5 of each power of ten, or round steps where that gives hardly any. @param {number} low @param {number} high */
export function decades(low, high) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1) {
    found.push(...[1, 2, 5].map((m) => Number((m * 10 ** power).toPrecision(3))).filter((v) => v >= low && v <= high));
  }
  return found.length > 1 ? found : ticks(low, high);
}

/** @template T @typedef {{node: Element, draw: (item: T) => void, gone?: () => void}} Part */

/** Keep the children that have a key, make the new ones, drop the others: nothing else is touched.
 * @template T @param {Element} parent @param {Map<string, Part<T>>} kept @param {(readonly [string, T])[]} items
 * @param {(item: T) => Part<T>} create */
export function keyed(parent, kept, items, create) {
  const wanted = new Set(items.map(([key]) => key));
  for (const [key, part] of [...kept]) if (!wanted.has(key)) { part.node.remove(); part.gone?.(); kept.delete(key); }
  items.forEach(([key, item], place) => {
    const part = kept.get(key) ?? create(item);
    kept.set(key, part);
    if (parent.children[place] !== part.node) parent.insertBefore(part.node, parent.children[place] ?? null);
    part.draw(item);
  });
}
