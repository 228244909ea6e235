// @ts-check
// The inside of a round in three pictures: clients as dots, items on a map, steps over the loss.

import { format, make, rounded } from "../parts.js";

/** @import { Dots, Named, People, Places, Point, Seen, Steps } from "../parts.js" */

const SIDE = { width: 264, height: 208, left: 6, right: 258, top: 8, bottom: 196 };

/** A picture with a heading above and words below. @param {string} name */
function picture(name) {
  const heading = make("figcaption", { class: "title" }, name), words = make("figcaption"), body = make("g");
  const svg = make("svg", { viewBox: `0 0 ${SIDE.width} ${SIDE.height}`, role: "img" }, body);
  const node = make("figure", { "data-inside": name }, heading, svg, words);
  /** @param {string} title @param {string} about @param {...Node} more */
  const say = (title, about, ...more) => {
    heading.textContent = title;
    words.replaceChildren(about, ...more);
    svg.setAttribute("aria-label", `${title}: ${words.textContent}`);
  };
  return { node, body, say };
}

/** The ends of the axis of losses, which may all be the same. @param {number} low @param {number} high */
const lossEnds = (low, high) => high > low ? rounded(low, high) : [low - 0.5, low + 0.5];

/** Where a value of one range lies in another. @param {number} value @param {number} low @param {number} high @param {number} from @param {number} to */
export const between = (value, low, high, from, to) => from + (value - low) / (high - low || 1) * (to - from);

/** The number of the client that a dot stands for: of many clients, evenly chosen ones have dots.
 * @param {number} dot @param {{count: number, x: number[]}} people */
export const clientOf = (dot, { count, x }) => Math.round(dot * (count > x.length ? (count - 1) / (x.length - 1) : 1));

/** How a client looks: its class, how high it is, and how much it has faded.
 * @param {Dots} dots @param {number} i @param {boolean} now @param {[number, number]} losses lowest and highest */
export function lookOf(dots, i, now, [least, most]) {
  const loss = dots.loss[i] ?? null;
  if (loss === null) return { kind: "never", height: SIDE.bottom + 2, fade: 1 };
  const height = between(loss, least, most, SIDE.bottom - 10, SIDE.top + 4);
  const since = dots.since[i];                            // three steps, so that few dots change with a round
  return { kind: now ? "now" : "before", height, fade: now ? 1 : since < 4 ? 0.8 : since < 16 ? 0.5 : 0.3 };
}

/** Whether what a picture was drawn from is what it was: traits that are not set anew are the same objects.
 * @param {unknown[]} before @param {unknown[]} now */
export const same = (before, now) => before.length === now.length && now.every((value, i) => value === before[i]);

