// @ts-check
import assert from "node:assert/strict";
import { test } from "node:test";
import { added, brought, linked, slide } from "../../../fedlab/workbench/browser/knobs.js";
import { matches } from "../../../fedlab/workbench/browser/workbench.js";

test("a slider of numbers has each where it is", () => {
  const { place, value } = slide({ low: -2, high: 2, log: false, whole: false });
  assert.deepEqual([place(-2), place(1.5), value(1.5), value(0.12345)], [-2, 1.5, 1.5, 0.123]);
});

test("a logarithmic slider has the middle between both ends by factor", () => {
  const { place, value } = slide({ low: 0.01, high: 100, log: true, whole: false });
  assert.deepEqual([0.01, 1, 100].map((v) => Math.round(place(v))), [0, 500, 1000]);
  assert.deepEqual([0, 250, 500, 1000].map(value), [0.01, 0.1, 1, 100]);
});

test("a slider of whole numbers gives whole numbers, all within its range", () => {
  const { place, value } = slide({ low: 1, high: 671, log: true, whole: true });
  for (let p = 0; p <= 1000; p += 5) assert.ok(Number.isInteger(value(p)) && value(p) >= 1 && value(p) <= 671);
  assert.deepEqual([1, 2, 64, 671].map((v) => value(place(v))), [1, 2, 64, 671]);
});

test("a name is added behind the others, and none is alone", () => {
  assert.deepEqual([added("none", "clip"), added("clip", "top k"), added("clip + top k", "none")], ["clip", "clip + top k", "none"]);
});

test("a knob is found by all words of what is typed, in name, meaning and choices", () => {
  const spec = /** @type {const} */ ({ name: "local_lr", label: "local learning rate", meaning: "step size of clients", kind: "text",
    choices: ["Adam", "SGD"], unit: "", live: true, group: "", default: "", start: "" });
  const finds = (/** @type {string} */ typed) => matches({ ...spec, choices: [...spec.choices] }, typed);
  assert.deepEqual(["", "  ", "rate", "LR", "size  rate", " adam "].map(finds), [true, true, true, true, true, true]);
  assert.deepEqual(["server", "rate server", "undefined"].map(finds), [false, false, false]);
});

test("an address brings the line that it was made of, and nothing else", () => {
  const line = 'fedlab=2 uplink="clip + gaussian noise" noise=0.5', address = linked("http://127.0.0.1/?token=1#old", line);
  assert.ok(address.startsWith("http://127.0.0.1/?token=1#fedlab"));
  assert.equal(brought(new URL(address).hash), line);
  assert.deepEqual(["", "#a-heading", "#%E0%A4%A", "#x=fedlab=2"].map(brought), ["", "", "", ""]);
});
