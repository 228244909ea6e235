// @ts-check
// The view into the round: whom to follow, liars to be added, the round to look from, the pictures and the cards.

import { button, format, labelOf, labelled, make, tell } from "../parts.js";
import { itemCard, personCard } from "./cards.js";
import { mapPicture, peoplePicture, stepsPicture } from "./pictures.js";

/** @import { Model, NumberKnob } from "../parts.js" */
/** @import { Cursor } from "../chart.js" */

/** The share of liars after one more or less: a client's own share, but no less than a fiftieth.
 * @param {number} now @param {number} way 1 or -1 @param {number} count of clients @param {{low: number, high: number}} ends */
export function liars(now, way, count, { low, high }) {
  return Number(Math.min(Math.max(now + way * Math.max(1 / count, 0.02), low), high).toFixed(4));
}

/** A liar to be dragged among the clients, or added by a press. @param {Model} model @param {HTMLElement} among */
function liarToken(model, among) {
  const spec = /** @type {NumberKnob | undefined} */ (model.get("spec").knobs.find((knob) => knob.name === "liars"));
  const turn = (/** @type {number} */ way) => {
    const values = model.get("values"), count = model.get("stays").people?.count ?? 20;
    if (!spec) return;
    model.set("values", { ...values, liars: liars(Number(values.liars), way, count, spec) });
    model.save_changes();
  };
  const more = button("more liars", () => turn(1), { class: "token", draggable: "true" }), fewer = button("fewer", () => turn(-1), { "aria-label": "fewer liars" });
  const words = make("span", { class: "small" }), node = make("span", { class: "field" }, more, fewer, words);
  more.addEventListener("dragstart", (event) => event.dataTransfer?.setData("text/plain", "liar"));
  among.addEventListener("dragover", (event) => event.preventDefault());
  among.addEventListener("drop", (event) => {
    event.preventDefault();
    if (!more.disabled && event.dataTransfer?.getData("text/plain") === "liar") turn(1);
  });
  const draw = () => {
    const why = spec ? model.get("unread").liars : "the knob liars is not shown";
    more.disabled = fewer.disabled = why !== undefined;
    words.textContent = why === undefined ? `${format(100 * Number(model.get("values").liars))}% lie` : "";
    node.title = why === undefined ? "drag it among the clients" : `${why}: choose poison as uplink, then Start`;
  };
  return { node, draw };
}

/** Back to a round that was, and another run from there. @param {Model} model @param {Cursor} cursor */
function timeRow(model, cursor) {
  const slider = make("input", { type: "range", min: 1, max: 1, step: 1 }), words = make("span", { class: "small" });
  const place = () => model.get("inside").at < 0 ? model.get("picture").done : model.get("inside").at;
  const newest = button("newest", () => tell(model, "at", -1)), branch = button("Branch here", () => tell(model, "branch", place()));
  let waiting = /** @type {ReturnType<typeof setTimeout> | undefined} */ (undefined);
  slider.addEventListener("input", () => {
    const round = Number(slider.value);
    cursor.move(round);
    words.textContent = `round ${round}`;
    clearTimeout(waiting);                                  // one look for a move, not one for each step of it
    waiting = setTimeout(() => { waiting = undefined; tell(model, "at", round); }, 150);
  });
  slider.addEventListener("blur", () => cursor.move(null));
  branch.title = "another run is trained from this round on, with the knobs as they stand; one that is under way is stopped";
  const node = make("span", { class: "field time" }, labelOf(slider, "look from round"), slider, words, newest, ...(model.get("spec").recorded ? [] : [branch]));
  const draw = () => {
    const { done } = model.get("picture"), { at } = model.get("inside");
    slider.max = String(Math.max(done, 1));
    slider.disabled = branch.disabled = !done;
    newest.disabled = at < 0;
    if (waiting !== undefined) return;                      // what is being moved stays where it is
    if (document.activeElement !== slider || at < 0) slider.value = String(place());
    words.textContent = at < 0 ? `${done}, the newest` : `${at} of ${done}`;
  };
  return { node, draw };
}

/** A field for a name, that acts on Enter as well: JupyterLab keeps that from being a change.
 * @param {Record<string, string | number>} attributes @param {(name: string) => void} act */
function nameField(attributes, act) {
  const field = make("input", { type: "text", ...attributes }), done = () => act(field.value.trim());
  field.addEventListener("change", done);
  field.addEventListener("keydown", (event) => { if (event.key === "Enter") done(); });
  return field;
}

/** @param {Model} model @param {Cursor} cursor */
export function insidePanel(model, cursor) {
  const follow = (/** @type {string} */ what) => (/** @type {string} */ name) => tell(model, "follow", what, name);
  const user = nameField({ size: 8, placeholder: "id" }, follow("user")), item = nameField({ size: 18, placeholder: "title or id" }, follow("item"));
  const people = peoplePicture(follow("user")), map = mapPicture(follow("item")), steps = stepsPicture();
  const person = personCard(), film = itemCard(cursor), time = timeRow(model, cursor), liar = liarToken(model, people.node), why = make("p", { class: "notice" }), busy = make("p", { class: "small", role: "status" });
  const pictures = make("div", { class: "pictures" }, people.node, map.node, steps.node), { recorded } = model.get("spec");
  const node = make("section", { class: "inside", "aria-label": "inside the round" },
    make("div", { class: "row" }, ...(recorded ? [] : [labelled("follow user", user), labelled("item", item), liar.node]), time.node), why, busy,
    pictures, make("div", { class: "cards" }, person.node, film.node));
  const see = button("See the round", () => tell(model, "see", !model.get("inside").on));
  see.hidden = !model.get("spec").inside;
  const draw = () => {
    const { on, user: who, item: what } = model.get("inside"), seen = model.get("seen"), stays = model.get("stays");
    see.setAttribute("aria-pressed", String(on));
    node.hidden = !on;
    if (!on) return;
    if (document.activeElement !== user) user.value = who;
    if (document.activeElement !== item) item.value = what;
    why.textContent = seen.why ?? "";
    const looking = model.get("looking");
    pictures.classList.toggle("looking", looking);
    busy.textContent = looking ? "Looking: the pictures are those of the look before." : "";
    people.draw(stays.people, model.get("dots"), seen.steps?.arrows ? seen.steps.liars : [], who);
    map.draw(stays.map, seen.map, seen.item?.name, seen.person?.user ? seen.person.top : []);
    steps.draw(seen.steps, seen.person?.user ? seen.person.client : undefined);
    person.draw(seen.person, seen.map?.xy ? seen.map.round : undefined);
    film.draw(seen.item);
    liar.draw();
    time.draw();
  };
  return { node, see, draw };
}
