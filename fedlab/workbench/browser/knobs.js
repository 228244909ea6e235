// @ts-check
// Knobs of any kind from their description, presets, and all settings as text.

/** @param {Model} model @param {Knob} spec */
function knob(model, spec) {
  const set = (v) => { model.set("values", { ...model.get("values"), [spec.name]: v }); model.save_changes(); };
  const kinds = { number: numberFields, choice: choiceField, several: severalField, text: textField };
  const { fields, show } = kinds[spec.kind](spec, set);
  const unit = spec.unit && spec.unit !== spec.label ? ` (${spec.unit})` : "";
  const label = labelOf(fields[0], spec.label, make("small", {}, unit));
  const used = make("span", { class: "used", "data-used": spec.name }), wrong = make("span", { class: "wrong" });
  const back = button("↺", () => set(spec.start), { class: "back", "aria-label": `put ${spec.label} back to ${format(spec.start)}`,
    title: `back to ${format(spec.start)}` });
  wrong.id = `fedlab-${Math.random().toString(36).slice(2)}`;
  const node = make("div", { class: `knob ${spec.kind}`, "data-knob": spec.name }, label, ...fields, back, used, wrong);
  const draw = () => {
    const now = model.get("values")[spec.name], last = model.get("used")[spec.name], why = model.get("unread")[spec.name];
    show(now);
    const waiting = why === undefined && last !== undefined && last !== now;
    used.textContent = why ?? (last === undefined || !(spec.live || waiting) ? "" : `in use: ${format(last)}`);
    used.classList.toggle("pending", waiting);
    const bad = model.get("wrong")[spec.name];
    wrong.textContent = bad ?? "";
    fields[0].setAttribute("aria-describedby", bad === undefined ? "" : wrong.id);
    for (const field of fields) field.setAttribute("aria-invalid", String(bad !== undefined));
    back.classList.toggle("idle", now === spec.start);
    back.disabled = now === spec.start || why !== undefined;
    node.classList.toggle("unread", why !== undefined);
    node.title = why === undefined ? spec.meaning : `${spec.meaning}: ${why}`;
    for (const field of fields) field.disabled = why !== undefined;
  };
  return { node, draw };
}

/** @param {Knob} spec @param {(value: number) => void} set */
function numberFields(spec, set) {
  const { low, high, log, whole } = spec;
  const place = (v) => log ? Math.log(v / low) / Math.log(high / low) * 1000 : v;
  const value = (p) => {
    const raw = log ? low * (high / low) ** (p / 1000) : Number(p);
    return whole ? Math.round(raw) : Number(raw.toPrecision(3));
  };
  const range = log ? { min: 0, max: 1000, step: 5 } : { min: low, max: high, step: whole ? 1 : (high - low) / 200 };
  const mark = make("datalist", {}, make("option", { value: place(spec.start) }));    // where it stood at first
  mark.id = `fedlab-${Math.random().toString(36).slice(2)}`;
  const slider = make("input", { type: "range", name: spec.name, ...range, list: mark.id });
  const number = make("input", { type: "number", name: spec.name, min: low, max: high, step: whole ? 1 : "any",
    "aria-label": `${spec.label}, as a number` });
  slider.addEventListener("input", () => set(value(slider.value)));
  slider.addEventListener("keydown", (event) => {          // a log slider passes over no whole number
    const way = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 }[event.key];
    if (!whole || !log || !way) return;
    const now = value(slider.value), next = Math.max(value(Number(slider.value) + 5 * way), low);
    if (next === now) { event.preventDefault(); set(Math.min(Math.max(now + way, low), high)); }
  });
  let last = spec.start;
  number.addEventListener("change", () => { if (number.value !== "") set(Number(number.value)); });
  number.addEventListener("blur", () => { number.value = last; });         // not what was refused, nor nothing
  const show = (now) => {
    last = now;
    slider.value = place(now);
    slider.setAttribute("aria-valuetext", `${format(now)} ${spec.unit}`);
    if (document.activeElement !== number) number.value = now;
  };
  return { fields: [slider, number, mark], show };
}

/** @param {Knob} spec @param {(value: string) => void} set */
function choiceField(spec, set) {
  const field = select(spec.choices, { name: spec.name });
  field.addEventListener("change", () => set(field.value));
  return { fields: [field], show: (now) => { field.value = now; } };
}

/** Any text, with what is known as suggestions. @param {Knob} spec @param {(value: string) => void} set */
function textField(spec, set) {
  const known = make("datalist", {}, ...spec.choices.map((o) => make("option", { value: o })));
  known.id = `fedlab-${Math.random().toString(36).slice(2)}`;
  const field = make("input", { type: "text", name: spec.name, ...(spec.choices.length ? { list: known.id } : {}) });
  field.addEventListener("change", () => set(field.value));
  return { fields: spec.choices.length ? [field, known] : [field],
    show: (now) => { if (document.activeElement !== field) field.value = now; } };
}

/** Names joined by ' + ', written or added one after another. @param {Knob} spec @param {(value: string) => void} set */
function severalField(spec, set) {
  const field = make("input", { type: "text", name: spec.name });
  const more = select(["add", "none", ...spec.choices], { "aria-label": `add to ${spec.label}` });
  field.addEventListener("change", () => set(field.value));
  more.addEventListener("change", () => {
    set(more.value === "none" || field.value === "none" ? more.value : `${field.value} + ${more.value}`);
    more.selectedIndex = 0;
  });
  return { fields: [field, more], show: (now) => { if (document.activeElement !== field) field.value = now; } };
}

/** The preset that was chosen last, and what was turned since. @param {Model} model */
function presetRow(model) {
  const { presets, knobs } = model.get("spec"), choice = select(["choose one", ...presets]);
  const since = make("span", { class: "turned-since" });
  choice.addEventListener("change", () => { if (choice.selectedIndex) tell(model, "preset", choice.value); });
  const labels = Object.fromEntries(knobs.map(({ name, label }) => [name, label]));
  const draw = () => {
    const { name, turned } = model.get("preset");
    choice.value = name || "choose one";
    since.textContent = turned.length ? `turned since: ${turned.map((knob) => labels[knob] ?? knob).join(", ")}` : "";
  };
  return { node: make("div", presets.length ? { class: "row" } : { hidden: "" }, labelled("preset", choice), since), draw };
}

/** @param {Model} model */
function settingsPanel(model) {
  const area = make("textarea", { rows: 10, spellcheck: "false", "aria-label": "all settings as JSON" });
  let edited = false;
  area.addEventListener("input", () => { edited = true; });
  const apply = button("Apply", () => { edited = false; tell(model, "settings", area.value); });
  const copy = button("Copy", () => navigator.clipboard?.writeText(area.value));
  const node = make("details", { class: "settings" }, make("summary", {}, "Settings as text"), area,
    make("div", { class: "row" }, apply, copy));
  const draw = () => { if (!edited) area.value = model.get("text"); };
  return { node, draw };
}
