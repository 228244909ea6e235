// @ts-check
// The inside of a round in three pictures: clients as dots, items on a map, steps over the loss.

/** @typedef {{count: number, x: number[], size: number[], ends: string[][], people: string[]}} Dots */
/** @typedef {{people: Dots, map: {items: string[], ids: string[], categories: string[], colours: number[]}}} Stays */
/** @typedef {{round: number, cohort: number[], of: number, arrows: number[][], mean: number[], agreement: number,
 *   held: number, reach: number, lines: number[][][], liars: number[], taken: number[] | null, rule: string, out: number, why: string}} Steps */

const SIDE = { width: 264, height: 208, left: 6, right: 258, top: 8, bottom: 196 };

/** A picture with a heading above and words below. @param {string} name */
function picture(name) {
  const heading = make("figcaption", { class: "title" }, name), words = make("figcaption"), body = make("g");
  const svg = make("svg", { viewBox: `0 0 ${SIDE.width} ${SIDE.height}`, role: "img" }, body);
  const node = make("figure", { "data-inside": name }, heading, svg, words);
  const say = (/** @type {string} */ title, /** @type {string} */ about, /** @type {Node[]} */ ...more) => {
    heading.textContent = title;
    words.replaceChildren(about, ...more);
    svg.setAttribute("aria-label", `${title}: ${words.textContent}`);
  };
  return { node, body, say };
}

/** @param {number} value @param {number} low @param {number} high @param {number} from @param {number} to */
const between = (value, low, high, from, to) => from + (value - low) / (high - low || 1) * (to - from);

/** Clients by taste, to the side, and loss, upwards. @param {(user: string) => void} follow */
function peoplePicture(follow) {
  const { node, body, say } = picture("clients");
  const low = make("text", { x: SIDE.left, y: SIDE.bottom - 6 }), high = make("text", { x: SIDE.left, y: SIDE.top + 8 });
  const ends = make("span", { class: "ends" });
  body.append(low, high);
  let drawn = /** @type {any[]} */ ([]), whose = /** @type {Dots | null} */ (null);
  const begin = (/** @type {Dots} */ people) => {
    for (const dot of drawn) dot.node.remove();
    whose = people;
    drawn = people.x.map((x, i) => {
      const words = make("title"), dot = make("circle", { cx: between(x, 0, 1, SIDE.left + 28, SIDE.right).toFixed(1), cy: SIDE.bottom,
        r: (1.5 + 3 * people.size[i]).toFixed(1) }, words);
      dot.addEventListener("click", () => follow(people.people[i]));
      body.append(dot);
      return { node: dot, words, look: "" };
    });
  };
  /** @param {Dots} people @param {any} dots @param {number[]} liars clients @param {string} user */
  const draw = (people, dots, liars, user) => {
    if (!people) return;
    if (people !== whose) begin(people);
    const known = (dots.loss ?? []).filter((v) => v !== null), [least, most] = known.length ? rounded(Math.min(...known), Math.max(...known)) : [0, 1];
    const now = new Set(dots.cohort), lying = new Set(liars), step = people.count > people.x.length ? (people.count - 1) / (people.x.length - 1) : 1;
    drawn.forEach((dot, i) => {
      const loss = dots.loss?.[i] ?? null, client = Math.round(i * step);
      const kind = [now.has(i) ? "now" : loss === null ? "never" : "before", lying.has(client) ? "liar" : "", people.people[i] === user ? "followed" : ""].join(" ").trim();
      const height = loss === null ? SIDE.bottom + 2 : between(loss, least, most, SIDE.bottom - 10, SIDE.top + 4);
      const fade = now.has(i) || loss === null ? 1 : Math.max(0.25, 0.8 - 0.06 * dots.since[i]);
      const look = `${kind} ${height.toFixed(1)} ${fade.toFixed(2)}`;
      if (look === dot.look) return;
      dot.look = look;
      dot.node.setAttribute("class", `dot ${kind}`);
      dot.node.style.transform = `translateY(${(height - SIDE.bottom).toFixed(1)}px)`;
      dot.node.style.opacity = fade;
      dot.words.textContent = `client ${client}, user ${people.people[i]}${lying.has(client) ? ", a liar" : ""}: `
        + (loss === null ? "had no turn yet" : `loss ${format(loss)} in round ${dots.round - dots.since[i]}`);
    });
    low.textContent = known.length ? format(least) : ""; high.textContent = known.length ? format(most) : "";
    const [left, right] = people.ends.map((end) => end.join(", "));
    if (ends.title !== left) { ends.title = left; ends.replaceChildren(make("span", {}, `← ${left}`), make("span", {}, `${right} →`)); }
    const liarWords = lying.size ? `; ringed in red: ${lying.size} liars` : "";
    say(dots.round ? `Clients, ${now.size} in round ${dots.round}` : "Clients", `Up: loss. To the sides: taste. ${dots.met ?? 0} of ${people.count} had a turn${liarWords}.`, ends);
  };
  return { node, draw };
}

