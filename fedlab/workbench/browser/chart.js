// @ts-check
// Charts: lines of runs against rounds, and how a number is spread over clients. A redraw changes attributes in
// place, so there is no blank frame; the label says in words what the chart shows.
import { COLOURS, decades, format, keyed, last, make, rounded, ticks } from "./parts.js";

/** @import { Line, Mark, Part, Picture, Point, Shown, Spread } from "./parts.js" */
/** @typedef {[number, number]} Ends  lowest and highest */
/** @typedef {(v: number) => number} Scale */
/** @typedef {{id: string, run: string, colour: number, marks: Mark[], points: Point[], lows: Point[], highs: Point[]}} Measured  at one
 *   round at least; lows and highs of a band, or none */
/** @typedef {ReturnType<typeof crosshair>} Cursor */
/** @typedef {Picture & {name: string, log: boolean, smooth: boolean, lacks: string[]}} Asked  what a chart is drawn from */

export const WINDOW = 5;                                         // rounds that a smoothed line is a mean of
const WIDTH = 360, HEIGHT = 200, LEFT = 48, RIGHT = 12, TOP = 26, BOTTOM = 34;

/** Where on a line of the picture a value lies. @param {Ends} ends @param {number} from where the lowest is
 * @param {number} to where the highest is @param {Scale} [bent] @returns {Scale} */
export const spot = ([low, high], from, to, bent = (v) => v) =>
  (v) => from + (bent(v) - bent(low)) / (bent(high) - bent(low)) * (to - from);

