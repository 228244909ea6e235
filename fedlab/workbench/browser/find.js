// @ts-check
// The search for the best model: what is asked for, and what came of it.
import { button, labelled, make, select, tell } from "./parts.js";

/** @import { Model } from "./parts.js" */

/** @param {Model} model */
export function findPanel(model) {
  const objective = select(model.get("spec").finds), budget = make("input", { type: "text", value: "24", size: 8 });
  const begin = button("Find the best", () => tell(model, "find", objective.value, budget.value));
  const end = button("End the search", () => tell(model, "stop"), { "aria-label": "End the search; its best so far is kept" });
  const report = make("pre", { class: "report", role: "region", "aria-label": "report on the best model", tabindex: 0 });
  const node = make("details", { class: "find" }, make("summary", {}, "Find the best model for these data"),
    make("p", { class: "words" }, "Federated methods and pooled baselines are tuned on validation; the best federated one is measured on "
      + "the test, once, and trained on everything. Of the knobs it takes data, seed and uplink, and chooses the others."),
    make("div", { class: "row" }, labelled("ranking that chooses", objective), labelled("budget: trials, or a time such as 10 min", budget),
      begin, end), report);
  node.hidden = !model.get("spec").finds.length;
  const draw = () => {
    const text = model.get("report");
    report.hidden = !text;
    report.textContent = text;
  };
  return { node, draw };
}
