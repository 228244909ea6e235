// @ts-check
// The user and the item that are followed.

/** The one who is followed: history, list, what is sent and what is read of it. */
function personCard() {
  const node = make("section", { class: "card", "aria-label": "the user who is followed" });
  let before = /** @type {string[]} */ ([]), whose = "", round = -1, list = /** @type {string[]} */ ([]);
  const items = (title, names) => make("div", {}, make("strong", {}, title), make("ol", {}, ...names.map((n) => typeof n === "string" ? make("li", {}, n) : n)));
  const draw = (person, at) => {
    node.hidden = !person?.user;
    if (!person?.user) return;
    if (person.user !== whose) { before = []; list = []; round = -1; }
    if (at !== round) { before = list; round = at; }
    whose = person.user; list = person.top;
    const moved = (name, i) => {
      const was = before.indexOf(name), far = was - i;
      return make("li", {}, name, make("small", {}, !before.length || !far ? "" : was < 0 ? " new" : far > 0 ? ` ▲${far}` : ` ▼${-far}`));
    };
    const { upload: sent } = person, held = person.held[0];
    const words = [];
    if (held) words.push(`Held out: ${held.item}, at place ${held.place} of ${held.of}.`);
    if (sent) {
      const way = sent.stages.length ? ` (${sent.stages.join(", ")})` : "";
      words.push(`${person.starts ? "Sends" : "Is not in the next round; would send"} ${sent.numbers.toLocaleString("en")} numbers in ${sent.rows.toLocaleString("en")} rows, `
        + `length ${format(sent.sent)}${sent.sent === sent.learned ? "" : ` of ${format(sent.learned)} learned`}${way}.`);
      if (sent.summed.length) words.push(`${sent.summed.join(", ")}: acts on the sum of all, not on this upload.`);
      if (sent.read.length) words.push(`Whoever reads this upload tells the clicks with AUC ${format(sent.auc)}`
        + `${sent.alone === sent.auc ? "" : ` (${format(sent.alone)} before ${sent.stages.join(", ")})`}: ${Math.round(100 * sent.right)}% of the guesses are right.`);
    }
    if (person.why) words.push(person.why);
    node.replaceChildren(make("h4", {}, `User ${person.user}, ${person.clicks} clicks`), make("div", { class: "lists" },
      items("clicked last", person.lately), items("recommended", person.top.map(moved)),
      ...(sent?.read.length ? [items("read from the upload", sent.read.map(({ item, true: right }) => make("li", { class: right ? "" : "wrong-guess" }, `${right ? "✓" : "✗"} ${item}`)))] : [])),
      make("p", {}, words.join(" ")));
  };
  return { node, draw };
}

/** The item that is followed: in how many lists it is. @param {ReturnType<typeof crosshair>} cursor */
function itemCard(cursor) {
  const chart = lineChart("share of lists", cursor), words = make("p");
  const node = make("section", { class: "card", "aria-label": "the item that is followed" }, chart.node, words);
  const draw = (item) => {
    node.hidden = !item;
    if (!item) return;
    const rounds = item.places.map(([n]) => n), last = item.places.at(-1);
    chart.draw({ lines: [{ id: item.name, name: item.name, colour: 1, marks: [], beside: {}, series: { "share of lists": [rounds, item.places.map(([, v]) => v)] } }],
      total: Math.max(...rounds, 2), done: 1, log: false, smooth: false, lacks: [] });
    words.textContent = last ? `${item.name}: among the first ten of ${Math.round(100 * last[1])}% of those who have not met it; its median place is ${last[2]}.`
      : `${item.name}: everybody has met it.`;
  };
  return { node, draw };
}
