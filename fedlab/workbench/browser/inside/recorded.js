// @ts-check
// A run that was recorded: a model that plays it, in a page without Python.

/** @import { Dots, Model, Picture, Seen, Traits } from "../parts.js" */
/** @typedef {{round: number, dots: Dots, seen: Seen}} Look */
/** @typedef {Pick<Traits, "spec" | "values" | "lacks" | "charts" | "text" | "line" | "table" | "picture" | "preset" | "stays">} Kept */

const TICKS = 120, TICK = 100;                              // a run is played in so many steps of so many milliseconds
const ONLY = "this is a recording: it plays, and shows any round; turn knobs in a workbench that runs";

/** What charts show until a round. @param {Picture} picture @param {number} round @returns {Picture} */
export function until(picture, round) {
  const lines = picture.lines.map((line) => {
    const marks = line.marks.filter(([r]) => r <= round);
    const series = Object.fromEntries(Object.entries(line.series).map(([name, [rounds, values]]) => {
      const count = rounds.filter((r) => r <= round).length;
      return [name, /** @type {[number[], (number | null)[]]} */ ([rounds.slice(0, count), values.slice(0, count)])];
    }));
    return { ...line, series, marks };
  });
  return { ...picture, lines, progress: round / Math.max(picture.done, 1), spreads: {}, reference: null };
}

/** @param {{traits: Kept, looks: Look[]}} recording @returns {Model} */
export function recorded({ traits: given, looks }) {
  const last = given.picture.done, calls = /** @type {Map<string, Function[]>} */ (new Map());
  const unread = Object.fromEntries(given.spec.knobs.map(({ name }) => [name, "recorded"]));
  const traits = /** @type {Traits} */ ({ used: {}, wrong: {}, notice: "", news: "", saving: ONLY, report: "", heat: {}, dots: {}, seen: {}, challenge: {}, looking: false,
    state: "paused", message: "", ...given, spec: { ...given.spec, presets: [], finds: [], exports: [], recorded: true, sweeps: false, challenges: [] },
    charts: given.charts.filter((name) => !(name in given.spec.spreads)), unread, inside: { on: looks.length > 0, user: "", item: "", at: -1 } });
  let round = last, clock = /** @type {ReturnType<typeof setInterval> | undefined} */ (undefined);
  const put = (/** @type {Partial<Traits>} */ to) => {
    Object.assign(traits, to);
    for (const name of Object.keys(to)) for (const call of calls.get(`change:${name}`) ?? []) call();
  };
  const go = (/** @type {number} */ to) => {
    round = Math.min(Math.max(to, 0), last);
    const look = looks.filter((each) => each.round <= round).at(-1), state = clock ? "running" : "paused";
    put({ picture: until(given.picture, round), inside: { ...traits.inside, at: round < last ? Math.floor(round) : -1 }, state, message: `Recorded: round ${Math.floor(round)} of ${last}`,
      ...(look ? { dots: look.dots, seen: look.seen } : {}) });
  };
  const halt = () => { clearInterval(clock); clock = undefined; };
  const play = () => {
    halt();
    if (round >= last) round = 0;
    clock = setInterval(() => { if (round + last / TICKS >= last) halt(); go(round + last / TICKS); }, TICK);
    go(round);
  };
  /** @type {Record<string, (...given: any[]) => void>} */
  const commands = {
    start: play, pause: () => { halt(); go(round); }, stop: () => { halt(); go(round); }, reset: () => { halt(); go(0); }, step: () => { halt(); go(Math.floor(round) + 1); },
    see: (on) => put({ inside: { ...traits.inside, on } }),
    at: (to) => { halt(); go(to < 0 ? last : to); },
  };
  go(last);
  return {
    get: (name) => traits[name], set: () => {}, save_changes: () => {},
    send: (message) => {
      const { command, given: words } = /** @type {{command: string, given: unknown[]}} */ (message);
      if (command in commands) { put({ notice: "" }); commands[command](...words); } else put({ notice: ONLY });
    },
    on: (event, call) => { calls.set(event, [...calls.get(event) ?? [], call]); },
    off: (event, call) => { calls.set(event, (calls.get(event) ?? []).filter((each) => each !== call)); },
  };
}
