// @ts-check
// Charts: lines of runs against rounds, and how a number is spread over clients. A redraw changes attributes in
// place, so there is no blank frame; the label says in words what the chart shows.

const WINDOW = 5;                                         // rounds that a smoothed line is a mean of
const WIDTH = 360, HEIGHT = 200, LEFT = 48, RIGHT = 12, TOP = 26, BOTTOM = 34;

/** @param {string} name */
function frame(name) {
  const title = make("text", { x: LEFT, y: 15, class: "title" }, name);
  const axes = make("g", { class: "axes" }), body = make("g", {});
  const node = make("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "data-series": name }, title, axes, body);
  const spot = ([low, high], from, to, bent = (v) => v) =>
    (v) => from + (bent(v) - bent(low)) / (bent(high) - bent(low)) * (to - from);
  let drawn = "";
  /** @param {[number, number]} across @param {[number, number]} up @param {string} below
   * @param {boolean} wholeAcross @param {boolean} wholeUp @param {boolean} [log] */
  const scale = (across, up, below, wholeAcross, wholeUp, log = false) => {
    const x = spot(across, LEFT, WIDTH - RIGHT), y = spot(up, HEIGHT - BOTTOM, TOP, log ? Math.log : undefined), marks = [];
    const now = JSON.stringify([across, up, below, log]);
    if (now === drawn) return { x, y };                   // axes change rarely, so most redraws move a line only
    drawn = now;
    const fit = (v, whole) => !whole || Number.isInteger(v);
    for (const v of (log ? decades : ticks)(up[0], up[1]).filter((v) => fit(v, wholeUp))) {
      marks.push(make("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(v), y2: y(v) }),
        make("text", { x: LEFT - 6, y: y(v) + 4, "text-anchor": "end" }, format(v)));
    }
    for (const v of ticks(across[0], across[1], 5).filter((v) => fit(v, wholeAcross))) {
      marks.push(make("text", { x: x(v), y: HEIGHT - BOTTOM + 16, "text-anchor": "middle" }, format(v)));
    }
    marks.push(make("text", { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 4, "text-anchor": "middle" }, below));
    axes.replaceChildren(...marks);
    return { x, y };
  };
  const say = (heading, words) => { title.textContent = heading; node.setAttribute("aria-label", words); };
  return { node, body, scale, say };
}

/** The round that is pointed at, the same in all charts. */
function crosshair() {
  let at = /** @type {number | null} */ (null);
  const charts = new Set();
  return { at: () => at, charts, move: (/** @type {number | null} */ round) => {
    if (round === at) return;
    at = round;
    for (const draw of charts) draw();
  } };
}

/** Each value as the mean of the last few. @param {[number, number][]} points @returns {[number, number][]} */
const smoothed = (points) => points.map(([round], i) => {
  const some = points.slice(Math.max(0, i + 1 - WINDOW), i + 1);
  return [round, some.reduce((sum, [, v]) => sum + v, 0) / some.length];
});

/** What a line shows at a round, or at the last one before it. @param {[number, number][]} points @param {number} round */
const valueAt = (points, round) => points.filter(([r]) => r <= round).at(-1);

/** The parts of a chart that follow the pointer: a line at its round, the values there, and what was turned.
 * @param {SVGElement} node @param {ReturnType<typeof crosshair>} cursor */
function pointer(node, cursor) {
  const line = make("line", { y1: TOP, y2: HEIGHT - BOTTOM, class: "cross" }), words = make("text", { y: TOP + 10, class: "read" });
  const group = node.appendChild(make("g", { class: "pointer" }, line, words));
  let found = [], x = (round) => round, wide = [1, 2], ends = [1, 1];       // ends: of the rounds that are known
  const draw = () => {
    const round = cursor.at();
    group.style.display = round === null || !found.length ? "none" : "";
    if (round === null || !found.length) return;
    const place = x(round), turned = found.flatMap(({ marks }) => marks.filter(([r]) => r === round).map(([, what]) => what));
    line.setAttribute("x1", place); line.setAttribute("x2", place);
    const right = place < (LEFT + WIDTH - RIGHT) / 2;
    words.setAttribute("text-anchor", right ? "start" : "end");
    words.replaceChildren(...[`round ${round}`, ...turned].map((text, i) => make("tspan", { x: place + (right ? 5 : -5), dy: i ? 12 : 0 }, text)),
      ...found.map(({ colour, points }) => make("tspan", { x: place + (right ? 5 : -5), dy: 12, class: `line-${colour % COLOURS}` },
        format(valueAt(points, round)?.[1] ?? "not measured"))));
  };
  const roundAt = (event) => {
    const box = node.getBoundingClientRect(), share = ((event.clientX - box.left) / box.width * WIDTH - LEFT) / (WIDTH - RIGHT - LEFT);
    return Math.round(Math.min(Math.max(wide[0] + share * (wide[1] - wide[0]), ends[0]), ends[1]));
  };
  node.addEventListener("pointermove", (event) => cursor.move(roundAt(event)));
  node.addEventListener("pointerleave", () => cursor.move(null));
  node.setAttribute("tabindex", "0");
  node.addEventListener("keydown", (event) => {
    const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key], now = cursor.at();
    if (event.key === "Escape") cursor.move(null);
    if (!way) return;
    event.preventDefault();
    cursor.move(Math.min(Math.max((now ?? found.at(-1)?.points.at(-1)?.[0] ?? 1) + (now === null ? 0 : way), ends[0]), ends[1]));
  });
  node.addEventListener("blur", () => cursor.move(null));
  cursor.charts.add(draw);
  return (lines, scaleX, across) => {
    const last = Math.max(...lines.map(({ points }) => points.at(-1)[0]), across[0]);
    [found, x, wide, ends] = [lines, scaleX, across, [across[0], last]];
    draw();
  };
}

/** @param {string} name @param {ReturnType<typeof crosshair>} cursor */
function lineChart(name, cursor) {
  const { node, body, scale, say } = frame(name), kept = new Map(), levels = new Map(), turns = new Map();
  const turned = node.insertBefore(make("g", { class: "turned" }), body), point = pointer(node, cursor);
  const createTurn = () => {                               // where a knob was turned
    const line = make("line", { y1: TOP, y2: HEIGHT - BOTTOM }), title = make("title");
    return { node: make("g", {}, line, title), draw: ({ colour, place, what }) => {
      line.setAttribute("x1", place); line.setAttribute("x2", place);
      line.setAttribute("class", `line-${colour % COLOURS}`); title.textContent = what;
    } };
  };
  const beside = node.insertBefore(make("g", { class: "levels" }), body);
  const createLevel = () => {                              // what runs are measured beside, say popularity
    const line = make("line", { x1: LEFT, x2: WIDTH - RIGHT }), words = make("text", { x: WIDTH - RIGHT, "text-anchor": "end" });
    return { node: make("g", {}, line, words), draw: ({ label, height }) => {
      line.setAttribute("y1", height); line.setAttribute("y2", height);
      words.setAttribute("y", height - 3); words.textContent = label;
    } };
  };
  const createLine = () => {
    const path = make("path", { fill: "none" }), dot = make("circle", { r: 3 });
    const group = make("g", {}, path, dot);
    return { node: group, draw: ({ colour, points, x, y }) => {
      group.setAttribute("class", `line-${colour % COLOURS} dash-${Math.floor(colour / COLOURS)}`);
      path.setAttribute("d", points.map(([r, v], i) => `${i ? "L" : "M"}${x(r).toFixed(1)} ${y(v).toFixed(1)}`).join(""));
      const [r, v] = points.at(-1);
      dot.setAttribute("cx", x(r)); dot.setAttribute("cy", y(v));
    } };
  };
  /** @param {{lines: Shown[], total: number, done: number, log: boolean, smooth: boolean, lacks: string[]}} picture */
  const draw = ({ lines, total, done, log, smooth, lacks }) => {
    const found = lines.map(({ id, name: run, colour, marks, series: { [name]: [rounds, values] = [[], []] } }) =>
      ({ id, run, colour, marks, points: rounds.map((r, i) => [r, values[i]]).filter(([, v]) => v !== null) }))
      .filter(({ points }) => points.length);
    node.style.display = (done || lacks.includes(name)) && !found.length ? "none" : "";   // not measured in this kind of run
    const flat = new Map(lines.flatMap((line) => Object.entries(line.beside))
      .flatMap(([label, { [name]: v }]) => v === undefined ? [] : [[`${label} ${v}`, { label, v }]]));
    const known = [...found.flatMap(({ points }) => points.map(([, v]) => v)), ...[...flat.values()].map(({ v }) => v)];
    let low = Math.min(...known), high = Math.max(...known);
    const bent = log && known.length > 0 && low > 0;        // of what is not above nothing there is no logarithm
    if (!known.length) [low, high] = [0, 1];
    if (high - low < 1e-9) [low, high] = bent ? [low / 1.1, high * 1.1] : [low - 0.05, high + 0.05];
    if (!bent) [low, high] = rounded(low, high);
const first = Math.min(1, ...found.map(({ points }) => points[0][0]));  // 0 where a stream begins before all training
    const across = [first, Math.max(total, 2)], { x, y } = scale(across, [low, high], "round", true, false, bent);
    keyed(turned, turns, found.flatMap(({ id, colour, marks }) => marks.map(([r, what]) =>
      [`${id} ${r}`, { colour, place: x(r).toFixed(1), what: `round ${r}: ${what}` }])), createTurn);
    point(found, x, across);
    keyed(body, kept, found.map((line) =>
      [line.id, { ...line, x, y, points: smooth ? smoothed(line.points) : line.points }]), createLine);
    keyed(beside, levels, [...flat].map(([key, { label, v }]) => [key, { label, height: y(v).toFixed(1) }]), createLevel);
    const words = found.map(({ run, points }) => {
      const own = points.map(([, v]) => v), [first, last] = [points[0], points.at(-1)];
      return `${found.length > 1 ? `${run}, ` : ""}from ${format(first[1])} in round ${first[0]} to ${format(last[1])} `
        + `in round ${last[0]}, lowest ${format(Math.min(...own))}, highest ${format(Math.max(...own))}`;
    });
    say(found.length ? `${name}: ${format(found.at(-1).points.at(-1)[1])}` : name,
      `${name} by round: ${[...words, ...[...flat.values()].map(({ label, v }) => `${label} ${format(v)}`)].join("; ") || "no rounds yet"}`);
  };
  return { node, draw };
}

/** @param {string} name @param {string} meaning */
function spreadChart(name, meaning) {
  const { node, body, scale, say } = frame(name), bars = [];
  /** @param {{spreads: Record<string, Spread>}} picture */
  const draw = ({ spreads: { [name]: found } }) => {
    const { low, high, counts, whole } = found ?? { low: 0, high: 1, counts: [], whole: false };
    const { x, y } = scale([low, high], rounded(0, Math.max(1, ...counts)), meaning, whole, true);
    while (bars.length < counts.length) bars.push(body.appendChild(make("rect", { class: "bar" })));
    bars.forEach((bar, i) => {
      const wide = (high - low) / (counts.length || 1), count = counts[i] ?? 0;
      const place = { x: x(low + i * wide) + 0.5, y: y(count), width: Math.max(x(low + wide) - x(low) - 1, 1), height: y(0) - y(count) };
      for (const [key, value] of Object.entries(place)) bar.setAttribute(key, value);
    });
    const known = found && found.median !== null;
    say(known ? `${name}: median ${format(found.median)}` : name,
      known ? `${meaning} of ${found.clients} clients: median ${format(found.median)}, from ${format(low)} to ${format(high)}`
        : `${meaning}: no rounds yet`);
  };
  return { node, draw };
}