/** Clients by taste, to the side, and loss, upwards. @param {(user: string) => void} follow */
export function peoplePicture(follow) {
  const { node, body, say } = picture("clients");
  const low = make("text", { x: SIDE.left, y: SIDE.bottom - 6 }), high = make("text", { x: SIDE.left, y: SIDE.top + 8 });
  const ends = make("span", { class: "ends" });
  body.append(low, high);
  let drawn = /** @type {{dot: SVGCircleElement, words: SVGTitleElement, look: string}[]} */ ([]);
  let whose = /** @type {People | null} */ (null);
  const begin = (/** @type {People} */ people) => {
    for (const { dot } of drawn) dot.remove();
    whose = people;
    drawn = people.x.map((x, i) => {
      const words = make("title"), dot = make("circle", { cx: between(x, 0, 1, SIDE.left + 28, SIDE.right).toFixed(1), cy: SIDE.bottom,
        r: (1.5 + 3 * people.size[i]).toFixed(1) }, words);
      dot.addEventListener("click", () => follow(people.people[i]));
      body.append(dot);
      return { dot, words, look: "" };
    });
    const [left, right] = people.ends.map((end) => end.join(", "));
    ends.replaceChildren(make("span", {}, `← ${left}`), make("span", {}, `${right} →`));
  };
  let before = /** @type {unknown[]} */ ([]);
  /** @param {People | undefined} people @param {Dots | {round?: undefined}} found @param {number[]} liars their numbers @param {string} user */
  const draw = (people, found, liars, user) => {
    if (!people || same(before, before = [people, found, liars.join(), user])) return;
    if (people !== whose) begin(people);
    const dots = found.round === undefined ? { round: 0, cohort: [], loss: [], since: [], met: 0 } : found;
    const known = dots.loss.filter((loss) => loss !== null), losses = /** @type {[number, number]} */ (known.length ? lossEnds(Math.min(...known), Math.max(...known)) : [0, 1]);
    const now = new Set(dots.cohort), lying = new Set(liars);
    drawn.forEach((each, i) => {
      const client = clientOf(i, people), { kind, height, fade } = lookOf(dots, i, now.has(i), losses), loss = dots.loss[i] ?? null;
      const classes = ["dot", kind, lying.has(client) ? "liar" : "", people.people[i] === user ? "followed" : ""].join(" ").trim();
      const look = `${classes} ${height.toFixed(1)} ${fade.toFixed(2)} ${loss === null ? "" : dots.since[i]}`;
      if (look === each.look) return;
      each.look = look;
      each.dot.setAttribute("class", classes);
      each.dot.setAttribute("cy", height.toFixed(1));
      each.dot.setAttribute("opacity", String(fade));
      each.words.textContent = `client ${client}, user ${people.people[i]}${lying.has(client) ? ", a liar" : ""}: `
        + (loss === null ? "had no turn yet" : `loss ${format(loss)} in round ${dots.round - dots.since[i]}`);
    });
    low.textContent = known.length ? format(losses[0]) : "";
    high.textContent = known.length ? format(losses[1]) : "";
    say(dots.round ? `Clients, ${now.size} in round ${dots.round}` : "Clients", `Up: loss. To the sides: taste. ${dots.met} of ${people.count} had a turn`
      + `${lying.size ? `; red: ${lying.size} liars` : ""}.`, ends);
  };
  return { node, draw };
}

/** How places are put into the picture: the scale, and the middle of them. @param {Point[]} xy */
export function fitted(xy) {
  const [across, up] = [0, 1].map((k) => xy.map((pair) => pair[k])).map((all) => [Math.min(...all), Math.max(...all)]);
  const scale = Math.min((SIDE.right - SIDE.left - 12) / (across[1] - across[0] || 1), (SIDE.bottom - SIDE.top - 12) / (up[1] - up[0] || 1));
  return { scale, middle: [(across[0] + across[1]) / 2, (up[0] + up[1]) / 2] };
}

/** Items where their vectors are. @param {(item: string) => void} follow */
export function mapPicture(follow) {
  const { node, body, say } = picture("items"), colours = make("span", { class: "colours" });
  let drawn = /** @type {SVGCircleElement[]} */ ([]), whose = /** @type {Named | null} */ (null);
  const begin = (/** @type {Named} */ map) => {
    for (const dot of drawn) dot.remove();
    whose = map;
    colours.replaceChildren(...map.categories.map((name, i) => make("span", {}, make("span", { class: `swatch line-${i}` }), ` ${name}`)));
    drawn = map.items.map((name, i) => {
      const colour = map.colours[i], kind = colour < 0 ? "" : `, ${map.categories[colour]}`;
      const dot = make("circle", { r: 3.5, class: `dot item line-${colour < 0 ? 6 : colour}` }, make("title", {}, name + kind));
      dot.addEventListener("click", () => follow(map.ids[i]));
      body.append(dot);
      return dot;
    });
  };
  let before = /** @type {unknown[]} */ ([]);
  /** @param {Named | undefined} map @param {Seen["map"]} at @param {string | undefined} item @param {string[]} best */
  const draw = (map, at, item, best) => {
    if (same(before, before = [map, at, item, best.join()])) return;
    node.style.display = map && at?.xy ? "" : "none";       // not every model has a vector of each item
    if (!map || !at?.xy) return;
    if (map !== whose) begin(map);
    const { round, since, xy } = /** @type {Places} */ (at), { scale, middle } = fitted(xy);
    drawn.forEach((dot, i) => {
      const x = SIDE.width / 2 + (xy[i][0] - middle[0]) * scale, y = SIDE.height / 2 - (xy[i][1] - middle[1]) * scale;
      dot.style.transform = `translate(${x.toFixed(1)}px, ${y.toFixed(1)}px)`;
      dot.classList.toggle("followed", map.items[i] === item);
      dot.classList.toggle("best", best.includes(map.items[i]));
    });
    say(round ? `Items after round ${round}` : "Items at the start", `The ${map.items.length} best known; the picture is ${format(SIDE.width / scale)} wide, `
      + `its directions are those of round ${since}.`, colours);
  };
  return { node, draw };
}

