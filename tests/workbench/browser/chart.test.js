// @ts-check
import assert from "node:assert/strict";
import { test } from "node:test";
import { banded, crosshair, heading, heights, inWords, levelsOf, lineChart, measured, smoothed, spot, spreadChart, valueAt } from "../../../fedlab/workbench/browser/chart.js";
import { open, seen } from "./page.js";

/** @import { Picture, Point, Shown } from "../../../fedlab/workbench/browser/parts.js" */

open();

const LINE = /** @type {Shown} */ ({ id: "1", name: "run 1", colour: 8, marks: [[2, "cohort 4 → 8"]], alike: 0, seed: 0,
  series: { loss: [[1, 2, 3], [0.5, null, 0.25]], hits: [[1, 2, 3], [null, null, null]] }, beside: { popularity: { loss: 0.4 } } });

/** @param {Partial<Picture & {log: boolean, smooth: boolean, lacks: string[]}>} other */
const picture = (other = {}) => ({ name: "loss", lines: [LINE], spreads: {}, total: 10, done: 3, progress: 0.3, log: false, smooth: false, lacks: [], reference: null, ...other });

test("a scale has its ends where it should, also upside down and bent", () => {
  assert.deepEqual([0, 5, 10].map(spot([0, 10], 100, 200)), [100, 150, 200]);
  assert.deepEqual([0, 10].map(spot([0, 10], 200, 100)), [200, 100]);
  assert.deepEqual([1, 10, 100].map(spot([1, 100], 0, 2, Math.log10)), [0, 1, 2]);
});

test("a smoothed value is the mean of the last five, of fewer at the beginning", () => {
  const points = /** @type {Point[]} */ ([[1, 1], [2, 3], [3, 5], [4, 7], [5, 9], [6, 101]]);
  assert.deepEqual(smoothed(points), [[1, 1], [2, 2], [3, 3], [4, 4], [5, 5], [6, 25]]);
});

test("a line has the value of its round, or of the last one before", () => {
  const points = /** @type {Point[]} */ ([[1, 0.5], [3, 0.25]]);
  assert.deepEqual([0, 1, 2, 3, 9].map((round) => valueAt(points, round)?.[1]), [undefined, 0.5, 0.5, 0.25, 0.25]);
});

test("rounds without a value are left out, and so are runs that have none", () => {
  assert.deepEqual(measured([LINE], "loss").map(({ run, points }) => [run, points]), [["run 1", [[1, 0.5], [3, 0.25]]]]);
  assert.deepEqual([measured([LINE], "hits"), measured([LINE], "auc")], [[], []]);
});

test("what runs are measured beside is there once for each value", () => {
  const other = { ...LINE, beside: { popularity: { loss: 0.4 }, chance: { hits: 0.1, loss: 0.7 } } };
  assert.deepEqual(levelsOf([LINE, other], "loss"), [{ label: "popularity", v: 0.4 }, { label: "chance", v: 0.7 }]);
  assert.deepEqual(levelsOf([LINE], "hits"), []);
});

test("the axis of values takes in all of them, and is never flat", () => {
  assert.deepEqual(heights([0.13, 0.41], false), { bent: false, up: [0.1, 0.5] });
  assert.deepEqual(heights([], true), { bent: false, up: [0, 1] });
  assert.deepEqual(heights([0.25], false).up, [0.2, 0.3]);
});

test("an axis is logarithmic where all values have a logarithm", () => {
  assert.deepEqual(heights([0.01, 10], true), { bent: true, up: [0.01, 10] });
  assert.deepEqual(heights([0, 10], true), { bent: false, up: [0, 10] });
  const { up: [low, high] } = heights([1, 1], true);
  assert.ok(low < 1 && high > 1);
});

test("words say from where to where, and name runs where there are several", () => {
  const found = measured([LINE], "loss");
  assert.equal(inWords("loss", found, levelsOf([LINE], "loss")),
    "loss by round: from 0.5 in round 1 to 0.25 in round 3, lowest 0.25, highest 0.5; popularity 0.4");
  assert.match(inWords("loss", [...found, { ...found[0], run: "run 2" }], []), /: run 1, from .*; run 2, from /);
  assert.equal(inWords("loss", [], []), "loss by round: no rounds yet");
});

