// @ts-check
// The table of runs: pin, name, compare, delete, export, and where they are kept.
import { COLOURS, button, format, keyed, labelled, make, select, tell } from "./parts.js";

/** @import { Model, Part, Row } from "./parts.js" */
/** @typedef {(row: Row) => string | number} Key  what rows are sorted by; not a number where a row has none */

/** Rows by a key, those without one last in either direction. @param {Row[]} rows @param {Key | undefined} key as they
 * came without one @param {boolean} down the greatest first */
export function inOrder(rows, key, down) {
  if (!key) return rows;
  const way = down ? -1 : 1;
  return [...rows].sort((one, other) => {
    const [a, b] = [key(one), key(other)], [none, lacks] = [Number.isNaN(a), Number.isNaN(b)];
    return none || lacks ? Number(none) - Number(lacks) : way * (a < b ? -1 : Number(a > b));
  });
}

/** What the run has as its best of a metric, and by how much it differs from another run's.
 * @param {[number, number] | null | undefined} found value and round @param {[number, number] | null | undefined} other */
export function bestInWords(found, other) {
  if (!found) return "";
  const gap = other ? found[0] - other[0] : 0;
  return `${format(found[0])} (round ${found[1]}${gap ? `, ${gap > 0 ? "+" : "-"}${format(Math.abs(gap))}` : ""})`;
}

/** @param {Model} model @param {string[]} metrics @param {() => Row | undefined} reference the run to compare with
 * @returns {(row: Row) => Part<Row>} */
function runRow(model, metrics, reference) {
  return ({ id }) => {
    const pin = make("input", { type: "checkbox" }), name = make("input", { type: "text", maxlength: 80 });
    pin.addEventListener("change", () => tell(model, "pin", id, pin.checked));
    name.addEventListener("change", () => tell(model, "rename", id, name.value));
    const swatch = make("span", { class: "swatch" }), state = make("td"), beside = make("td", { class: "level" }), differs = make("td", { class: "differs" });
    const best = metrics.map((_, i) => make("td", { class: `metric-${i}` })), remove = button("Delete", () => tell(model, "delete", id));
    const resume = button("Resume", () => tell(model, "resume", id));
    const node = make("tr", { "data-run": id }, make("td", {}, pin, swatch), make("td", {}, name), differs, state, ...best,
      beside, make("td", { class: "row" }, resume, remove));
    const draw = (/** @type {Row} */ row) => {
      pin.checked = row.pinned;
      pin.setAttribute("aria-label", `keep ${row.name} in the charts`);
      name.setAttribute("aria-label", `name of ${row.name}`);
      remove.setAttribute("aria-label", `delete ${row.name}`);
      remove.disabled = !row.open && row.state !== "damaged";
      resume.setAttribute("aria-label", `resume ${row.name}`);
      resume.disabled = !row.open;
      if (document.activeElement !== name) name.value = row.name;
      swatch.className = row.colour === null ? "swatch" : `swatch line-${row.colour % COLOURS}`;
      state.textContent = row.state === "running" ? "running" : `${row.state}, ${row.rounds} rounds`;
      state.title = row.error;
      best.forEach((cell, i) => {
        cell.textContent = row.state === "running" ? "" : bestInWords(row.best[metrics[i]], reference()?.best[metrics[i]]);
      });
      const levels = Object.entries(row.beside).map(([label, value]) => `${label} ${format(value)}`).join(", ");
      beside.textContent = row.lead ? `${row.lead}; ${levels}` : levels;
      beside.title = row.verdict;
      differs.textContent = Object.entries(row.differs).map(([key, value]) => `${key} ${value}`).join("; ");
    };
    return { node, draw };
  };
}

/** @param {Model} model */
export function runsPanel(model) {
  const { metrics, exports } = model.get("spec"), names = Object.keys(metrics), kept = new Map();
  const body = make("tbody"), summary = make("summary", {}, "Runs");
  const sorted = { by: "", down: false };                    // by what; the newest first without
  /** @param {string} text @param {string} [kind] @param {Key} [key] sorts by it when pressed */
  const head = (text, kind = "", key = undefined) => {
    const cell = make("th", { scope: "col", class: kind }, key ? "" : text);
    if (key) cell.append(button(text, () => {
      Object.assign(sorted, sorted.by === text ? { by: sorted.down ? "" : text, down: true } : { by: text, down: false });
      for (const each of heads) each.setAttribute("aria-sort", "none");
      if (sorted.by) cell.setAttribute("aria-sort", sorted.down ? "descending" : "ascending");
      draw();
    }, { class: "sort", "aria-label": `sort by ${text}` }));
    if (key) keys[text] = key;
    return cell;
  };
  const keys = /** @type {Record<string, Key>} */ ({}), differing = (/** @type {Row} */ row) => Object.entries(row.differs).map((pair) => pair.join(" ")).join(", ");
  const heads = [head("in charts"), head("name", "", (row) => row.name), head("settings that differ", "", differing),
    head("state", "", (row) => row.state), ...names.map((n, i) => head(`best ${n}`, `metric-${i}`, (row) => row.best[n]?.[0] ?? NaN)),
    head("beside, with the lead [95%]"), make("td")];
  const grid = make("table", {}, make("thead", {}, make("tr", {}, ...heads)), body);
  const choice = select(["no run"]);
  choice.addEventListener("change", () => { tell(model, "compare", choice.value); draw(); });
  const reference = () => model.get("table").find((row) => row.id === choice.value);
  const folder = make("input", { type: "text", placeholder: "runs" });
  const keep = button("Keep runs there", () => tell(model, "folder", folder.value || "runs"));
  const files = exports.map((kind) => button(kind.toUpperCase(), () => tell(model, "export", kind),
    { "aria-label": `Export as ${kind.toUpperCase()}` }));
  files.push(button("TensorBoard", () => tell(model, "tensorboard"), { "aria-label": "Export to TensorBoard" }));
  const saving = make("span", { class: "saving", role: "status" });
  const node = make("details", { class: "runs" }, summary, make("div", { class: "row" }, labelled("difference to", choice)),
    make("div", { class: "scroll", tabindex: 0, role: "region",
    "aria-label": "table of runs" }, grid), make("div", { class: "row" }, "Export what the charts show:", ...files),
    make("div", { class: "row" }, labelled("folder", folder), keep));
  const draw = () => {
    const rows = model.get("table");
    summary.textContent = `Runs (${rows.length})`;
    names.forEach((name, i) => grid.classList.toggle(`without-${i}`, !rows.some((row) => row.best[name])));
    const chosen = choice.value, runs = [["", "no run"], ...rows.map((row) => [row.id, row.name])];
    choice.replaceChildren(...runs.map(([id, name]) => make("option", { value: id }, name)));
    choice.value = rows.some((row) => row.id === chosen) ? chosen : "";
    keyed(body, kept, inOrder(rows, keys[sorted.by], sorted.down).map((row) => [row.id, row]), runRow(model, names, reference));
    saving.textContent = model.get("saving");
  };
  return { node, saving, draw };
}

/** A file that Python sends becomes a download. @param {string} name @param {DataView<ArrayBuffer>[]} buffers */
export function download(name, buffers) {
  const address = URL.createObjectURL(new Blob(buffers.slice(0, 1)));
  make("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}
