// @ts-check
import assert from "node:assert/strict";
import { test } from "node:test";
import { recorded, until } from "../../../fedlab/workbench/browser/inside/recorded.js";

/** @import { Dots, Knob, Picture, Spec } from "../../../fedlab/workbench/browser/parts.js" */
/** @import { Kept, Look } from "../../../fedlab/workbench/browser/inside/recorded.js" */

const PICTURE = /** @type {Picture} */ ({ lines: [{ id: "1", name: "run 1", colour: 0, alike: 0, seed: 0, marks: [[2, "cohort 4 → 8"], [4, "cohort 8 → 4"]], beside: {},
  series: { loss: [[1, 2, 3, 4], [4, 3, 2, 1]] } }], spreads: {}, total: 4, done: 4, progress: 1, reference: null });
const SPEC = /** @type {Spec} */ ({ knobs: [/** @type {Knob} */ ({ name: "cohort" })], inside: true, sweeps: true, metrics: {}, presets: ["a"], finds: ["sampled"], exports: ["csv"],
  lines: ["loss"], spreads: { "loss by client": "mean local loss" }, meanings: {}, cards: {}, challenges: [] });
const LOOKS = [0, 2, 4].map((round) => /** @type {Look} */ ({ round, dots: /** @type {Dots} */ ({ round }), seen: { why: `look ${round}` } }));

function model() {
  const traits = /** @type {Kept} */ ({ spec: SPEC, values: { cohort: 4 }, lacks: [], charts: ["loss", "loss by client"], text: "{}", line: "", table: [],
    picture: PICTURE, preset: { name: "", turned: [] }, stays: {} });
  return recorded({ traits, looks: LOOKS });
}

test("until a round there are its points and marks, and no others", () => {
  const [line] = until(PICTURE, 2).lines;
  assert.deepEqual([line.series.loss, line.marks], [[[1, 2], [4, 3]], [[2, "cohort 4 → 8"]]]);
  assert.deepEqual(until(PICTURE, 0).lines[0].series.loss, [[], []]);
});

test("a recording begins at its end, with knobs that say why they do not turn", () => {
  const found = model();
  assert.deepEqual(found.get("seen"), { why: "look 4" });
  assert.deepEqual([found.get("charts"), found.get("unread"), found.get("spec").presets], [["loss"], { cohort: "recorded" }, []]);
});

test("it shows any round, with the last look until then, and tells who listens", () => {
  const found = model(), heard = /** @type {string[]} */ ([]), hear = () => { heard.push(found.get("message")); };
  found.on("change:picture", hear);
  found.send({ command: "at", given: [3] });
  assert.deepEqual([found.get("picture").lines[0].series.loss[0], found.get("seen"), found.get("inside").at], [[1, 2, 3], { why: "look 2" }, 3]);
  found.send({ command: "step", given: [] });
  assert.deepEqual([found.get("seen"), found.get("inside").at], [{ why: "look 4" }, -1]);
  found.off("change:picture", hear);
  found.send({ command: "reset", given: [] });
  assert.equal(heard.length, 2);
  assert.deepEqual(found.get("picture").lines[0].series.loss, [[], []]);
});

test("it plays, from the beginning once it has ended, and pauses", () => {
  const found = model();
  found.send({ command: "start", given: [] });
  assert.equal(found.get("state"), "running");
  found.send({ command: "pause", given: [] });
  assert.equal(found.get("state"), "paused");
  found.send({ command: "at", given: [4] });
  found.send({ command: "start", given: [] });
  assert.ok(found.get("picture").progress < 0.1);            // from the beginning again
  found.send({ command: "stop", given: [] });
});

test("what a recording cannot do is said", () => {
  const found = model();
  found.send({ command: "branch", given: [2] });
  assert.match(found.get("notice"), /this is a recording/);
  found.send({ command: "step", given: [] });
  assert.equal(found.get("notice"), "");
});
