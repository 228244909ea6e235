// @ts-check
// Parts of the live view: elements, numbers, ticks. The files of this folder are joined into one module, in the
// order that workbench.py names. Text is always set as text, never as HTML.

/** @typedef {{name: string, label: string, kind: "number" | "choice" | "several" | "text", low: number, high: number,
 *   whole: boolean, log: boolean, unit: string, meaning: string, live: boolean, group: string, default: any, start: any, choices: string[]}} Knob */
/** @typedef {[number[], (number | null)[]]} Line  rounds and values */
/** @typedef {{id: string, name: string, colour: number, series: Record<string, Line>,
 *   marks: [number, string][], beside: Record<string, Record<string, number>>}} Shown */
/** @typedef {{low: number, high: number, counts: number[], median: number | null, clients: number,
 *   whole: boolean}} Spread */
/** @typedef {{id: string, name: string, state: string, error: string, pinned: boolean, colour: number | null,
 *   rounds: number, best: Record<string, [number, number] | null>, beside: Record<string, number>, lead: string, verdict: string,
 *   differs: Record<string, string>}} Row */
/** @typedef {{run: string, name: string, at: (number | string)[], value: number | null, state: string,
 *   error: string, round: number}} Cell */
/** @typedef {{over: {name: string, values: (number | string)[]}[], random: boolean, metric: string, mode: string,
 *   planned: number, cells: Cell[]}} Heat */
/** @typedef {{get(name: string): any, set(name: string, value: any): void, save_changes(): void,
 *   send(message: object): void, on(event: string, call: Function): void, off(event: string, call: Function): void}} Model */

const SVG = "http://www.w3.org/2000/svg";
const COLOURS = 7;

/** @param {string} tag @param {Record<string, string | number>} [attributes] @param {...(Node | string)} children */
function make(tag, attributes = {}, ...children) {
  const node = /** @type {any} */ (["svg", "path", "line", "text", "tspan", "title", "circle", "g", "rect"].includes(tag)
    ? document.createElementNS(SVG, tag) : document.createElement(tag));
  // without this JupyterLab takes arrow keys, Enter and letters for its own shortcuts
  if (["input", "button", "select", "textarea", "summary"].includes(tag)) {
    node.setAttribute("data-lm-suppress-shortcuts", "true");
  }
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, String(value));
  node.append(...children);
  return node;
}

/** @param {Model} model @param {string} command @param {...any} given */
const tell = (model, command, ...given) => model.send({ command, given });

/** @param {string} text @param {() => void} pressed */
function button(text, pressed, attributes = {}) {
  const node = make("button", { type: "button", ...attributes }, text);
  node.addEventListener("click", pressed);
  return node;
}

/** A label that belongs to a field. @param {HTMLElement} field @param {...(string | Node)} words */
function labelOf(field, ...words) {
  field.id ||= `fedlab-${Math.random().toString(36).slice(2)}`;
  return make("label", { for: field.id }, ...words);
}

/** @param {string} label @param {HTMLElement} field */
function labelled(label, field) {
  return make("span", { class: "field" }, labelOf(field, label), field);
}

/** @param {string[]} options */
const select = (options, attributes = {}) =>
  make("select", attributes, ...options.map((o) => make("option", { value: o }, o)));

/** @param {unknown} x */
const format = (x) => typeof x === "string" ? x : typeof x !== "number" || !Number.isFinite(x) ? "not a number"
  : Math.abs(x) >= 1000 || Number.isInteger(x) ? String(Math.round(x)) : String(Number(x.toPrecision(3)));

/** A round step that cuts a range into about `count` parts. @param {number} low @param {number} high */
function stepOf(low, high, count) {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  return ([1, 2, 5, 10].find((m) => m * power >= raw) ?? 10) * power;
}

/** The range, widened to whole steps. @param {number} low @param {number} high @returns {[number, number]} */
function rounded(low, high, count = 4) {
  const step = stepOf(low, high, count);
  return [Number((Math.floor(low / step + 1e-9) * step).toPrecision(12)),
    Number((Math.ceil(high / step - 1e-9) * step).toPrecision(12))];
}

/** @param {number} low @param {number} high */
function ticks(low, high, count = 4) {
  const step = stepOf(low, high, count), found = [];
  for (let x = Math.ceil(low / step - 1e-9) * step; x <= high + 1e-9 * step; x += step) {
    found.push(Number(x.toPrecision(12)));
  }
  return found;
}

/** Marks of a logarithmic scale: 1, 2 and 5 of each power of ten, or round steps where that gives hardly any. @param {number} low @param {number} high */
function decades(low, high) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1) {
    found.push(...[1, 2, 5].map((m) => Number((m * 10 ** power).toPrecision(3))).filter((v) => v >= low && v <= high));
  }
  return found.length > 1 ? found : ticks(low, high);
}

/** Keep the children that have a key, make the new ones, drop the others: nothing else is touched.
 * @template T @param {HTMLElement} parent @param {Map<string, {node: HTMLElement, draw: (item: T) => void}>} kept
 * @param {[string, T][]} items @param {(item: T) => {node: HTMLElement, draw: (item: T) => void}} create */
function keyed(parent, kept, items, create) {
  const wanted = new Set(items.map(([key]) => key));
  for (const [key, part] of [...kept]) if (!wanted.has(key)) { part.node.remove(); kept.delete(key); }
  items.forEach(([key, item], place) => {
    const part = kept.get(key) ?? create(item);
    kept.set(key, part);
    if (parent.children[place] !== part.node) parent.insertBefore(part.node, parent.children[place] ?? null);
    part.draw(item);
  });
}