/** @param {string} name @param {string} [meaning] what lies behind the heading */
function frame(name, meaning = "") {
  const title = make("tspan", {}, name);
  const head = make("text", { x: LEFT, y: 15, class: meaning ? "title explained" : "title" }, title, ...(meaning ? [make("title", {}, meaning)] : []));
  const axes = make("g", { class: "axes" }), body = make("g", {});
  const node = make("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "data-series": name }, head, axes, body);
  let drawn = "";
  /** @param {Ends} across @param {Ends} up @param {string} below
   * @param {boolean} wholeAcross @param {boolean} wholeUp @param {boolean} [log] */
  const scale = (across, up, below, wholeAcross, wholeUp, log = false) => {
    const x = spot(across, LEFT, WIDTH - RIGHT), y = spot(up, HEIGHT - BOTTOM, TOP, log ? Math.log : undefined), marks = [];
    const now = JSON.stringify([across, up, below, log]);
    if (now === drawn) return { x, y };                   // axes change rarely, so most redraws move a line only
    drawn = now;
    const fit = (/** @type {number} */ v, /** @type {boolean} */ whole) => !whole || Number.isInteger(v);
    for (const v of (log ? decades : ticks)(up[0], up[1]).filter((v) => fit(v, wholeUp))) {
      marks.push(make("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(v), y2: y(v) }),
        make("text", { x: LEFT - 6, y: y(v) + 4, "text-anchor": "end" }, format(v)));
    }
    for (const v of ticks(across[0], across[1], 5).filter((v) => fit(v, wholeAcross))) {
      marks.push(make("text", { x: x(v), y: HEIGHT - BOTTOM + 16, "text-anchor": "middle" }, format(v)));
    }
    marks.push(make("text", { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 4, "text-anchor": "middle" }, below));
    axes.replaceChildren(...marks);
    return { x, y };
  };
  const say = (/** @type {string} */ heading, /** @type {string} */ words) => {
    title.textContent = heading;
    node.setAttribute("aria-label", meaning ? `${words}. ${meaning}` : words);
  };
  return { node, body, scale, say };
}

/** The round that is pointed at, the same in all charts. */
export function crosshair() {
  let at = /** @type {number | null} */ (null);
  const charts = /** @type {Set<() => void>} */ (new Set());
  return { at: () => at, charts, move: (/** @type {number | null} */ round) => {
    if (round === at) return;
    at = round;
    for (const draw of charts) draw();
  } };
}

/** Each value as the mean of the last few. @param {Point[]} points @returns {Point[]} */
export const smoothed = (points) => points.map(([round], i) => {
  const some = points.slice(Math.max(0, i + 1 - WINDOW), i + 1);
  return [round, some.reduce((sum, [, v]) => sum + v, 0) / some.length];
});

/** What a line shows at a round, or at the last one before it. @param {Point[]} points @param {number} round */
export const valueAt = (points, round) => points.filter(([r]) => r <= round).at(-1);

/** The parts of a chart that follow the pointer: a line at its round, the values there, and what was turned.
 * @param {SVGElement} node @param {Cursor} cursor */
function pointer(node, cursor) {
  const line = make("line", { y1: TOP, y2: HEIGHT - BOTTOM, class: "cross" }), words = make("text", { y: TOP + 10, class: "read" });
  const group = node.appendChild(make("g", { class: "pointer" }, line, words));
  let found = /** @type {Measured[]} */ ([]), x = /** @type {Scale} */ ((round) => round);
  let wide = [1, 2], ends = [1, 1];                       // of the axis, and of the rounds that are known
  const draw = () => {
    const round = cursor.at();
    group.style.display = round === null || !found.length ? "none" : "";
    if (round === null || !found.length) return;
    const place = x(round), turned = found.flatMap(({ marks }) => marks.filter(([r]) => r === round).map(([, what]) => what));
    line.setAttribute("x1", String(place)); line.setAttribute("x2", String(place));
    const right = place < (LEFT + WIDTH - RIGHT) / 2;
    words.setAttribute("text-anchor", right ? "start" : "end");
    words.replaceChildren(...[`round ${round}`, ...turned].map((text, i) => make("tspan", { x: place + (right ? 5 : -5), dy: i ? 12 : 0 }, text)),
      ...found.map(({ colour, points }) => make("tspan", { x: place + (right ? 5 : -5), dy: 12, class: `line-${colour % COLOURS}` },
        format(valueAt(points, round)?.[1] ?? "not measured"))));
  };
  const roundAt = (/** @type {PointerEvent} */ event) => {
    const box = node.getBoundingClientRect(), share = ((event.clientX - box.left) / box.width * WIDTH - LEFT) / (WIDTH - RIGHT - LEFT);
    return Math.round(Math.min(Math.max(wide[0] + share * (wide[1] - wide[0]), ends[0]), ends[1]));
  };
  node.addEventListener("pointermove", (event) => cursor.move(roundAt(event)));
  node.addEventListener("pointerleave", () => cursor.move(null));
  node.setAttribute("tabindex", "0");
  node.addEventListener("keydown", (event) => {
    const way = event.key === "ArrowLeft" ? -1 : Number(event.key === "ArrowRight"), now = cursor.at();
    if (event.key === "Escape") cursor.move(null);
    if (!way) return;
    event.preventDefault();
    const next = now !== null ? now + way : found.length ? last(last(found).points)[0] : 1;
    cursor.move(Math.min(Math.max(next, ends[0]), ends[1]));
  });
  node.addEventListener("blur", () => cursor.move(null));
  cursor.charts.add(draw);
  const point = (/** @type {Measured[]} */ lines, /** @type {Scale} */ scaleX, /** @type {Ends} */ across) => {
    [found, x, wide] = [lines, scaleX, across];
    ends = [across[0], Math.max(...lines.map(({ points }) => last(points)[0]), across[0])];
    draw();
  };
  return { point, gone: () => { cursor.charts.delete(draw); } };
}

/** The lines of a series: runs without a value of it are left out, and so are rounds without one.
 * @param {Shown[]} lines @param {string} name @returns {Measured[]} */
export const measured = (lines, name) => lines.map(({ id, name: run, colour, marks, band, series: { [name]: [rounds, values] = [[], []] } }) => {
  const [lows, highs] = (band?.[name] ?? [[], []]).map((ends) => ends.map((v, i) => /** @type {Point} */ ([rounds[i], v])));
  return { id, run, colour, marks, points: known([rounds, values]), lows, highs };
}).filter(({ points }) => points.length);

/** The points of a line that have a value. @param {Line} line */
const known = ([rounds, values]) => rounds.flatMap((r, i) => { const v = values[i]; return v === null ? [] : [/** @type {Point} */ ([r, v])]; });

/** The mean, the lowest and the highest of several runs, at the rounds that all of them have reached.
 * @param {Line[]} lines @returns {{line: Line, band: [number[], number[]]}} */
function spreadOf(lines) {
  const all = lines.map(known), ends = all.map((points) => points.length ? last(points)[0] : -Infinity);
  const from = Math.max(...all.map((points) => points.length ? points[0][0] : Infinity)), to = Math.min(...ends);
  const at = all.map((points) => new Map(points));
  const rounds = all[ends.indexOf(to)].map(([r]) => r).filter((r) => r >= from && r <= to);
  const values = rounds.map((r) => all.map((points, i) => at[i].get(r) ?? valueAt(points, r)?.[1] ?? NaN));
  return { line: [rounds, values.map((own) => own.reduce((sum, v) => sum + v, 0) / own.length)],
    band: [values.map((own) => Math.min(...own)), values.map((own) => Math.max(...own))] };
}

/** Runs that differ in nothing but their seed as one: their mean, with a band from the lowest to the highest. Of two runs of one
 * seed the second stays by itself. @param {Shown[]} lines @returns {Shown[]} */
export function banded(lines) {
  const groups = /** @type {Map<string, Shown[]>} */ (new Map()), seen = new Set();
  for (const line of lines) {
    const key = `${line.alike} ${line.seed}`, group = seen.has(key) ? line.id : `alike ${line.alike}`;
    seen.add(key);
    groups.set(group, [...groups.get(group) ?? [], line]);
  }
  return [...groups.values()].map((some) => some.length < 2 ? some[0] : together(some));
}

/** @param {Shown[]} some of one kind @returns {Shown} */
function together(some) {
  const [first] = some, mean = (/** @type {number[]} */ own) => own.reduce((sum, v) => sum + v, 0) / own.length;
  const found = Object.keys(first.series).map((name) => /** @type {const} */ ([name, spreadOf(some.map((line) => line.series[name] ?? [[], []]))]));
  const beside = Object.fromEntries(Object.entries(first.beside).map(([label, row]) => [label,
    Object.fromEntries(Object.keys(row).map((name) => [name, mean(some.map((line) => line.beside[label]?.[name] ?? row[name]))]))]));
  return { ...first, beside, name: `mean of ${some.length} seeds, band from lowest to highest`,
    series: Object.fromEntries(found.map(([name, { line }]) => [name, line])), band: Object.fromEntries(found.map(([name, { band }]) => [name, band])) };
}

/** What runs are measured beside in a series, each value once. @param {Shown[]} lines @param {string} name
 * @returns {{label: string, v: number}[]} */
export const levelsOf = (lines, name) => [...new Map(lines.flatMap((line) => Object.entries(line.beside))
  .flatMap(([label, { [name]: v }]) => v === undefined ? [] : [[`${label} ${v}`, { label, v }]])).values()];

/** Where the axis of values begins and ends, and whether it is logarithmic: of what is not above nothing there is no
 * logarithm. @param {number[]} known @param {boolean} log */
export function heights(known, log) {
  const bent = log && known.length > 0 && Math.min(...known) > 0;
  let [low, high] = known.length ? [Math.min(...known), Math.max(...known)] : [0, 1];
  if (high - low < 1e-9) [low, high] = bent ? [low / 1.1, high * 1.1] : [low - 0.05, high + 0.05];
  return { bent, up: bent ? /** @type {Ends} */ ([low, high]) : rounded(low, high) };
}

/** Where a knob was turned. @returns {Part<{colour: number, place: string, what: string}>} */
function turnMark() {
  const line = make("line", { y1: TOP, y2: HEIGHT - BOTTOM }), title = make("title");
  return { node: make("g", {}, line, title), draw: ({ colour, place, what }) => {
    line.setAttribute("x1", place); line.setAttribute("x2", place);
    line.setAttribute("class", `line-${colour % COLOURS}`); title.textContent = what;
  } };
}

/** What runs are measured beside, say popularity. @returns {Part<{label: string, height: number}>} */
function levelLine() {
  const line = make("line", { x1: LEFT, x2: WIDTH - RIGHT }), words = make("text", { x: WIDTH - RIGHT, "text-anchor": "end" });
  return { node: make("g", {}, line, words), draw: ({ label, height }) => {
    line.setAttribute("y1", height.toFixed(1)); line.setAttribute("y2", height.toFixed(1));
    words.setAttribute("y", (height - 3).toFixed(1)); words.textContent = label;
  } };
}

/** @param {Point[]} points @param {Scale} x @param {Scale} y @param {string} [begin] */
const through = (points, x, y, begin = "M") => points.map(([r, v], i) => `${i ? "L" : begin}${x(r).toFixed(1)} ${y(v).toFixed(1)}`).join("");

/** A line of its own look, or the area of a band. @param {string} look @returns {() => Part<string>} what is drawn along */
const shape = (look) => () => {
  const path = make("path", look === "band" ? { class: look } : { class: look, fill: "none" });
  return { node: path, draw: (d) => path.setAttribute("d", d) };
};

/** @returns {Part<Measured & {x: Scale, y: Scale}>} */
function runLine() {
  const path = make("path", { fill: "none" }), dot = make("circle", { r: 3 }), area = make("g"), areas = new Map();
  const group = make("g", {}, path, dot, area);
  return { node: group, draw: ({ colour, points, lows, highs, x, y }) => {
    group.setAttribute("class", `line-${colour % COLOURS} dash-${Math.floor(colour / COLOURS)}`);
    path.setAttribute("d", through(points, x, y));
    keyed(area, areas, lows.length ? [["band", `${through(highs, x, y)}${through([...lows].reverse(), x, y, "L")}Z`]] : [], shape("band"));
    const [r, v] = last(points);
    dot.setAttribute("cx", String(x(r))); dot.setAttribute("cy", String(y(v)));
  } };
}

/** The heading of a chart: the value at the round that is pointed at, or the last, and how far it is from the reference there.
 * @param {string} name @param {Measured[]} found @param {Measured | undefined} other @param {number | null} at */
export function heading(name, found, other, at) {
  if (!found.length) return name;
  const { points } = last(found), [round, value] = (at === null ? undefined : valueAt(points, at)) ?? last(points);
  const there = other && round <= last(other.points)[0] ? valueAt(other.points, round) : undefined;
  if (!other || !there) return `${name}: ${format(last(points)[1])}`;
  const gap = value - there[1], title = other.run.length > 18 ? `${other.run.slice(0, 17)}…` : other.run;
  return `${name}: ${format(value)}, ${gap < 0 ? "−" : "+"}${format(Math.abs(gap))} to ${title}`;
}

/** What a chart shows, for those who hear it. @param {string} name @param {Measured[]} found
 * @param {{label: string, v: number}[]} levels */
export function inWords(name, found, levels) {
  const words = found.map(({ run, points }) => {
    const own = points.map(([, v]) => v), [[from, first], [to, now]] = [points[0], last(points)];
    return `${found.length > 1 ? `${run}, ` : ""}from ${format(first)} in round ${from} to ${format(now)} `
      + `in round ${to}, lowest ${format(Math.min(...own))}, highest ${format(Math.max(...own))}`;
  });
  return `${name} by round: ${[...words, ...levels.map(({ label, v }) => `${label} ${format(v)}`)].join("; ") || "no rounds yet"}`;
}

/** @param {string} name @param {Cursor} cursor @param {string} [meaning] @returns {Part<Asked>} */
export function lineChart(name, cursor, meaning = "") {
  const { node, body, scale, say } = frame(name, meaning), kept = new Map(), flat = new Map(), turns = new Map();
  const turned = node.insertBefore(make("g", { class: "turned" }), body), { point, gone } = pointer(node, cursor);
  const beside = node.insertBefore(make("g", { class: "levels" }), body), behind = node.insertBefore(make("g"), body), others = new Map();
  let said = "", head = () => name;
  const follow = () => say(head(), said);
  cursor.charts.add(follow);
  const draw = (/** @type {Asked} */ { lines, reference, total, done, log, smooth, lacks }) => {
    const found = measured(lines, name), levels = levelsOf(lines, name), [other] = measured(reference ? [reference] : [], name);
    node.style.display = (done || lacks.includes(name)) && !found.length ? "none" : "";   // not measured in this kind of run
    const every = [...found, ...(other ? [other] : [])].flatMap(({ points, lows, highs }) => [...points, ...lows, ...highs].map(([, v]) => v));
    const { bent, up } = heights([...every, ...levels.map(({ v }) => v)], log), bend = smooth ? smoothed : (/** @type {Point[]} */ points) => points;
    const first = Math.min(1, ...found.map(({ points }) => points[0][0]));   // 0 where a stream begins before all training
    const across = /** @type {Ends} */ ([first, Math.max(total, 2)]);
    const { x, y } = scale(across, up, "round", true, false, bent);
    keyed(turned, turns, found.flatMap(({ id, colour, marks }) => marks.map(([r, what]) => /** @type {const} */ (
      [`${id} ${r}`, { colour, place: x(r).toFixed(1), what: `round ${r}: ${what}` }]))), turnMark);
    point(found, x, across);
    keyed(body, kept, found.map((line) =>
      [line.id, { ...line, x, y, points: bend(line.points), lows: bend(line.lows), highs: bend(line.highs) }]), runLine);
    keyed(behind, others, other ? [["reference", through(bend(other.points), x, y)]] : [], shape("reference"));
    keyed(beside, flat, levels.map(({ label, v }) => [`${label} ${v}`, { label, height: y(v) }]), levelLine);
    said = inWords(name, found, levels);
    head = () => heading(name, found, other, cursor.at());
    follow();
  };
  return { node, draw, gone: () => { gone(); cursor.charts.delete(follow); } };
}

/** @param {string} name @param {string} meaning @returns {Part<Asked>} */
export function spreadChart(name, meaning) {
  const { node, body, scale, say } = frame(name), bars = /** @type {SVGRectElement[]} */ ([]);
  /** @param {{spreads: Record<string, Spread>}} picture */
  const draw = ({ spreads: { [name]: found } }) => {
    const { low, high, counts, whole, median } = found ?? { low: 0, high: 1, counts: [], whole: false, median: null };
    const { x, y } = scale([low, high], rounded(0, Math.max(1, ...counts)), meaning, whole, true);
    while (bars.length < counts.length) bars.push(body.appendChild(make("rect", { class: "bar" })));
    bars.forEach((bar, i) => {
      const wide = (high - low) / (counts.length || 1), count = counts[i] ?? 0;
      const place = { x: x(low + i * wide) + 0.5, y: y(count), width: Math.max(x(low + wide) - x(low) - 1, 1), height: y(0) - y(count) };
      for (const [key, value] of Object.entries(place)) bar.setAttribute(key, String(value));
    });
    say(median === null ? name : `${name}: median ${format(median)}`,
      median === null ? `${meaning}: no rounds yet`
        : `${meaning} of ${found.clients} clients: median ${format(median)}, from ${format(low)} to ${format(high)}`);
  };
  return { node, draw };
}