/** Items where their vectors are. @param {(item: string) => void} follow */
function mapPicture(follow) {
  const { node, body, say } = picture("items");
  const colours = make("span", { class: "colours" });
  let drawn = /** @type {any[]} */ ([]), whose = /** @type {any} */ (null);
  const begin = (map) => {
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
  const draw = (map, at, item, best) => {
    node.style.display = map && at?.xy ? "" : "none";
    if (!map || !at?.xy) return;
    if (map !== whose) begin(map);
    const [across, up] = [0, 1].map((k) => at.xy.map((pair) => pair[k])).map((all) => [Math.min(...all), Math.max(...all)]);
    const scale = Math.min((SIDE.right - SIDE.left - 12) / (across[1] - across[0] || 1), (SIDE.bottom - SIDE.top - 12) / (up[1] - up[0] || 1));
    const x = (v) => SIDE.width / 2 + (v - (across[0] + across[1]) / 2) * scale, y = (v) => SIDE.height / 2 - (v - (up[0] + up[1]) / 2) * scale;
    drawn.forEach((dot, i) => {
      dot.style.transform = `translate(${x(at.xy[i][0]).toFixed(1)}px, ${y(at.xy[i][1]).toFixed(1)}px)`;
      dot.classList.toggle("followed", map.items[i] === item);
      dot.classList.toggle("best", best.has(map.items[i]));
    });
    say(at.round ? `Items after round ${at.round}` : "Items at the start", `The ${map.items.length} best known; the picture is ${format(SIDE.width / scale)} wide, its directions are those of round ${at.since}.`, colours);
  };
  return { node, draw };
}

/** What clients send, as arrows from the server's parameters, over lines of equal loss. */
function stepsPicture() {
  const { node, body, say } = picture("steps");
  const inner = body.appendChild(make("svg", { x: SIDE.left, y: SIDE.top, width: SIDE.right - SIDE.left, height: SIDE.bottom - SIDE.top,
    viewBox: `${SIDE.left} ${SIDE.top} ${SIDE.right - SIDE.left} ${SIDE.bottom - SIDE.top}`, "aria-hidden": "true" }));
  const lines = inner.appendChild(make("g", { class: "contours" })), arrows = inner.appendChild(make("g", { class: "arrows" }));
  const lengths = Math.min(SIDE.right - SIDE.left, SIDE.bottom - SIDE.top) / 2;
  const middle = { x: (SIDE.left + SIDE.right) / 2, y: (SIDE.top + SIDE.bottom) / 2 };
  const draw = (/** @type {Steps} */ steps, /** @type {string} */ user, /** @type {number | undefined} */ client) => {
    const found = steps?.arrows ? steps : null;
    const x = (v) => (middle.x + v / found.reach * lengths).toFixed(1), y = (v) => (middle.y - v / found.reach * lengths).toFixed(1);
    lines.replaceChildren(...(found?.lines ?? []).map((line, i, all) => make("path", { fill: "none",
      style: `opacity: ${(0.25 + 0.6 * i / all.length).toFixed(2)}`, d: line.map(([a, b], k) => `${k ? "L" : "M"}${x(a)} ${y(b)}`).join("") })));
    if (!found) { arrows.replaceChildren(); return say("Steps of clients", steps?.why ?? "No look yet."); }
    const lying = new Set(found.liars);
    const arrow = ([a, b], kind) => {
      const turn = Math.atan2(Number(y(b)) - middle.y, Number(x(a)) - middle.x), tip = ["mean", "taken"].includes(kind) ? 8 : 4;
      const wing = (way) => `${(Number(x(a)) - tip * Math.cos(turn + way)).toFixed(1)} ${(Number(y(b)) - tip * Math.sin(turn + way)).toFixed(1)}`;
      return make("path", { class: kind, fill: "none", d: `M${middle.x} ${middle.y}L${x(a)} ${y(b)}M${wing(0.4)}L${x(a)} ${y(b)}L${wing(-0.4)}` });
    };
    arrows.replaceChildren(...found.arrows.map((to, i) => arrow(to, lying.has(found.cohort[i]) ? "liar" : found.cohort[i] === client ? "mine" : "step")),
      arrow(found.mean, "mean"), ...(found.taken ? [arrow(found.taken, "taken")] : []));
    const shown = found.of > found.arrows.length ? `${found.arrows.length} of ${found.of}` : String(found.of);
    const out = found.out ? ` ${found.out} of them leave the picture.` : "", lie = found.liars.length ? " Red: liars." : "";
    say(`Steps of round ${found.round}`, `As the knobs stand: ${shown} clients.${out}${lie} The bold mean is ${format(found.agreement)} times as long as a step; `
      + (found.taken ? `dashed is what the ${found.rule} takes; ` : "")
      + `this plane holds ${Math.round(100 * found.held)}% of the steps. Lines: the loss, darker is more.`);
  };
  return { node, draw };
}
