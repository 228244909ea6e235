// @ts-check
import assert from "node:assert/strict";
import { test } from "node:test";
import { bestInWords, inOrder } from "../../../fedlab/workbench/browser/runs.js";

/** @import { Row } from "../../../fedlab/workbench/browser/parts.js" */

const BLANK = { state: "ended", error: "", open: true, pinned: false, colour: null, beside: {}, lead: "", verdict: "", differs: {} };
const row = (/** @type {string} */ name, /** @type {number | null} */ auc) =>
  /** @type {Row} */ ({ ...BLANK, id: name, name, rounds: 3, best: { auc: auc === null ? null : [auc, 2] } });
const ROWS = [row("b", 0.5), row("c", null), row("a", 0.7), row("d", 0.5)];
const auc = (/** @type {Row} */ { best }) => best.auc?.[0] ?? NaN;
const names = (/** @type {Row[]} */ rows) => rows.map(({ name }) => name).join("");

test("runs are sorted by number or by word, equals as they were, those without a value last", () => {
  assert.equal(names(inOrder(ROWS, auc, true)), "abdc");
  assert.equal(names(inOrder(ROWS, auc, false)), "bdac");
  assert.equal(names(inOrder(ROWS, ({ name }) => name, false)), "abcd");
  assert.equal(names(inOrder(ROWS, ({ name }) => name, true)), "dcba");
});

test("without a key runs stay as they came, and sorting leaves the rows alone", () => {
  assert.equal(names(inOrder(ROWS, undefined, true)), "bcad");
  inOrder(ROWS, auc, true);
  assert.equal(names(ROWS), "bcad");
});

test("the best value has its round, and by how much it differs", () => {
  assert.equal(bestInWords([0.5, 3], undefined), "0.5 (round 3)");
  assert.equal(bestInWords([0.5, 3], [0.25, 9]), "0.5 (round 3, +0.25)");
  assert.equal(bestInWords([0.25, 3], [0.5, 9]), "0.25 (round 3, -0.25)");
  assert.deepEqual([bestInWords([0.5, 3], [0.5, 9]), bestInWords(null, [0.5, 9])], ["0.5 (round 3)", ""]);
});
