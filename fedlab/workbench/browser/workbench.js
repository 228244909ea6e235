// @ts-check
// The live view as a whole: traits of widget.py in, commands out.
import { WINDOW, banded, crosshair, lineChart, spreadChart } from "./chart.js";
import { findPanel } from "./find.js";
import { presetCard } from "./guide/card.js";
import { challengeRow } from "./guide/challenge.js";
import { insidePanel } from "./inside/panel.js";
import { knob, presetRow, settingsPanel, takeAddress } from "./knobs.js";
import { COLOURS, button, format, keyed, labelled, make, tell } from "./parts.js";
import { download, runsPanel } from "./runs.js";
import { sweepPanel } from "./sweep.js";

/** @import { Knob, Model, Part, Shown, Traits } from "./parts.js" */

/** @param {Model} model */
function controls(model) {
  const press = (/** @type {string} */ command) => button(command[0].toUpperCase() + command.slice(1), () => tell(model, command),
    { "data-command": command });
  const [start, pause, step, stop, reset, undo] = ["start", "pause", "step", "stop", "reset", "undo"].map(press);
  const progress = make("progress", { max: 1, value: 0, "aria-label": "rounds done" });
  const status = make("span", { class: "status", role: "status" });
  const draw = () => {
    const state = model.get("state");
    start.textContent = state !== "paused" ? "Start" : model.get("spec").recorded ? "Play" : "Resume";
    start.disabled = state === "running" || state === "stopping";
    pause.disabled = state !== "running";
    step.disabled = start.disabled;
    stop.disabled = !["running", "paused"].includes(state);
    status.textContent = model.get("message");
  };
  undo.hidden = model.get("spec").recorded ?? false;
  return { node: make("div", { class: "controls" }, start, pause, step, stop, reset, undo, progress, status), progress, draw };
}

/** Which charts to show, and how. @param {Model} model @param {() => void} redraw */
function chooser(model, redraw) {
  const { lines, spreads } = model.get("spec");
  const boxes = [...lines, ...Object.keys(spreads)].map((name) => {
    const box = make("input", { type: "checkbox", value: name });
    box.addEventListener("change", () => {
      const chosen = boxes.filter((b) => b.box.checked).map((b) => b.box.value);
      model.set("charts", chosen);
      model.save_changes();
    });
    return { box, node: make("label", {}, box, name) };
  });
  const draw = () => { for (const { box } of boxes) box.checked = model.get("charts").includes(box.value); };
  const look = { log: false, smooth: false, bands: true };
  const ways = { log: "logarithmic", smooth: `smoothed over ${WINDOW} rounds`, bands: "seeds as mean and band" };
  const looks = Object.entries(ways).map(([name, words]) => {
    const box = make("input", { type: "checkbox", value: name, ...(name === "bands" ? { checked: "" } : {}) });
    box.addEventListener("change", () => { Object.assign(look, { [name]: box.checked }); redraw(); });
    return make("label", {}, box, words);
  });
  const node = make("div", {}, make("fieldset", { class: "chooser" }, make("legend", {}, "Charts"), ...boxes.map((b) => b.node)),
    make("fieldset", { class: "chooser" }, make("legend", {}, "Lines"), ...looks));
  return { node, draw, look };
}

/** @returns {Part<Shown>} */
function legendEntry() {
  const swatch = make("span"), text = make("span"), node = make("span", { class: "entry" }, swatch, text);
  return { node, draw: ({ name, colour }) => {
    swatch.className = colour < 0 ? "swatch reference" : `swatch line-${colour % COLOURS}`;
    text.textContent = name;
  } };
}

/** Knobs that turn while training runs, and those that wait for the next run; groups are folded away, and say what
 * in them is not as usual. @param {Knob[]} described @param {{node: HTMLElement}[]} knobs in the same order
 * @returns {{nodes: HTMLElement[], draw: (values: Traits["values"], unread: Traits["unread"]) => void}} */
function grouped(described, knobs) {
  const those = (/** @type {string} */ group, /** @type {boolean} */ live) => knobs.filter((_, i) => described[i].group === group && described[i].live === live).map((k) => k.node);
  const section = (/** @type {string} */ group) => [
    ...(those(group, true).length ? [make("div", { class: "knobs" }, ...those(group, true))] : []),
    ...(those(group, false).length ? [make("div", { class: "heading" }, "From the next run"),
      make("div", { class: "knobs" }, ...those(group, false))] : [])];
  const folded = [...new Set(described.map((spec) => spec.group))].filter((group) => group).map((group) => {
    const summary = make("summary");
    const draw = (/** @type {Traits["values"]} */ values, /** @type {Traits["unread"]} */ unread) => {
      const turned = described.filter((k) => k.group === group && values[k.name] !== k.default && !(k.name in unread));
      summary.textContent = [group, turned.map((k) => `${k.label} ${format(values[k.name])}`).join(", ")].filter((x) => x).join(": ");
    };
    return { node: make("details", { class: "group" }, summary, ...section(group)), draw };
  });
  const nodes = [...section(""), ...(folded.length ? [searchField(described, knobs, folded)] : []), ...folded.map((f) => f.node)];
  return { nodes, draw: (values, unread) => folded.forEach((f) => f.draw(values, unread)) };
}

/** Whether the name, meaning or choices of a knob have all words of what is typed. @param {Knob} spec @param {string} typed */
export function matches({ name, label, meaning, choices }, typed) {
  const text = `${name} ${label} ${meaning} ${choices ?? ""}`.toLowerCase();
  return typed.trim().toLowerCase().split(/\s+/).every((word) => text.includes(word));
}

