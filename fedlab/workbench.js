// The live view: knobs, buttons and two charts over the traits that workbench.py sets. Text is always set
// as text, never as HTML. Charts change attributes in place, so there is no blank frame.
const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 360, HEIGHT = 200, LEFT = 48, RIGHT = 12, TOP = 26, BOTTOM = 34;

function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "path", "line", "text", "circle", "g"].includes(tag);
  const node = svg ? document.createElementNS(SVG, tag) : document.createElement(tag);
  // without this JupyterLab takes the arrow and Enter keys for its own shortcuts
  if (tag === "input" || tag === "button") node.setAttribute("data-lm-suppress-shortcuts", "true");
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const format = (x) => !Number.isFinite(x) ? "not a number"
  : Math.abs(x) >= 1000 || Number.isInteger(x) ? String(Math.round(x)) : String(Number(x.toPrecision(3)));

function ticks(low, high, count = 4) {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find((m) => m * power >= raw) * power;
  const first = Math.ceil(low / step - 1e-9) * step, found = [];
  for (let x = first; x <= high + 1e-9 * step; x += step) found.push(Number(x.toPrecision(12)));
  return found;
}

function chart(name, index) {
  const title = make("text", { x: LEFT, y: 15, class: "title" }, name);
  const axes = make("g", { class: "axes" });
  const path = make("path", { class: `line line-${index}`, fill: "none" });
  const dot = make("circle", { class: `dot line-${index}`, r: 3, visibility: "hidden" });
  const node = make("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "data-series": name },
    title, axes, path, dot);
  const draw = (rounds, values, total) => {
    const points = rounds.map((r, i) => [r, values[i]]).filter(([, v]) => v !== null);
    const known = points.map(([, v]) => v);
    let low = Math.min(...known), high = Math.max(...known);
    if (!points.length) [low, high] = [0, 1];
    if (high - low < 1e-9) [low, high] = [low - 0.05, high + 0.05];
    const last = Math.max(total, 2);
    const x = (r) => LEFT + (r - 1) / (last - 1) * (WIDTH - LEFT - RIGHT);
    const y = (v) => HEIGHT - BOTTOM - (v - low) / (high - low) * (HEIGHT - TOP - BOTTOM);
    const marks = [];
    for (const v of ticks(low, high)) {
      marks.push(make("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(v), y2: y(v) }),
        make("text", { x: LEFT - 6, y: y(v) + 4, "text-anchor": "end" }, format(v)));
    }
    for (const r of ticks(1, last, 5).filter(Number.isInteger)) {
      marks.push(make("text", { x: x(r), y: HEIGHT - BOTTOM + 16, "text-anchor": "middle" }, format(r)));
    }
    marks.push(make("text", { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 4, "text-anchor": "middle" }, "round"));
    axes.replaceChildren(...marks);
    path.setAttribute("d", points.map(([r, v], i) => `${i ? "L" : "M"}${x(r).toFixed(1)} ${y(v).toFixed(1)}`).join(""));
    const end = points.at(-1);
    dot.setAttribute("visibility", end ? "visible" : "hidden");
    if (end) { dot.setAttribute("cx", x(end[0])); dot.setAttribute("cy", y(end[1])); }
    title.textContent = end ? `${name}: ${format(end[1])}` : name;
    node.setAttribute("aria-label", end
      ? `${name} by round: from ${format(points[0][1])} in round ${points[0][0]} to ${format(end[1])} in round ${end[0]}, `
        + `lowest ${format(Math.min(...known))}, highest ${format(Math.max(...known))}`
      : `${name} by round: no rounds yet`);
  };
  return { node, draw };
}

function knob(model, spec) {
  const id = `fedlab-${Math.random().toString(36).slice(2)}`;
  const log = spec.log && spec.low > 0;
  const place = (v) => log ? Math.log(v / spec.low) / Math.log(spec.high / spec.low) * 1000 : v;
  const value = (p) => {
    const raw = log ? spec.low * (spec.high / spec.low) ** (p / 1000) : Number(p);
    return spec.whole ? Math.round(raw) : Number(raw.toPrecision(3));
  };
  const range = log ? { min: 0, max: 1000, step: 5 }
    : { min: spec.low, max: spec.high, step: spec.whole ? 1 : (spec.high - spec.low) / 200 };
  const slider = make("input", { type: "range", id, name: spec.name, ...range });
  const number = make("input", {
    type: "number", name: spec.name, min: spec.low, max: spec.high, step: spec.whole ? 1 : "any",
    "aria-label": `${spec.label}, as a number` });
  const used = make("span", { class: "used", "data-used": spec.name });
  const set = (v) => {
    model.set("values", { ...model.get("values"), [spec.name]: v });
    model.save_changes();
  };
  slider.addEventListener("input", () => set(value(slider.value)));
  number.addEventListener("change", () => { if (number.value !== "") set(Number(number.value)); });
  const show = () => {
    const now = model.get("values")[spec.name], last = model.get("used")[spec.name];
    slider.value = place(now);
    slider.setAttribute("aria-valuetext", `${format(now)} ${spec.unit}`);
    if (document.activeElement !== number) number.value = now;
    used.textContent = last === undefined ? "" : `last round used ${format(last)}`;
    used.classList.toggle("pending", last !== undefined && last !== now);
  };
  const label = make("label", { for: id, title: spec.meaning }, spec.label,
    make("small", {}, spec.unit ? ` (${spec.unit})` : ""));
  return { node: make("div", { class: "knob" }, label, slider, number, used), show };
}

function render({ model, el }) {
  const knobs = model.get("knobs").map((spec) => knob(model, spec));
  const charts = ["loss", ...model.get("metrics")].map((name, i) => [name, chart(name, i)]);
  const buttons = Object.fromEntries(["start", "pause", "stop"].map((command) => {
    const node = make("button", { type: "button", "data-command": command }, command[0].toUpperCase() + command.slice(1));
    node.addEventListener("click", () => model.send({ command }));
    return [command, node];
  }));
  const progress = make("progress", { max: 1, value: 0, "aria-label": "rounds done" });
  const status = make("span", { class: "status", role: "status" });
  const notice = make("div", { class: "notice", role: "alert" });
  const root = make("section", { class: "fedlab-workbench", "aria-label": "Live workbench" },
    make("div", { class: "knobs" }, ...knobs.map((k) => k.node)),
    make("div", { class: "controls" }, ...Object.values(buttons), progress, status), notice,
    make("div", { class: "charts" }, ...charts.map(([, c]) => c.node)));
  el.append(root);

  const showState = () => {
    const state = model.get("state"), busy = state === "running" || state === "paused";
    root.dataset.state = state;
    buttons.start.textContent = state === "paused" ? "Resume" : "Start";
    buttons.start.disabled = state === "running";
    buttons.pause.disabled = state !== "running";
    buttons.stop.disabled = !busy;
    status.textContent = model.get("message");
    notice.textContent = model.get("notice");
  };
  const showRounds = () => {
    const history = model.get("history"), done = history.round.at(-1) ?? 0, total = model.get("total");
    for (const [name, c] of charts) c.draw(history.round, history[name] ?? [], total);
    progress.value = total ? done / total : 0;
    root.dataset.rounds = done;
  };
  const showKnobs = () => knobs.forEach((k) => k.show());
  const watch = [["change:values", showKnobs], ["change:used", showKnobs], ["change:state", showState],
    ["change:message", showState], ["change:notice", showState], ["change:history", showRounds], ["change:total", showRounds]];
  for (const [event, callback] of watch) model.on(event, callback);
  showKnobs(); showState(); showRounds();
  return () => { for (const [event, callback] of watch) model.off(event, callback); };
}

export default { render };
