// @ts-check
// The user and the item that are followed.

import { lineChart } from "../chart.js";
import { format, last, make } from "../parts.js";

/** @import { Cursor } from "../chart.js" */
/** @import { Followed, Person, Seen, Upload } from "../parts.js" */

/** How a name has moved in a list. @param {string[]} before @param {string} name @param {number} place */
export function moved(before, name, place) {
  const was = before.indexOf(name), far = was - place;
  if (!before.length || !far) return "";
  return was < 0 ? " new" : far > 0 ? ` ▲${far}` : ` ▼${-far}`;
}

const number = (/** @type {number} */ x) => x.toLocaleString("en");

/** What an upload holds, and what can be read of it, and by whom. @param {Upload} sent @param {boolean} starts whether it is sent in the next round */
export function uploadInWords(sent, starts) {
  const way = sent.stages.length ? ` after ${sent.stages.join(", ")}` : "";
  const words = [`${starts ? "Sends in the next round" : "Is not drawn for the next round, and would send"} ${number(sent.numbers)} numbers, for ${number(sent.rows)} items`
    + `; their length is ${format(sent.sent)}${way}${sent.sent === sent.learned ? "" : `, of ${format(sent.learned)} learned`}.`];
  if (sent.read.length) {
    words.push(`${sent.hidden ? "Who saw this upload alone would tell" : "Who sees this upload, the server for one, tells"} the clicks with AUC ${format(sent.auc)}`
      + `${sent.alone === sent.auc ? "" : ` (${format(sent.alone)} before ${sent.stages.join(", ")})`}: ${Math.round(100 * (sent.right ?? 0))}% of the guesses are right.`);
  }
  if (sent.hidden) words.push(`The server gets the sum of all alone (${sent.summed.join(", ")}).`);
  else if (sent.summed.length) words.push(`Against that the ${sent.summed.join(", ")} on the sum of all does not protect her: it does against those who see the model.`);
  return words.join(" ");
}

/** The one who is followed: history, list, what is sent and what is read of it. */
export function personCard() {
  const node = make("section", { class: "card", "aria-label": "the user who is followed" });
  let before = /** @type {string[]} */ ([]), list = before, whose = "", round = -1, drawn = /** @type {Seen["person"]} */ (undefined);
  const items = (/** @type {string} */ title, /** @type {(string | Node)[]} */ names) => make("div", {}, make("strong", {}, title),
    make("ol", {}, ...names.map((n) => typeof n === "string" ? make("li", {}, n) : n)));
  /** @param {Seen["person"]} found @param {number | undefined} at the round after which this was seen */
  const draw = (found, at) => {
    node.hidden = !found?.user;
    if (!found?.user || found === drawn) return;
    drawn = found;
    const person = /** @type {Person} */ (found), { upload: sent } = person, held = person.held[0];
    if (person.user !== whose) [before, list, round] = [[], [], -1];
    if (at !== round) [before, round] = [list, at ?? -1];
    [whose, list] = [person.user, person.top];
    const words = [held ? `Held out: ${held.item}, at place ${held.place} of ${held.of}.` : "",
      sent ? uploadInWords(sent, person.starts ?? false) : "", person.why ?? ""];
    const read = sent?.read.map(({ item, true: right }) => make("li", { class: right ? "" : "wrong-guess" }, `${right ? "✓" : "✗"} ${item}`)) ?? [];
    node.replaceChildren(make("h4", {}, `User ${person.user}, client ${person.client}, ${person.clicks} clicks`), make("div", { class: "lists" },
      items("clicked last", person.lately),
      items("recommended", person.top.map((name, i) => make("li", {}, name, make("small", {}, moved(before, name, i))))),
      ...(read.length ? [items("read from the upload", read)] : [])), make("p", {}, words.filter((w) => w).join(" ")));
  };
  return { node, draw };
}

/** The item that is followed: in how many lists it is. @param {Cursor} cursor */
export function itemCard(cursor) {
  const name = "share of lists", chart = lineChart(name, cursor), words = make("p");
  const node = make("section", { class: "card", "aria-label": "the item that is followed" }, chart.node, words);
  let drawn = /** @type {Followed | undefined} */ (undefined);
  /** @param {Followed | undefined} item */
  const draw = (item) => {
    node.hidden = !item;
    if (!item || item === drawn) return;
    drawn = item;
    const rounds = item.places.map(([n]) => n), shares = item.places.map(([, share]) => share);
    chart.draw({ name, total: Math.max(...rounds, 2), done: 1, progress: 0, spreads: {}, log: false, smooth: false, lacks: [], reference: null,
      lines: [{ id: item.name, name: item.name, colour: 1, marks: [], beside: {}, alike: 0, seed: 0, series: { [name]: [rounds, shares] } }] });
    if (!rounds.length) { words.textContent = `${item.name}: everybody has met it.`; return; }
    const [, share, median] = last(item.places);
    words.textContent = `${item.name}: among the first ten of ${Math.round(100 * share)}% of those who have not met it; its median place is ${median}.`;
  };
  return { node, draw };
}
