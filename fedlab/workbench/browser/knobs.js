// @ts-check
// Knobs of any kind from their description, presets, and all settings as text.
import { button, format, labelOf, labelled, make, select, tell } from "./parts.js";

/** @import { Knob, Model, NumberKnob, TextKnob, Value } from "./parts.js" */
/** @typedef {{fields: [HTMLInputElement | HTMLSelectElement, ...HTMLElement[]], show: (now: Value) => void}} Fields
 *   the first is the one that a label is of */

/** @param {Model} model @param {Knob} spec */
export function knob(model, spec) {
  const set = (/** @type {Value} */ v) => { model.set("values", { ...model.get("values"), [spec.name]: v }); model.save_changes(); };
  const { fields, show } = spec.kind === "number" ? numberFields(spec, set)
    : { choice: choiceField, several: severalField, text: textField }[spec.kind](spec, set);
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
    for (const field of fields) if ("disabled" in field) field.disabled = why !== undefined;
  };
  return { node, draw };
}

/** Where on a slider a value is, and the value of a place; a logarithmic slider has places from 0 to 1000.
 * @param {Pick<NumberKnob, "low" | "high" | "log" | "whole">} spec */
export function slide({ low, high, log, whole }) {
  const place = (/** @type {number} */ v) => log ? Math.log(v / low) / Math.log(high / low) * 1000 : v;
  const value = (/** @type {number} */ p) => {
    const raw = log ? low * (high / low) ** (p / 1000) : p;
    return whole ? Math.round(raw) : Number(raw.toPrecision(3));
  };
  return { place, value };
}

/** @param {NumberKnob} spec @param {(value: number) => void} set @returns {Fields} */
function numberFields(spec, set) {
  const { low, high, log, whole } = spec, { place, value } = slide(spec);
  const range = log ? { min: 0, max: 1000, step: 5 } : { min: low, max: high, step: whole ? 1 : (high - low) / 200 };
  const mark = make("datalist", {}, make("option", { value: place(spec.start) }));    // where it stood at first
  mark.id = `fedlab-${Math.random().toString(36).slice(2)}`;
  const slider = make("input", { type: "range", name: spec.name, ...range, list: mark.id });
  const number = make("input", { type: "number", name: spec.name, min: low, max: high, step: whole ? 1 : "any",
    "aria-label": `${spec.label}, as a number` });
  slider.addEventListener("input", () => set(value(Number(slider.value))));
  slider.addEventListener("keydown", (event) => {          // a log slider passes over no whole number
    const way = Number(["ArrowRight", "ArrowUp"].includes(event.key)) - Number(["ArrowLeft", "ArrowDown"].includes(event.key));
    if (!whole || !log || !way) return;
    const now = value(Number(slider.value)), next = Math.max(value(Number(slider.value) + 5 * way), low);
    if (next === now) { event.preventDefault(); set(Math.min(Math.max(now + way, low), high)); }
  });
  let held = String(spec.start);
  number.addEventListener("change", () => { if (number.value !== "") set(Number(number.value)); });
  number.addEventListener("blur", () => { number.value = held; });         // not what was refused, nor nothing
  const show = (/** @type {Value} */ now) => {
    held = String(now);
    slider.value = String(place(Number(now)));
    slider.setAttribute("aria-valuetext", `${format(now)} ${spec.unit}`);
    if (document.activeElement !== number) number.value = held;
  };
  return { fields: [slider, number, mark], show };
}

/** @param {TextKnob} spec @param {(value: string) => void} set @returns {Fields} */
function choiceField(spec, set) {
  const field = select(spec.choices, { name: spec.name });
  field.addEventListener("change", () => set(field.value));
  return { fields: [field], show: (now) => { field.value = String(now); } };
}

/** Any text, with what is known as suggestions.
 * @param {TextKnob} spec @param {(value: string) => void} set @returns {Fields} */
function textField(spec, set) {
  const known = make("datalist", {}, ...spec.choices.map((o) => make("option", { value: o })));
  known.id = `fedlab-${Math.random().toString(36).slice(2)}`;
  const field = make("input", { type: "text", name: spec.name, ...(spec.choices.length ? { list: known.id } : {}) });
  field.addEventListener("change", () => set(field.value));
  return { fields: spec.choices.length ? [field, known] : [field],
    show: (now) => { if (document.activeElement !== field) field.value = String(now); } };
}

/** Names with one more. @param {string} before joined by ' + ', or 'none' @param {string} more a name, or 'none' */
export const added = (before, more) => more === "none" || before === "none" ? more : `${before} + ${more}`;

/** Names joined by ' + ', written or added one after another.
 * @param {TextKnob} spec @param {(value: string) => void} set @returns {Fields} */
function severalField(spec, set) {
  const field = make("input", { type: "text", name: spec.name });
  const more = select(["add", "none", ...spec.choices], { "aria-label": `add to ${spec.label}` });
  field.addEventListener("change", () => set(field.value));
  more.addEventListener("change", () => {
    set(added(field.value, more.value));
    more.selectedIndex = 0;
  });
  return { fields: [field, more], show: (now) => { if (document.activeElement !== field) field.value = String(now); } };
}

/** The preset that was chosen last, and what was turned since. @param {Model} model */
export function presetRow(model) {
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
export function settingsPanel(model) {
  const area = make("textarea", { rows: 10, spellcheck: "false", "aria-label": "all settings as JSON" });
  let edited = false;
  area.addEventListener("input", () => { edited = true; });
  const apply = button("Apply", () => { edited = false; tell(model, "settings", area.value); });
  const back = button("Put back", () => { edited = false; draw(); }, { title: "show the settings as the knobs stand" });
  const copy = button("Copy", () => navigator.clipboard?.writeText(area.value));
  const line = button("Copy as a line", () => navigator.clipboard?.writeText(model.get("line")));
  const link = button("Copy a link", () => navigator.clipboard?.writeText(linked(location.href, model.get("line"))),
    { title: "an address of this page that sets the knobs so, in an app or on a page that runs by itself" });
  const node = make("details", { class: "settings" }, make("summary", {}, "Settings as text"), area,
    make("div", { class: "row" }, apply, back, copy, line, link));
  const draw = () => { if (!edited) area.value = model.get("text"); };
  return { node, draw };
}

/** An address that sets the knobs. @param {string} address of the page @param {string} line the settings */
export const linked = (address, line) => `${address.split("#")[0]}#${encodeURIComponent(line)}`;

/** The settings that an address brings, or "". @param {string} hash */
export function brought(hash) {
  try {
    const text = decodeURIComponent(hash.slice(1));
    return text.startsWith("fedlab=") ? text : "";
  } catch { return ""; }                                    // an address may hold anything behind its #
}

/** Set the knobs as the address says, once: a reload leaves them as they are then. @param {Model} model */
export function takeAddress(model) {
  const text = brought(globalThis.location?.hash ?? "");
  if (!text) return;
  history.replaceState(null, "", location.pathname + location.search);
  tell(model, "settings", text);
}
