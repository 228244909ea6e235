// @ts-check
// Challenges: which one is on, what it asks, and whether it is met.
import { button, labelled, make, select, tell } from "../parts.js";

/** @import { Model, Tried } from "../parts.js" */

/** A row to choose a challenge, and what is said of the one that is on. @param {Model} model */
export function challengeRow(model) {
  const { challenges } = model.get("spec"), choice = select(["none", ...challenges]);
  choice.addEventListener("change", () => tell(model, "challenge", choice.selectedIndex ? choice.value : ""));
  const ask = make("p"), words = make("p", { class: "ask", role: "status" });
  const client = make("input", { type: "number", min: 0, step: 1, placeholder: "number" });
  const accuse = () => { if (client.value !== "") tell(model, "accuse", Math.round(Number(client.value))); };
  client.addEventListener("keydown", (event) => { if (event.key === "Enter") accuse(); });
  const names = make("div", { class: "row" }, labelled("client", client), button("It lies", accuse));
  const about = make("section", { class: "guide", "aria-label": "the challenge" }, ask, names, words);
  const node = make("div", challenges.length ? {} : { hidden: "" }, make("div", { class: "row" }, labelled("challenge", choice)), about);
  const draw = () => {
    const now = model.get("challenge");
    about.hidden = now.name === undefined;
    choice.value = now.name ?? "none";
    if (now.name === undefined) return;
    const tried = /** @type {Tried} */ (now);
    ask.textContent = tried.ask;
    names.hidden = !tried.liar || tried.met;
    words.textContent = tried.words;
    about.classList.toggle("met", tried.met);
  };
  return { node, draw };
}