test("a chart draws each run through its points, in its colour", () => {
  const chart = lineChart("loss", crosshair()), node = seen(chart.node);
  chart.draw(picture());
  const [path] = node.all("path").filter(({ attributes }) => attributes.class === undefined);
  assert.match(path.attributes.d, /^M48\.0 [\d.]+L[\d.]+ [\d.]+$/);
  assert.equal(path.parent?.attributes.class, "line-1 dash-1");
  assert.equal(node.all("text")[0].textContent, "loss: 0.25");
  assert.ok(node.textContent.includes("round 2: cohort 4 → 8"));
  assert.ok(node.textContent.includes("popularity"));
});

test("what a number means lies behind its heading, and is heard with the chart", () => {
  const chart = lineChart("loss", crosshair(), "What is learned from."), node = seen(chart.node), [head] = node.all("text");
  chart.draw(picture());
  assert.deepEqual([head.all("tspan")[0].text, head.all("title")[0].text], ["loss: 0.25", "What is learned from."]);
  assert.match(node.attributes["aria-label"], /popularity 0.4. What is learned from.$/);
});

test("a series that this kind of run lacks takes no room, before its first round it does", () => {
  const chart = lineChart("auc", crosshair()), node = seen(chart.node);
  chart.draw(picture());
  assert.equal(node.style.display, "none");
  chart.draw(picture({ done: 0 }));
  assert.equal(node.style.display, "");
});

test("all charts follow one pointer, from the first to the last round that is known", () => {
  const cursor = crosshair(), one = lineChart("loss", cursor), other = lineChart("loss", cursor);
  one.draw(picture());
  other.draw(picture());
  const words = () => seen(other.node).all("tspan").filter(({ parent }) => parent?.attributes.class === "read").map((node) => node.text);
  seen(one.node).listeners.pointermove({ clientX: 359 });
  assert.deepEqual([cursor.at(), words()], [3, ["round 3", "0.25"]]);
  seen(one.node).listeners.pointermove({ clientX: 0 });
  assert.deepEqual([cursor.at(), words()], [1, ["round 1", "0.5"]]);
  const press = (/** @type {string} */ key) => seen(one.node).listeners.keydown({ key, preventDefault: () => {} });
  press("ArrowRight");
  assert.deepEqual([cursor.at(), words()], [2, ["round 2", "cohort 4 → 8", "0.5"]]);
  press("ArrowLeft"); press("ArrowLeft");
  assert.equal(cursor.at(), 1);
  press("Escape");
  assert.equal(cursor.at(), null);
  press("ArrowLeft");
  assert.equal(cursor.at(), 3, "keys begin at the last round");
});

/** A run of a seed. @param {string} id @param {number} seed @param {number[]} values @param {number} [alike] */
const seeded = (id, seed, values, alike = 0) => /** @type {Shown} */ ({ id, name: `run ${id}`, colour: Number(id), marks: [], alike, seed,
  series: { loss: [values.map((_, i) => i + 1), values] }, beside: { popularity: { loss: Number(id) / 10 } } });

test("runs that differ in their seed alone are a mean and a band, as far as all of them are", () => {
  const [one, alone] = banded([seeded("1", 0, [1, 5]), seeded("2", 1, [3, 7, 9]), seeded("3", 0, [2, 2], 1)]);
  assert.deepEqual([one.series.loss, one.band?.loss], [[[1, 2], [2, 6]], [[1, 5], [3, 7]]]);
  assert.deepEqual([one.id, one.colour, one.name], ["1", 1, "mean of 2 seeds, band from lowest to highest"]);
  assert.ok(Math.abs(one.beside.popularity.loss - 0.15) < 1e-12);
  assert.equal(alone.name, "run 3");
});

