// @ts-check
import assert from "node:assert/strict";
import { test } from "node:test";
import { placed, proposed, shade } from "../../../fedlab/workbench/browser/sweep.js";

const NUMBER = /** @type {const} */ ({ name: "x", label: "x", kind: "number", low: 0.01, high: 100, whole: false, log: true, unit: "",
  meaning: "", live: true, group: "", default: 1, start: 1 });
const TEXT = /** @type {const} */ ({ name: "x", label: "x", kind: "choice", unit: "", meaning: "", live: true, group: "", default: "", start: "" });

test("a share has the colour of its place between light and dark, and text that can be read on it", () => {
  assert.deepEqual(shade(0), { background: "rgb(247 251 255)", color: "#000" });
  assert.deepEqual(shade(1), { background: "rgb(8 48 107)", color: "#fff" });
  assert.deepEqual(shade(0.125), { background: "rgb(223 235 247)", color: "#000" });
  assert.deepEqual([shade(-3), shade(7)], [shade(0), shade(1)]);
});

test("on a grid values lie evenly, whatever their size", () => {
  const { count, marks, at } = placed({ values: [1, 100, 10000, 100] }, false, false);
  assert.deepEqual([count, marks, marks.map(at)], [3, [1, 100, 10000], [1 / 6, 0.5, 5 / 6]]);
});

test("in a random search numbers lie by size, or by factor, and choices evenly", () => {
  const plain = placed({ values: [0, 10, 5] }, true, false), bent = placed({ values: [1, 100, 10] }, true, true);
  for (const { at, half } of [{ at: plain.at, half: 5 }, { at: bent.at, half: 10 }]) assert.ok(Math.abs(at(half) - 0.5) < 1e-12);
  assert.deepEqual([plain.marks, plain.at(0) > 0, plain.at(10) < 1], [[0, 10], true, true]);
  assert.equal(placed({ values: [3, 3] }, true, true).at(3), 0.06 + 0.88 * 0.5);
  assert.deepEqual(placed({ values: ["adam", "sgd"] }, true, false).marks, ["adam", "sgd"]);
});

test("a sweep proposes four values between the ends, evenly or by factor, whole where these must be", () => {
  assert.equal(proposed({ ...NUMBER, low: 0, high: 1, log: false }), "0.2, 0.4, 0.6, 0.8");
  assert.equal(proposed(NUMBER), "0.06, 0.4, 3, 20");
  assert.equal(proposed({ ...NUMBER, low: 1, high: 2, log: false, whole: true }), "1, 2");
});

test("a sweep proposes all choices, and none before what can be joined", () => {
  assert.equal(proposed({ ...TEXT, choices: ["adam", "sgd"] }), "adam, sgd");
  assert.equal(proposed({ ...TEXT, kind: "several", choices: ["clip", "top k"] }), "none, clip, top k");
});
