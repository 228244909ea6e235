// @ts-check
import assert from "node:assert/strict";
import { test } from "node:test";
import { moved, uploadInWords } from "../../../fedlab/workbench/browser/inside/cards.js";
import { liars } from "../../../fedlab/workbench/browser/inside/panel.js";
import { between, clientOf, fitted, lookOf, mapPicture, peoplePicture, same, stepsPicture } from "../../../fedlab/workbench/browser/inside/pictures.js";
import { seen, open } from "./page.js";

/** @import { Dots, Named, People, Steps, Upload } from "../../../fedlab/workbench/browser/parts.js" */

open();

const PEOPLE = /** @type {People} */ ({ count: 3, x: [0, 0.5, 1], size: [0, 0.5, 1], ends: [["Fargo"], ["Aladdin"]], people: ["a", "b", "c"] });
const DOTS = /** @type {Dots} */ ({ round: 4, cohort: [1], loss: [0.5, 0.25, null], since: [2, 0, 4], met: 2 });
const STEPS = /** @type {Steps} */ ({ round: 5, cohort: [7, 9], of: 2, out: 0, arrows: [[1, 0.5], [1, -0.5]], mean: [1, 0], taken: null, rule: "weighted mean",
  agreement: 0.9, held: 1, long: 1, drawn: false, reach: 2, lines: [[[0, 0], [1, 1]]], liars: [] });

test("a value lies in another range as far as in its own, also in one without width", () => {
  assert.deepEqual([0, 5, 10].map((v) => between(v, 0, 10, 100, 0)), [100, 50, 0]);
  assert.equal(between(3, 3, 3, 10, 20), 10);
});

test("dots stand for clients, of many for some of them from the first to the last", () => {
  assert.deepEqual([0, 1, 2].map((i) => clientOf(i, { count: 3, x: [0, 0, 0] })), [0, 1, 2]);
  assert.deepEqual([0, 1, 2].map((i) => clientOf(i, { count: 101, x: [0, 0, 0] })), [0, 50, 100]);
});

test("who takes part stands out, who did fades, and who had no turn lies at the bottom", () => {
  const [before, now, never] = [0, 1, 2].map((i) => lookOf(DOTS, i, i === 1, [0, 1]));
  assert.deepEqual([before.kind, now.kind, never.kind], ["before", "now", "never"]);
  assert.ok(before.height < now.height && now.height < never.height);    // up is a lower number
  assert.deepEqual([before.fade, now.fade, lookOf({ ...DOTS, since: [20, 0, 4] }, 0, false, [0, 1]).fade], [0.8, 1, 0.3]);
});

test("places fill the picture, whatever they are", () => {
  const { scale, middle } = fitted([[1, 2], [3, 2]]);
  assert.deepEqual(middle, [2, 2]);
  assert.ok(scale * 2 <= 264 && Number.isFinite(scale));
  assert.ok(Number.isFinite(fitted([[1, 1]]).scale));
});

test("a name is new in a list, or has moved by so many places", () => {
  assert.deepEqual([moved(["a", "b", "c"], "c", 0), moved(["a", "b", "c"], "a", 2), moved(["a", "b"], "x", 0), moved(["a"], "a", 0), moved([], "a", 0)],
    [" ▲2", " ▼2", " new", "", ""]);
});

test("an upload is told in words: what it holds, what stages did, what can be read", () => {
  const sent = /** @type {Upload} */ ({ rows: 1200, numbers: 39600, learned: 2, sent: 0.5, stages: ["clip"], summed: [], hidden: false, read: [{ item: "Fargo", true: true }],
    auc: 0.5, alone: 1, right: 0.1 });
  const words = uploadInWords(sent, true);
  assert.match(words, /^Sends in the next round 39,600 numbers, for 1,200 items; their length is 0.5 after clip, of 2 learned\. Who sees this upload, the server/);
  assert.match(words, /AUC 0.5 \(1 before clip\): 10% of the guesses/);
  assert.match(uploadInWords({ ...sent, summed: ["secure sum"], hidden: true }, false), /would send .* Who saw this upload alone .* the sum of all alone \(secure sum\)/);
  assert.match(uploadInWords({ ...sent, summed: ["gaussian noise"] }, true), /gaussian noise on the sum of all does not protect her/);
});

test("one liar more is a client's share, or a fiftieth, within the slider", () => {
  const ends = { low: 0, high: 0.5 };
  assert.deepEqual([liars(0.1, 1, 10, ends), liars(0.1, -1, 671, ends), liars(0.5, 1, 10, ends), liars(0, -1, 10, ends)], [0.2, 0.08, 0.5, 0]);
});

test("a picture of people says what it shows, and a dot whom it stands for", () => {
  const { node, draw } = peoplePicture(() => {});
  draw(PEOPLE, DOTS, [2], "a");
  const [first, second, third] = seen(node).all("circle");
  assert.deepEqual([first, second, third].map((dot) => dot.attributes.class), ["dot before  followed", "dot now", "dot never liar"]);
  assert.equal(second.all("title")[0].text, "client 1, user b: loss 0.25 in round 4");
  assert.match(seen(node).textContent, /Clients, 1 in round 4.*2 of 3 had a turn; red: 1 liars/s);
});

test("losses that are all the same have an axis, too", () => {
  const { node, draw } = peoplePicture(() => {});
  draw(PEOPLE, { ...DOTS, loss: [0.5, 0.5, null] }, [], "");
  assert.deepEqual(seen(node).all("text").map(({ text }) => text), ["0", "1"]);
});

test("steps are arrows over lines of loss, and what stands in the way is said", () => {
  const { node, draw } = stepsPicture();
  draw(STEPS, 9);
  assert.deepEqual(seen(node).all("path").map((path) => path.attributes.class), [undefined, "step", "mine", "mean", "hit", "hit"]);
  assert.deepEqual(seen(node).all("title").map(({ text }) => text), ["client 7", "client 9"]);
  draw({ ...STEPS, taken: [0.5, 0], rule: "median", liars: [7] }, undefined);
  assert.deepEqual(seen(node).all("path").map((path) => path.attributes.class), [undefined, "liar", "step", "mean", "taken", "hit", "hit"]);
  draw({ why: "a round takes 9 s here" }, undefined);
  assert.deepEqual([seen(node).all("path").length, /a round takes 9 s/.test(seen(node).textContent)], [0, true]);
});

test("a model without vectors of items has no map", () => {
  const { node, draw } = mapPicture(() => {}), map = /** @type {Named} */ ({ items: ["Fargo"], ids: ["1"], categories: ["Crime"], colours: [0] });
  draw(map, {}, undefined, []);
  assert.equal(node.style.display, "none");
  draw(map, { round: 3, since: 2, xy: [[0, 1]] }, "Fargo", []);
  assert.equal(node.style.display, "");
  assert.match(seen(node).textContent, /Items after round 3/);
});

test("a picture is drawn anew where something of it is another object", () => {
  const steps = {};
  assert.deepEqual([same([steps, 1], [steps, 1]), same([steps, 1], [{}, 1]), same([], [steps])], [true, false, false]);
});
