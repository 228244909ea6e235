// @ts-check
import assert from "node:assert/strict";
import { test } from "node:test";
import { decades, format, keyed, last, rounded, stepOf, ticks } from "../../../fedlab/workbench/browser/parts.js";
import { Fake, given, seen } from "./page.js";

test("numbers have three digits, whole ones all, and what is none says so", () => {
  assert.deepEqual([0.123456, 12.345, -0.00012345, 999.4, 1234.5, 100000, 0, 3].map(format),
    ["0.123", "12.3", "-0.000123", "999", "1235", "100000", "0", "3"]);
  assert.deepEqual([NaN, Infinity, undefined, null, "adam"].map(format),
    ["not a number", "not a number", "not a number", "not a number", "adam"]);
});

test("steps are 1, 2 or 5 of a power of ten", () => {
  assert.deepEqual([[0, 1], [0, 10], [0, 8], [0, 3], [1, 1.04]].map(([low, high]) => stepOf(low, high, 4)), [0.5, 5, 2, 1, 0.01]);
});

test("a range is widened to whole steps, without digits that come of halves and tenths", () => {
  assert.deepEqual(rounded(0.13, 0.41), [0.1, 0.5]);
  assert.deepEqual(rounded(0, 1), [0, 1]);
  assert.deepEqual(rounded(-3, 17), [-5, 20]);
  assert.deepEqual(rounded(0.1, 0.3), [0.1, 0.3]);
});

test("ticks are inside of the range, with both ends where these are steps", () => {
  assert.deepEqual(ticks(0, 1), [0, 0.5, 1]);
  assert.deepEqual(ticks(0.1, 0.3), [0.1, 0.15, 0.2, 0.25, 0.3]);
  assert.deepEqual(ticks(1, 60, 5), [20, 40, 60]);
  assert.deepEqual(ticks(-1.2, 1.2), [-1, 0, 1]);
});

test("a logarithmic scale has 1, 2 and 5 of each power of ten, and round steps where that gives hardly any", () => {
  assert.deepEqual(decades(0.01, 1), [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1]);
  assert.deepEqual(decades(3, 60), [5, 10, 20, 50]);
  assert.deepEqual(decades(0.61, 0.68), [0.62, 0.64, 0.66, 0.68]);
});

test("the last of some", () => assert.equal(last([3, 4, 5]), 5));

/** @param {string[]} gone */
const part = (gone) => (/** @type {string} */ item) => {
  const node = new Fake("li");
  return { node: given(node), draw: (/** @type {string} */ now) => { node.text = now; }, gone: () => { gone.push(item); } };
};

test("keyed keeps what it has, and moves and makes nothing else", () => {
  const list = new Fake("ul"), kept = new Map(), gone = /** @type {string[]} */ ([]), make = part(gone);
  keyed(given(list), kept, [["a", "A"], ["b", "B"]], make);
  const [first, second] = list.children;
  assert.equal(list.moved, 2);
  keyed(given(list), kept, [["a", "A again"], ["b", "B"]], make);
  assert.equal(list.moved, 2, "nothing moves while the order stays");
  assert.deepEqual(list.children.map((node) => node.text), ["A again", "B"]);
  keyed(given(list), kept, [["b", "B"], ["c", "C"], ["a", "A"]], make);
  assert.deepEqual(list.children.map((node) => node.text), ["B", "C", "A"]);
  assert.deepEqual([list.children[0], list.children[2]], [second, first]);
  assert.deepEqual(gone, []);
});

test("keyed drops what is not asked for any more, and tells it", () => {
  const list = new Fake("ul"), kept = new Map(), gone = /** @type {string[]} */ ([]), make = part(gone);
  keyed(given(list), kept, [["a", "A"], ["b", "B"], ["c", "C"]], make);
  keyed(given(list), kept, [["b", "B"]], make);
  assert.deepEqual([list.children.map((node) => node.text), [...kept.keys()], gone], [["B"], ["b"], ["A", "C"]]);
  const before = seen(kept.get("b").node);
  keyed(given(list), kept, [], make);
  keyed(given(list), kept, [["b", "B"]], make);
  assert.notEqual(list.children[0], before, "who was gone is made anew");
});
