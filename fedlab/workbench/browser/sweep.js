// @ts-check
// A sweep over one or two knobs, and its map: a button for each run, which pins it.
import { button, format, keyed, labelled, last, make, select, tell } from "./parts.js";

/** @import { Cell, Heat, Knob, Model, Value } from "./parts.js" */
/** @typedef {{cell: Cell, heat: Heat, width: number, height: number, left: number, top: number, share: number,
 *   pinned: boolean}} Placed  a cell, and where it lies on the map as shares of it */

const SHADES = [[247, 251, 255], [198, 219, 239], [107, 174, 214], [33, 113, 181], [8, 48, 107]];

/** Colour of a share from 0 to 1, and black or white for the text on it, whichever is clearer. @param {number} t */
export function shade(t) {
  const at = Math.min(Math.max(t, 0), 1) * (SHADES.length - 1), i = Math.min(Math.floor(at), SHADES.length - 2);
  const rgb = SHADES[i].map((c, k) => Math.round(c + (SHADES[i + 1][k] - c) * (at - i)));
  const light = rgb.map((c) => c / 255).map((c) => c <= 0.04 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  const bright = 0.2126 * light[0] + 0.7152 * light[1] + 0.0722 * light[2];
  return { background: `rgb(${rgb.join(" ")})`, color: bright > 0.179 ? "#000" : "#fff" };
}

/** Where the values of a setting lie, from 0 to 1: evenly on a grid, by their size in a random search.
 * @param {{values: Value[]}} over @param {boolean} random @param {boolean} log
 * @returns {{count: number, marks: Value[], at: (v: Value) => number}} */
export function placed({ values }, random, log) {
  if (!random || typeof values[0] === "string") {
    const all = [...new Set(values)];
    return { count: all.length, marks: all, at: (v) => (all.indexOf(v) + 0.5) / all.length };
  }
  const low = Math.min(...values.map(Number)), high = Math.max(...values.map(Number));
  const size = (/** @type {number} */ v) => log && low > 0 ? Math.log(v / low) / Math.log(high / low) : (v - low) / (high - low);
  return { count: 12, marks: [low, high], at: (v) => 0.06 + 0.88 * (high > low ? size(Number(v)) : 0.5) };
}

/** @param {Model} model */
function heatMap(model) {
  const cells = new Map(), field = make("div", { class: "cells" }), words = make("p", { class: "words" });
  const below = make("div", { class: "below" }), beside = make("div", { class: "beside" });
  const node = make("div", { class: "heat", hidden: "" }, words, make("div", { class: "map" }, beside, field, below));
  const create = (/** @type {Placed} */ { cell: { run } }) => {
    const cell = button("", () => tell(model, "pin", run, cell.getAttribute("aria-pressed") !== "true"), { "data-run": run });
    return { node: cell, draw: (/** @type {Placed} */ { cell: found, left, top, width, height, share, heat, pinned }) => {
      const reached = found.value === null ? found.state : format(found.value);
      cell.textContent = found.state === "running" ? `${reached} …` : reached;
      cell.title = found.error;
      cell.setAttribute("aria-pressed", String(pinned));
      cell.setAttribute("aria-label", `${found.name}: ${heat.metric} ${reached}, ${found.state}; press to pin`);
      Object.assign(cell.style, { left: `${left * 100}%`, top: `${top * 100}%`, width: `${width * 100}%`, height: `${height * 100}%` },
        found.value === null ? { background: "", color: "" } : shade(share));
    } };
  };
  const draw = () => {
    const heat = model.get("heat");
    node.hidden = !heat.over;
    if (!heat.over) return;
    const logs = new Set(model.get("spec").knobs.filter((k) => k.kind === "number" && k.log).map((k) => k.name));
    const [across, up] = heat.over.map((over) => placed(over, heat.random, logs.has(over.name)));
    const values = heat.cells.flatMap((c) => c.value === null ? [] : [c.value]);
    const low = Math.min(...values), high = Math.max(...values), pins = new Set(
      model.get("table").filter((row) => row.pinned).map((row) => row.id));
    const width = 1 / across.count, height = up ? 1 / up.count : 1;
    keyed(field, cells, heat.cells.map((cell) => {
      const t = cell.value !== null && high > low ? (cell.value - low) / (high - low) : 1;
      return [cell.run, { cell, heat, width, height, share: heat.mode === "max" ? t : 1 - t, pinned: pins.has(cell.run),
        left: across.at(cell.at[0]) - width / 2, top: 1 - (up ? up.at(cell.at[1]) : 0.5) - height / 2 }];
    }), create);
    const mark = (/** @type {"left" | "bottom"} */ side, /** @type {(v: Value) => number} */ at) => (/** @type {Value} */ v) => {
      const found = make("span", {}, format(v));
      found.style[side] = `${at(v) * 100}%`;
      return found;
    };
    below.replaceChildren(...across.marks.map(mark("left", across.at)));
    beside.replaceChildren(...(up ? up.marks.map(mark("bottom", up.at)) : []));
    const ended = heat.cells.filter((c) => c.state !== "running"), best = heat.mode === "max" ? high : low;
    words.textContent = `Best ${heat.metric} of each run: ${ended.length} of ${heat.planned} ended`
      + (values.length ? `, the best so far ${format(best)} (${heat.cells.find((c) => c.value === best)?.name})` : "")
      + `. Across: ${heat.over[0].name}${heat.over[1] ? `; up: ${heat.over[1].name}` : ""}. Press a cell to pin its run.`;
  };
  return { node, draw };
}

/** Four values between the ends of a knob, or its choices. @param {Knob} spec */
export function proposed(spec) {
  if (spec.kind === "several") return ["none", ...spec.choices].join(", ");
  if (spec.kind !== "number") return spec.choices.join(", ");
  const { low, high, log, whole } = spec;
  const at = [0.2, 0.4, 0.6, 0.8].map((t) => log ? low * (high / low) ** t : low + t * (high - low));
  return [...new Set(at.map((v) => whole ? Math.round(v) : Number(v.toPrecision(1))))].join(", ");
}

/** @param {Model} model */
export function sweepPanel(model) {
  const spec = model.get("spec"), knobs = spec.knobs.filter((k) => k.kind === "number" || k.choices.length > 0), map = heatMap(model);
  const names = knobs.map((k) => k.name), pick = names.filter((n) => n.endsWith("_lr"));
  const axis = (/** @type {string} */ label, /** @type {string} */ first, /** @type {string[]} */ options) => {
    const name = select(options), values = make("input", { type: "text", "aria-label": `values ${label}` });
    const fill = () => {
      const chosen = knobs.find((k) => k.name === name.value);
      values.value = chosen ? proposed(chosen) : "";
    };
    name.value = first; name.addEventListener("change", fill); fill();
    return { name, values, node: make("span", { class: "axis" }, labelled(label, name), values) };
  };
  const across = axis("across", pick[0] ?? names[0] ?? "", names);
  const up = axis("up", pick[1] ?? "nothing", ["nothing", ...names]);
  const metric = select(Object.keys(spec.metrics)), search = select(["grid", "random"]);
  metric.value = last(Object.keys(spec.metrics).slice(0, 2));
  const count = make("input", { type: "number", min: 1, max: 200, value: 12, disabled: "" });
  search.addEventListener("change", () => { count.disabled = search.value === "grid"; });
  const begin = button("Run the sweep", () => tell(model, "sweep",
    { [across.name.value]: across.values.value, ...(up.name.value === "nothing" ? {} : { [up.name.value]: up.values.value }) },
    metric.value, search.value === "grid" ? 0 : Number(count.value)));
  const node = make("details", { class: "sweep" }, make("summary", {}, "Sweep"),
    make("div", { class: "row" }, across.node, up.node),
    make("div", { class: "row" }, labelled("metric", metric), labelled("search", search), labelled("runs", count), begin,
      button("Cancel", () => tell(model, "stop"), { "aria-label": "Cancel the sweep; what is done stays" })), map.node);
  node.hidden = !names.length || !model.get("spec").sweeps;
  return { node, draw: map.draw };
}
