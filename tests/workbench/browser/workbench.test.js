// @ts-check
import assert from "node:assert/strict";
import { test } from "node:test";
import workbench from "../../../fedlab/workbench/browser/workbench.js";
import { Fake, given, open } from "./page.js";

/** @import { Knob, Model, Traits } from "../../../fedlab/workbench/browser/parts.js" */

open();

const COHORT = /** @type {Knob} */ ({ name: "cohort", label: "cohort", kind: "number", low: 1, high: 671, whole: true, log: true, unit: "clients",
  meaning: "clients of a round", live: true, group: "", default: 64, start: 8 });

/** A page with a workbench, and what it does when Python sets traits. @param {Knob[]} knobs */
function drawn(knobs) {
  const traits = /** @type {Traits} */ ({ spec: { knobs, inside: false, sweeps: true, metrics: { loss: "min" }, presets: [], finds: [], exports: ["csv"], lines: ["loss"],
    spreads: { "loss by client": "mean local loss" }, meanings: { loss: "What is learned from." },
    cards: { first: { look: "Look at the loss.", ask: "Does it fall?", answer: "Yes.", turn: "Turn the cohort." } }, challenges: ["find the liar"] }, values: { cohort: 8 }, used: {}, unread: {}, charts: ["loss", "loss by client"],
  state: "ready", message: "Press Start.", notice: "", wrong: {}, news: "", saving: "", preset: { name: "", turned: [] }, text: "{}", line: "",
  picture: { lines: [], spreads: {}, total: 10, done: 0, progress: 0, reference: null }, table: [], report: "", heat: {},
  lacks: [], inside: { on: false, user: "", item: "", at: -1 }, challenge: {}, stays: {}, dots: {}, seen: {}, looking: false });
  const calls = /** @type {Map<string, (...given: any[]) => void>} */ (new Map()), sent = /** @type {object[]} */ ([]);
  const model = /** @type {Model} */ ({ get: (name) => traits[name], set: (name, value) => { traits[name] = value; },
    save_changes: () => {}, send: (message) => { sent.push(message); }, on: (event, call) => { calls.set(event, call); },
    off: (event) => { calls.delete(event); } });
  const page = new Fake("div"), away = workbench.render({ model, el: /** @type {HTMLElement} */ (given(page)) });
  const change = (/** @type {Partial<Traits>} */ to) => {
    Object.assign(traits, to);
    for (const name of Object.keys(to)) calls.get(`change:${name}`)?.();
  };
  return { page, change, calls, sent, away };
}

/** @param {Fake} page */
const charts = (page) => page.all("svg").map((node) => node.attributes["data-series"]);

test("a workbench has the charts that are chosen, in that order", () => {
  const { page, change } = drawn([COHORT]);
  assert.deepEqual(charts(page), ["loss", "loss by client"]);
  change({ charts: ["loss by client"] });
  assert.deepEqual(charts(page), ["loss by client"]);
  change({ charts: [] });
  assert.deepEqual(charts(page), []);
});

test("a workbench without knobs is drawn, and offers no sweep", () => {
  const { page } = drawn([]), [sweep] = page.all("details").filter(({ attributes }) => attributes.class === "sweep");
  assert.deepEqual([charts(page).length, sweep.hidden], [2, true]);
});

test("the preset that was chosen has its card, and its answer stays as it was while a knob is turned", () => {
  const { page, change } = drawn([COHORT]);
  const [card] = page.all("section").filter(({ attributes }) => attributes.class === "guide");
  assert.equal(card.hidden, true);
  change({ preset: { name: "first", turned: [] } });
  assert.deepEqual([card.hidden, card.textContent], [false, "Look at the loss.Does it fall?What happensYes.Turn the cohort."]);
  const [answer] = card.all("details");
  change({ preset: { name: "first", turned: ["cohort"] } });
  assert.equal(card.all("details")[0], answer);
  change({ preset: { name: "of one's own", turned: [] } });
  assert.equal(card.hidden, true);
});

test("a challenge says what it asks and how it stands, and takes the number of a client", () => {
  const { page, change, sent } = drawn([COHORT]);
  const [, about] = page.all("section").filter(({ attributes }) => attributes.class === "guide");
  assert.equal(about.hidden, true);
  const tried = { name: "find the liar", ask: "Name one.", liar: true, met: false, words: "" };
  change({ challenge: tried });
  const [row] = about.all("div"), [field] = row.all("input"), [press] = row.all("button");
  assert.deepEqual([about.hidden, row.hidden, about.all("p")[0].textContent], [false, false, "Name one."]);
  Object.assign(field, { value: "" });
  press.listeners.click({});
  assert.deepEqual(sent, [], "no number, no client");
  Object.assign(field, { value: "7" });
  press.listeners.click({});
  field.listeners.keydown({ key: "Enter" });
  assert.deepEqual(sent, Array(2).fill({ command: "accuse", given: [7] }));
  change({ challenge: { ...tried, met: true, words: "Right." } });
  assert.deepEqual([row.hidden, about.all("p")[1].textContent], [true, "Right."]);
  change({ challenge: {} });
  assert.equal(about.hidden, true);
});

test("a button sends its command, and a view that is gone hears nothing more", () => {
  const { page, calls, sent, away } = drawn([COHORT]);
  page.all("button").find(({ text }) => text === "Start")?.listeners.click({});
  assert.deepEqual(sent, [{ command: "start", given: [] }]);
  assert.ok(calls.size > 0);
  away();
  assert.equal(calls.size, 0);
});
