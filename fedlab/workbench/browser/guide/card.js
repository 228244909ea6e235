// @ts-check
// The card beside a preset: what to look at, a question and, once it is asked for, what happens, and what to turn next.
import { make } from "../parts.js";

/** @import { Card, Model } from "../parts.js" */

/** @param {Card} card */
const contents = ({ look, ask, answer, turn }) => [make("p", {}, look), make("p", { class: "ask" }, ask),
  make("details", {}, make("summary", {}, "What happens"), make("p", {}, answer), make("p", {}, turn))];

/** The card of the preset that was chosen last. @param {Model} model */
export function presetCard(model) {
  const { cards } = model.get("spec"), node = make("section", { class: "guide", "aria-label": "what to look at" });
  let drawn = "";
  const draw = () => {
    const { name } = model.get("preset");
    node.hidden = !(name in cards);
    if (node.hidden || name === drawn) return;              // an answer that is open stays open
    drawn = name;
    node.replaceChildren(...contents(cards[name]));
  };
  return { node, draw };
}
