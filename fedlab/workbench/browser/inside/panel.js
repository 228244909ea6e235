// @ts-check
// The view into the round: whom to follow, liars to be added, the pictures and the cards.

/** A liar to be dragged among the clients, or added by a press. @param {Model} model @param {HTMLElement} among */
function liarToken(model, among) {
  const spec = model.get("spec").knobs.find((knob) => knob.name === "liars");
  const turn = (way) => {
    const { count } = model.get("stays").people ?? { count: 20 }, share = Math.max(1 / count, 0.02), now = model.get("values").liars;
    model.set("values", { ...model.get("values"), liars: Number(Math.min(Math.max(now + way * share, spec.low), spec.high).toFixed(4)) });
    model.save_changes();
  };
  const more = button("one liar more", () => turn(1), { class: "token", draggable: "true" }), fewer = button("fewer", () => turn(-1), { "aria-label": "fewer liars" });
  const words = make("span", { class: "small" });
  more.addEventListener("dragstart", (event) => event.dataTransfer?.setData("text/plain", "liar"));
  among.addEventListener("dragover", (event) => event.preventDefault());
  among.addEventListener("drop", (event) => { event.preventDefault(); if (!more.disabled && event.dataTransfer?.getData("text/plain") === "liar") turn(1); });
  const node = make("span", { class: "field" }, more, fewer, words);
  const draw = () => {
    const why = spec ? model.get("unread").liars : "the knob liars is not shown";
    more.disabled = fewer.disabled = why !== undefined;
    words.textContent = why === undefined ? `${format(100 * model.get("values").liars)}% lie` : "liars: choose uplink poison, then Start";
    node.title = why ?? "drag it among the clients";
  };
  return { node, draw };
}

/** Back to a round that was, and another run from there. @param {Model} model @param {ReturnType<typeof crosshair>} cursor */
function timeRow(model, cursor) {
  const slider = make("input", { type: "range", min: 1, max: 1, step: 1 }), words = make("span", { class: "small" });
  const newest = button("newest", () => tell(model, "at", -1)), branch = button("Branch here", () => tell(model, "branch", place()));
  const place = () => model.get("inside").at < 0 ? model.get("picture").done : model.get("inside").at;
  let waiting = 0;
  slider.addEventListener("input", () => {
    cursor.move(Number(slider.value));
    words.textContent = `round ${slider.value}`;
    clearTimeout(waiting);                                // one look for a move, not one for each step of it
    waiting = setTimeout(() => tell(model, "at", Number(slider.value)), 150);
  });
  slider.addEventListener("blur", () => cursor.move(null));
  const node = make("span", { class: "field time" }, labelOf(slider, "look from round"), slider, words, newest, branch);
  branch.title = "the run goes on as it is; another one is trained from this round with the knobs as they stand";
  const draw = () => {
    const { done } = model.get("picture"), { at } = model.get("inside");
    slider.max = String(Math.max(done, 1));
    slider.disabled = branch.disabled = !done;
    newest.disabled = at < 0;
    if (document.activeElement !== slider || at < 0) slider.value = String(place());
    words.textContent = at < 0 ? `${done}, the newest` : `${at} of ${done}`;
  };
  return { node, draw };
}

/** @param {Model} model @param {ReturnType<typeof crosshair>} cursor */
function insidePanel(model, cursor) {
  const follow = (what, name) => tell(model, "follow", what, name);
  const user = make("input", { type: "text", size: 8, placeholder: "id" }), item = make("input", { type: "text", size: 18, placeholder: "title or id" });
  for (const [field, what] of [[user, "user"], [item, "item"]]) {
    const act = () => follow(what, field.value.trim());
    field.addEventListener("change", act);
    field.addEventListener("keydown", (event) => { if (event.key === "Enter") act(); });   // JupyterLab keeps it from being a change
  }
  const people = peoplePicture((id) => follow("user", id)), map = mapPicture((id) => follow("item", id)), steps = stepsPicture();
  const person = personCard(), film = itemCard(cursor), time = timeRow(model, cursor), liar = liarToken(model, people.node), why = make("p", { class: "notice" });
  const node = make("section", { class: "inside", "aria-label": "inside the round" },
    make("div", { class: "row" }, labelled("follow user", user), labelled("follow item", item), liar.node, time.node), why,
    make("div", { class: "pictures" }, people.node, map.node, steps.node));
  const cards = make("div", { class: "cards" }, person.node, film.node);
  const see = button("See the round", () => tell(model, "see", !model.get("inside").on));
  see.hidden = !model.get("spec").inside;
  const draw = () => {
    const { on, user: who, item: what } = model.get("inside"), seen = model.get("seen"), stays = model.get("stays");
    see.setAttribute("aria-pressed", String(on));
    node.hidden = cards.hidden = !on;
    if (!on) return;
    if (document.activeElement !== user) user.value = who;
    if (document.activeElement !== item) item.value = what;
    why.textContent = seen.why ?? "";
    people.draw(stays.people, model.get("dots"), seen.steps?.liars ?? [], who);
    map.draw(stays.map, seen.map, seen.item?.name, new Set(seen.person?.top ?? []));
    steps.draw(seen.steps, who, seen.person?.client);
    person.draw(seen.person, seen.map?.round);
    film.draw(seen.item);
    liar.draw();
    time.draw();
  };
  return { node, cards, see, draw };
}