/** What clients send, as arrows from the server's parameters, over lines of equal loss. */
export function stepsPicture() {
  const { node, body, say } = picture("steps"), wide = SIDE.right - SIDE.left, tall = SIDE.bottom - SIDE.top;
  const inner = body.appendChild(make("svg", { x: SIDE.left, y: SIDE.top, width: wide, height: tall,
    viewBox: `${-wide / 2} ${-tall / 2} ${wide} ${tall}`, "aria-hidden": "true" }));
  const lines = inner.appendChild(make("g", { class: "contours" })), arrows = inner.appendChild(make("g", { class: "arrows" }));
  let before = /** @type {unknown[]} */ ([null]);
  /** @param {Seen["steps"]} steps @param {number | undefined} client who is followed */
  const draw = (steps, client) => {
    if (same(before, before = [steps, client])) return;
    if (!steps?.arrows) {
      lines.replaceChildren();
      arrows.replaceChildren();
      say("Steps of clients", steps?.why ?? "No look yet.");
      return;
    }
    const found = /** @type {Steps} */ (steps), scale = tall / 2 / found.reach, lying = new Set(found.liars);
    const at = (/** @type {Point} */ [a, b]) => `${(a * scale).toFixed(1)} ${(-b * scale).toFixed(1)}`;
    lines.replaceChildren(...found.lines.map((line, i, all) => make("path", { fill: "none", style: `opacity: ${(0.25 + 0.6 * i / all.length).toFixed(2)}`,
      d: line.map((point, k) => `${k ? "L" : "M"}${at(point)}`).join("") })));
    const arrow = (/** @type {Point} */ to, /** @type {string} */ kind) => {
      const turn = Math.atan2(to[1], to[0]), tip = (["mean", "taken"].includes(kind) ? 8 : 4) / scale;
      const wing = (/** @type {number} */ way) => at([to[0] - tip * Math.cos(turn + way), to[1] - tip * Math.sin(turn + way)]);
      return make("path", { class: kind, fill: "none", d: `M0 0L${at(to)}M${wing(0.4)}L${at(to)}L${wing(-0.4)}` });
    };
    const kinds = found.cohort.map((each) => lying.has(each) ? "liar" : each === client ? "mine" : "step");
    const whose = found.arrows.map((to, i) => make("path", { class: "hit", fill: "none", d: `M0 0L${at(to)}` }, make("title", {}, `client ${found.cohort[i]}`)));
    arrows.replaceChildren(...found.arrows.map((to, i) => arrow(to, kinds[i])), arrow(found.mean, "mean"), ...(found.taken ? [arrow(found.taken, "taken")] : []), ...whose);
    const shown = found.of > found.arrows.length ? `${found.arrows.length} of ${found.of}` : String(found.of);
    say(`Steps of round ${found.round}`, `As the knobs stand${found.drawn ? ", by one draw of many that may come" : ""}: ${shown} clients, with steps of about ${format(found.long)}.`
      + `${found.out ? ` The longest leave the picture: ${found.out}.` : ""}`
      + `${lying.size ? " Red: liars." : ""} The bold mean is ${format(found.agreement)} times as long as a step; `
      + `${found.taken ? `dashed is what the ${found.rule} takes; ` : ""}this plane holds ${Math.round(100 * found.held)}% of the steps. Lines: the loss, darker is more.`);
  };
  return { node, draw };
}
