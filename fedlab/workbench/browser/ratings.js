// @ts-check
// A learner's part of a class: stars for films, the way into the class, its rounds, and two lists. See ratings.py.
import { button, labelled, make, tell } from "./parts.js";

/** @import { Model } from "./parts.js" */
/** The traits of ratings.py.
 * @typedef {{films: [string, string][], stars: Record<string, number>, line: string, name: string,
 *   state: string, message: string, notice: string, cost: string,
 *   lists: {before: string[], after: string[]} | {before?: undefined, after?: undefined}}} Rated */

const STARS = 5;

/** A film with its stars. Each group of radio buttons is one stop for Tab, and arrow keys choose.
 * @param {Model<Rated>} model @param {string} id @param {string} title */
function filmRow(model, id, title) {
  const group = `fedlab-${Math.random().toString(36).slice(2)}`;
  const boxes = [...Array(STARS + 1).keys()].map((stars) => {
    const said = stars === 0 ? "not rated" : stars === 1 ? "1 star" : `${stars} stars`;
    const box = make("input", { type: "radio", name: group, value: stars, "aria-label": said });
    box.addEventListener("change", () => tell(model, "rate", id, stars));
    return { box, node: make("label", { title: said }, box, make("span", { "aria-hidden": "true" }, stars ? "★" : "skip")) };
  });
  const node = make("div", { class: "film", role: "radiogroup", "aria-label": title, "data-film": id },
    make("span", { class: "title" }, title), make("span", { class: "stars" }, ...boxes.map((b) => b.node)));
  const draw = () => {
    const given = model.get("stars")[id] ?? 0;
    boxes.forEach(({ box, node: label }, stars) => {
      box.checked = stars === given;
      label.classList.toggle("on", stars > 0 && stars <= given);
    });
  };
  return { node, draw };
}

/** A list of titles; those that the other one lacks are marked.
 * @param {string} heading @param {string[]} titles @param {string[]} other @param {string} mark */
function titleList(heading, titles, other, mark) {
  return make("div", {}, make("h4", {}, heading), make("ol", {}, ...titles.map((title) =>
    make("li", other.includes(title) ? {} : { class: "fresh" }, other.includes(title) ? title : `${title} (${mark})`))));
}

/** @param {{model: Model<Rated>, el: HTMLElement}} place */
function render({ model, el }) {
  const films = model.get("films").map(([id, title]) => filmRow(model, id, title));
  const line = make("input", { type: "text", spellcheck: "false", autocomplete: "off", placeholder: "CODE@host:port#fingerprint" });
  const name = make("input", { type: "text", maxlength: 80, autocomplete: "off" });
  const join = button("Join", () => tell(model, "join", line.value.trim(), name.value.trim()));
  const leave = button("Leave", () => tell(model, "leave"));
  const status = make("span", { class: "status", role: "status" }), notice = make("div", { class: "notice", role: "alert" });
  const lists = make("div", { class: "lists" }), cost = make("p", { class: "cost" });
  const root = make("section", { class: "fedlab-ratings", "aria-label": "Rate films and join the class" },
    make("p", {}, "Give stars to the films that you know; skip the others. Stars stay in this notebook, and count as they are when you join."),
    make("div", { class: "films" }, ...films.map((f) => f.node)),
    make("div", { class: "controls" }, labelled("The teacher's line", line), labelled("Your name", name), join, leave),
    notice, make("p", {}, status), lists, cost);
  el.append(root);

  const showStars = () => films.forEach((f) => f.draw());
  const showLine = () => { line.value = model.get("line"); name.value = model.get("name"); };
  const showState = () => {
    const state = model.get("state"), out = ["rating", "over", "gone"].includes(state);
    root.dataset.state = state;
    [join.disabled, leave.disabled] = [!out, ["rating", "gone"].includes(state)];
    line.readOnly = name.readOnly = !out;
    status.textContent = model.get("message");
    notice.textContent = model.get("notice");
    cost.textContent = model.get("cost");
  };
  const showLists = () => {
    const { before, after } = model.get("lists");
    lists.replaceChildren(...(before ? [titleList("Before the class", before, after, "gone"), titleList("After it", after, before, "new")] : []));
  };
  const watch = { stars: showStars, line: showLine, name: showLine, state: showState, message: showState, notice: showState,
    cost: showState, lists: showLists };
  for (const [trait, call] of Object.entries(watch)) model.on(`change:${trait}`, call);
  showStars(); showLine(); showState(); showLists();
  return () => { for (const [trait, call] of Object.entries(watch)) model.off(`change:${trait}`, call); };
}

export default { render };
