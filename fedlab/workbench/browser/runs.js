// @ts-check
// The table of runs: pin, name, compare, delete, export, and where they are kept.

/** @param {Model} model @param {string[]} metrics */
function runRow(model, metrics) {
  return (/** @type {Row} */ { id }) => {
    const pin = make("input", { type: "checkbox" }), name = make("input", { type: "text", maxlength: 80 });
    pin.addEventListener("change", () => tell(model, "pin", id, pin.checked));
    name.addEventListener("change", () => tell(model, "rename", id, name.value));
    const swatch = make("span", { class: "swatch" }), state = make("td"), beside = make("td", { class: "differs" }), differs = make("td", { class: "differs" });
    const best = metrics.map((_, i) => make("td", { class: `metric-${i}` })), remove = button("Delete", () => tell(model, "delete", id));
    const resume = button("Resume", () => tell(model, "resume", id));
    const node = make("tr", { "data-run": id }, make("td", {}, pin, swatch), make("td", {}, name), state, ...best,
      beside, differs, make("td", { class: "row" }, resume, remove));
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
        const found = row.best[metrics[i]];
        cell.textContent = !found || row.state === "running" ? "" : `${format(found[0])} (round ${found[1]})`;
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
function runsPanel(model) {
  const { metrics, exports } = model.get("spec"), names = Object.keys(metrics), kept = new Map();
  const body = make("tbody"), summary = make("summary", {}, "Runs");
  const head = (text, kind = "") => make("th", { scope: "col", class: kind }, text);
  const grid = make("table", {}, make("thead", {}, make("tr", {}, ...["in charts", "name", "state"].map((h) => head(h)),
    ...names.map((n, i) => head(`best ${n}`, `metric-${i}`)), head("beside, with the lead [95%]"), head("settings that differ"), make("td"))), body);
  const folder = make("input", { type: "text", placeholder: "runs" });
  const keep = button("Keep runs there", () => tell(model, "folder", folder.value || "runs"));
  const files = exports.map((kind) => button(kind.toUpperCase(), () => tell(model, "export", kind),
    { "aria-label": `Export as ${kind.toUpperCase()}` }));
  files.push(button("TensorBoard", () => tell(model, "tensorboard"), { "aria-label": "Export to TensorBoard" }));
  const saving = make("span", { class: "saving", role: "status" });
  const node = make("details", { class: "runs" }, summary, make("div", { class: "scroll", tabindex: 0, role: "region",
    "aria-label": "table of runs" }, grid), make("div", { class: "row" }, "Export what the charts show:", ...files),
    make("div", { class: "row" }, labelled("folder", folder), keep));
  const draw = () => {
    const rows = model.get("table");
    summary.textContent = `Runs (${rows.length})`;
    names.forEach((name, i) => grid.classList.toggle(`without-${i}`, !rows.some((row) => row.best[name])));
    keyed(body, kept, rows.map((row) => [row.id, row]), runRow(model, names));
    saving.textContent = model.get("saving");
  };
  return { node, saving, draw };
}

/** A file that Python sends becomes a download. @param {{file: string}} message @param {DataView[]} buffers */
function download(message, buffers) {
  const address = URL.createObjectURL(new Blob([/** @type {any} */ (buffers[0])]));
  make("a", { href: address, download: message.file }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}