/** What shows only the knobs whose name or meaning has what is typed. @param {Knob[]} described
 * @param {{node: HTMLElement}[]} knobs in the same order @param {{node: HTMLDetailsElement}[]} folded their groups */
function searchField(described, knobs, folded) {
  const field = make("input", { type: "search", placeholder: "name or meaning" });
  const open = new Set();                                   // by hand, before anything was typed
  field.addEventListener("input", () => {
    const typed = field.value.trim();
    described.forEach((spec, i) => { knobs[i].node.hidden = !matches(spec, typed); });
    for (const { node } of folded) {
      if (!field.dataset.typed && node.open) open.add(node);
      node.hidden = !node.querySelector(".knob:not([hidden])");
      node.open = typed ? !node.hidden : open.has(node);
    }
    field.dataset.typed = typed;
    if (!typed) open.clear();
  });
  return make("div", { class: "row search" }, labelled("find a knob", field));
}

/** @param {{model: Model, el: HTMLElement}} place */
function render({ model, el }) {
  const { knobs: described, spreads, meanings } = model.get("spec");
  const knobs = described.map((spec) => knob(model, spec)), groups = grouped(described, knobs), buttons = controls(model), choice = chooser(model, () => showRounds()), preset = presetRow(model), card = presetCard(model), challenge = challengeRow(model);
  const settings = settingsPanel(model), runs = runsPanel(model), sweep = sweepPanel(model), find = findPanel(model);
  const cursor = crosshair(), inside = insidePanel(model, cursor);
  const gone = make("div", { class: "notice", role: "alert" }), notice = make("div", { class: "notice", role: "alert" }), news = make("div", { class: "news", role: "status" });
  const charts = make("div", { class: "charts" }), kept = new Map();
  const legend = make("div", { class: "legend" }), entries = new Map();
  const panes = make("div", { class: "panes" },
    make("div", { class: "left", tabindex: "-1" }, preset.node, card.node, challenge.node, ...groups.nodes),
    make("div", { class: "right" }, ...(model.get("spec").inside ? [inside.node] : []), legend, charts, choice.node));
  const root = make("section", { class: "fedlab-workbench", "aria-label": "Live workbench" },
    make("div", { class: "transport" }, gone, buttons.node, notice, news), panes,
    runs.saving, runs.node, sweep.node, find.node, settings.node);
  buttons.node.insertBefore(inside.see, buttons.progress);
  el.append(root);

  const showRounds = () => {
    const picture = model.get("picture"), { reference } = picture, lines = choice.look.bands ? banded(picture.lines) : picture.lines;
    const named = [...lines, ...(reference ? [{ ...reference, colour: -1, id: "reference", name: `behind: ${reference.name}` }] : [])];
    keyed(charts, kept, model.get("charts").map((name) => [name, { name, ...picture, ...choice.look, lines, lacks: model.get("lacks") }]),
      ({ name }) => name in spreads ? spreadChart(name, spreads[name]) : lineChart(name, cursor, meanings[name]));
    keyed(legend, entries, named.length > 1 || lines.some(({ band }) => band) ? named.map((line) => [line.id, line]) : [], legendEntry);
    buttons.progress.value = picture.progress;
    root.dataset.rounds = String(picture.done);
    inside.draw();
  };
  const showCharts = () => { choice.draw(); showRounds(); };
  const showState = () => {
    root.dataset.state = model.get("state");
    buttons.draw();
    notice.textContent = model.get("notice");
    news.textContent = model.get("news");
  };
  const showKnobs = () => { knobs.forEach((k) => k.draw()); groups.draw(model.get("values"), model.get("unread")); preset.draw(); card.draw(); inside.draw(); };
  const showRuns = () => { runs.draw(); sweep.draw(); };
  /** @param {{file?: string}} message @param {DataView<ArrayBuffer>[]} buffers */
  const arrived = (message, buffers) => { if (message.file) download(message.file, buffers); };
  const watch = { values: showKnobs, used: showKnobs, unread: showKnobs, wrong: showKnobs, preset: showKnobs, state: showState, message: showState, notice: showState,
    news: showState, picture: showRounds, lacks: showRounds, charts: showCharts, table: showRuns, saving: showRuns, heat: sweep.draw,
    text: settings.draw, report: find.draw, challenge: challenge.draw, inside: inside.draw, stays: inside.draw, dots: inside.draw, seen: inside.draw, looking: inside.draw };
  for (const [trait, call] of Object.entries(watch)) model.on(`change:${trait}`, call);
  model.on("msg:custom", arrived);
  const lived = /** @this {{comm_live: boolean}} */ function () {              // false once the kernel restarts or is gone
    root.classList.toggle("gone", !this.comm_live);
    gone.textContent = this.comm_live ? "" : "The kernel has ended: what is below is as it was then. Run the cell again; runs that "
      + "were kept in a folder can be resumed.";
  };
  model.on("comm_live_update", lived);
  showKnobs(); challenge.draw(); showCharts(); showState(); showRuns(); find.draw(); settings.draw();
  takeAddress(model);
  return () => {
    for (const [trait, call] of Object.entries(watch)) model.off(`change:${trait}`, call);
    model.off("msg:custom", arrived);
    model.off("comm_live_update", lived);
  };
}

export default { render };