test("a second run of one seed stays by itself, and so does what is alone", () => {
  const lines = [seeded("1", 0, [1]), seeded("2", 0, [3]), seeded("3", 1, [5], 1)];
  assert.deepEqual(banded(lines), lines);
  assert.deepEqual(banded([]), []);
});

test("of runs that are not measured yet there is no band", () => {
  const [one] = banded([seeded("1", 0, [1, 5]), seeded("2", 1, [])]);
  assert.deepEqual([one.series.loss, measured([one], "loss")], [[[], []], []]);
});

test("a band is drawn from the highest to the lowest, and taken into the axis", () => {
  const chart = lineChart("loss", crosshair()), node = seen(chart.node);
  chart.draw(picture({ lines: banded([seeded("1", 0, [1, 5]), seeded("2", 1, [3, 7])]) }));
  const areas = () => node.all("path").filter(({ attributes }) => attributes.class === "band").map(({ attributes }) => attributes.d);
  assert.match(areas().join(), /^M[^L]*L[^L]*L[^L]*L[^LZ]*Z$/);
  assert.ok(node.all("text").some(({ text }) => Number(text) >= 7));
  chart.draw(picture({ lines: [seeded("1", 0, [1, 5])] }));
  assert.deepEqual(areas(), []);
});

test("a heading says the difference to the reference, at the round that is pointed at or the last", () => {
  const found = measured([seeded("1", 0, [1, 5, 8])], "loss"), [other] = measured([seeded("2", 0, [2, 4.5])], "loss");
  assert.equal(heading("loss", found, undefined, null), "loss: 8");
  assert.equal(heading("loss", found, other, 2), "loss: 5, +0.5 to run 2");
  assert.equal(heading("loss", found, other, 1), "loss: 1, −1 to run 2");
  assert.equal(heading("loss", found, other, null), "loss: 8", "it has not come so far");
  assert.equal(heading("loss", [], other, null), "loss");
});

test("a reference is a line behind the others, and the heading follows the pointer", () => {
  const cursor = crosshair(), chart = lineChart("loss", cursor), node = seen(chart.node);
  chart.draw(picture({ reference: seeded("2", 0, [0.25, 0.25, 0.5]) }));
  const behind = () => node.all("path").filter(({ attributes }) => attributes.class === "reference").map(({ attributes }) => attributes.d);
  assert.match(behind().join(), /^M[\d.]+ [\d.]+L[\d.]+ [\d.]+L/);
  const head = () => node.all("text")[0].textContent;
  assert.equal(head(), "loss: 0.25, −0.25 to run 2");
  cursor.move(1);
  assert.equal(head(), "loss: 0.5, +0.25 to run 2");
  chart.draw(picture());
  assert.deepEqual([head(), behind()], ["loss: 0.25", []]);
});

test("a chart that is gone is not drawn any more", () => {
  const cursor = crosshair(), chart = lineChart("loss", cursor);
  assert.equal(cursor.charts.size, 2);
  chart.gone?.();
  assert.equal(cursor.charts.size, 0);
});

test("a spread has a bar for each count, and the bars that it had are flat when there are fewer", () => {
  const chart = spreadChart("loss by client", "mean local loss"), node = seen(chart.node);
  const spread = { low: 0, high: 3, counts: [1, 4, 2], median: 1.5, clients: 7, whole: false };
  chart.draw(picture({ spreads: { "loss by client": spread } }));
  const heightsOf = () => node.all("rect").map((bar) => Number(bar.attributes.height));
  assert.deepEqual(heightsOf().map((height) => height / heightsOf()[0]), [1, 4, 2]);
  assert.equal(node.attributes["aria-label"], "mean local loss of 7 clients: median 1.5, from 0 to 3");
  chart.draw(picture({ spreads: { "loss by client": { ...spread, counts: [4] } } }));
  assert.deepEqual(heightsOf().slice(1), [0, 0]);
  chart.draw(picture());
  assert.equal(node.attributes["aria-label"], "mean local loss: no rounds yet");
});
