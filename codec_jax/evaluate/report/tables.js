/* Tables: sortable by mouse and keyboard, numbers aligned at their points. */

/* columns: {title, unit, hint, arrow, text, value(row) -> number or text, cell(row) -> node or text}. rows: anything.
   shown: how many rows at first. */
function sortable(caption, columns, rows, shown = 200) {
  const state = { column: -1, descending: false, all: false };
  const body = el("tbody");
  const heads = columns.map((column, place) => {
    const button = el("button", { type: "button", onclick: () => sort(place), title: column.hint },
      column.text ? null : el("span", { class: "order", "aria-hidden": "true" }),
      el("span", { class: column.text ? "" : "name" }, column.title),
      column.arrow ? el("span", { class: "arrow", "aria-hidden": "true" }, column.arrow) : null,
      column.text ? el("span", { class: "order", "aria-hidden": "true" }) : null,
      el("span", { class: "unit" }, column.unit || "\u00a0"));
    return el("th", { scope: "col", class: column.text ? "text" : "number", "aria-sort": "none" }, button);
  });
  const more = el("button", { type: "button", class: "more", onclick: () => { state.all = true; draw(); } });
  const table = el("table", {}, el("caption", { class: "unseen" }, caption), el("thead", {}, el("tr", {}, heads)), body);

  function sort(place) {
    const first = !columns[place].text && columns[place].better !== "lower";
    state.descending = state.column === place ? !state.descending : first;
    state.column = place;
    heads.forEach((head, i) => {
      head.setAttribute("aria-sort", i !== place ? "none" : state.descending ? "descending" : "ascending");
    });
    draw();
  }

  function sorted() {
    if (state.column < 0) return rows;
    const value = columns[state.column].value;
    const missing = (v) => v === null || v === undefined || v === "";
    return [...rows].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (missing(x) || missing(y)) return missing(x) - missing(y);
      const order = typeof x === "string" ? x.localeCompare(y, undefined, { numeric: true }) : x - y;
      return state.descending ? -order : order;
    });
  }

  function draw() {
    const found = sorted();
    const visible = state.all ? found : found.slice(0, shown);
    body.replaceChildren(...visible.map((row) => el("tr", {}, columns.map((column, place) => {
      const cell = column.cell(row);
      return place === 0
        ? el("th", { scope: "row" }, cell)
        : el("td", { class: column.text ? "text" : "number" }, cell);
    }))));
    more.textContent = `Show all ${found.length}`;
    more.hidden = visible.length === found.length;
  }

  draw();
  return el("div", {}, scrolling(caption, table), more);
}

/* A figure with its interval below, as the cells of means have it. */
function interval(found, digits, mark = "", sign = false) {
  if (!found || found[0] === null) return el("span", { class: "none" }, "–");
  const plus = sign && found[0] > 0 ? "+" : "";
  return el("span", { class: `figure ${mark}`, title: `n = ${found[3]}` },
    el("span", { class: "mean" }, plus + number(found[0], digits)),
    el("span", { class: "range" }, range(found, digits)));
}

function metricColumn(name, values, cell, extra = {}) {
  const metric = METRIC[name];
  return {
    title: name, unit: metric.unit, arrow: arrow(metric), better: metric.better,
    hint: [metric.how, spoken(metric)].filter(Boolean).join(" "),
    value: (row) => values(row)?.[0] ?? null, cell, ...extra,
  };
}

/* ---- means ---- */

/* {metric: {best, tied}} among what is to be compared: a tie is where the paired difference to the best covers 0. */
function bestOf(means, paired) {
  const found = {};
  for (const name of QUALITY) {
    const metric = METRIC[name];
    const there = NAMES.filter((system) => !isAnchor(system) && means[system]?.[name]?.[0] != null);
    if (!metric.better || there.length < 2) continue;
    const sign = metric.better === "higher" ? 1 : -1;
    const best = there.reduce((a, b) => (sign * means[b][name][0] > sign * means[a][name][0] ? b : a));
    const tied = there.filter((system) => {
      const gap = paired && DATA.differences[best]?.[system]?.[name];
      return system !== best && gap && gap[1] !== null && gap[1] <= 0 && gap[2] >= 0;
    });
    found[name] = { best, tied };
  }
  return found;
}

function meansTable(condition) {
  const means = DATA.means[condition];
  const best = bestOf(means, condition === DATA.condition);
  const rows = NAMES.filter((name) => means[name]);
  const names = ["bits_per_second", ...ORDERED, ...DATA.metrics.map((m) => m.name)]
    .filter((name, place, all) => METRIC[name] && all.indexOf(name) === place)
    .filter((name) => rows.some((system) => means[system][name]?.[0] != null));
  const columns = names.map((name) => {
    const values = (system) => means[system][name];
    const digits = digitsOf(rows, (system) => values(system)?.[0]);
    const mark = (system) => (best[name]?.best === system ? "best" : best[name]?.tied.includes(system) ? "tied" : "");
    return metricColumn(name, values, (system) => interval(values(system), digits, mark(system)));
  });
  const first = { title: "system", text: true, hint: "by name", value: (system) => system, cell: systemName };
  return sortable(`Means of all systems, ${condition}`, [first, ...columns], rows);
}

function meansSection() {
  const holder = el("div", {}, meansTable(DATA.condition));
  const choice = DATA.conditions.length < 2 ? null
    : chooser("Condition", DATA.conditions, DATA.condition, (name) => holder.replaceChildren(meansTable(name)));
  section("means", "Means",
    "Every figure is a mean over utterances with its 95 % interval below. Choose a heading to sort, rest on it to read how "
    + "the number came about.", choice, holder,
    el("p", { class: "key" }, el("span", { class: "figure best" }, el("span", { class: "mean" }, "best")),
      " of the systems that are no anchors, ", el("span", { class: "figure tied" }, el("span", { class: "mean" }, "tied")),
      " with it: their paired difference has an interval that holds zero. Rates differ, so see the next plots for who is "
      + "better at what rate."));
}

/* ---- differences ---- */

function differencesTable(chosen) {
  const others = NAMES.filter((name) => name !== chosen && DATA.differences[name]?.[chosen]);
  const names = [...ORDERED, "bits_per_second"].filter(
    (name) => METRIC[name] && others.some((other) => DATA.differences[other][chosen][name]?.[0] != null));
  const columns = names.map((name) => {
    const values = (system) => DATA.differences[system][chosen][name];
    const digits = digitsOf(others, (system) => values(system)?.[0]);
    const verdict = (found) => {
      if (!found || found[1] === null || METRIC[name].better === "") return "";
      const sign = METRIC[name].better === "higher" ? 1 : -1;
      const clear = found[1] > 0 ? 1 : found[2] < 0 ? -1 : 0;
      return clear === 0 ? "" : clear * sign > 0 ? "better" : "worse";
    };
    return metricColumn(name, values, (system) => interval(values(system), digits, verdict(values(system)), true));
  });
  const first = { title: "system", text: true, hint: "by name", value: (system) => system, cell: systemName };
  return sortable(`Paired differences to ${chosen}`, [first, ...columns], others);
}

function differencesSection() {
  const names = NAMES.filter((name) => DATA.differences[name]);
  if (names.length < 2) return;
  const start = names.find((name) => SYSTEM[name].kind === "model") ?? names.find((name) => !isAnchor(name)) ?? names[0];
  const holder = el("div", {}, differencesTable(start));
  section("differences", "Differences",
    "Each system less the chosen one, utterance by utterance, so that hard utterances do not widen the interval. ",
    chooser("Less", names, start, (name) => holder.replaceChildren(differencesTable(name))), holder,
    el("p", { class: "key" }, el("span", { class: "figure better" }, el("span", { class: "mean" }, "better")), " and ",
      el("span", { class: "figure worse" }, el("span", { class: "mean" }, "worse")),
      " than the chosen system; unmarked where the interval holds zero."));
}

/* ---- utterances ---- */

function utterancesTable(system, condition, filter) {
  const values = DATA.rows.values[system];
  const rows = DATA.rows.utterances.map((one, place) => ({ ...one, place }))
    .filter((one) => one.condition === condition && `${one.name} ${one.language}`.includes(filter));
  const names = ["bits_per_second", ...ORDERED, "real_time_factor"].filter(
    (name) => values[name] && rows.some((row) => values[name][row.place] !== null));
  const listenable = new Map(DATA.audio.examples.map((example, place) => [example.utterance, place]));
  const title = (row) => (condition === DATA.condition && listenable.has(row.name)
    ? el("button", { type: "button", class: "link", title: "listen", onclick: () => listenTo(listenable.get(row.name), system) },
      row.name, " ♪") : row.name);
  const columns = [
    { title: "utterance", text: true, hint: "by name", value: (row) => row.name, cell: title },
    DATA.languages.length > 1
      ? { title: "language", text: true, hint: "by language", value: (row) => row.language, cell: (row) => row.language } : null,
    { title: "seconds", unit: "s", hint: "length", value: (row) => row.seconds, cell: (row) => number(row.seconds, 2) },
    ...names.map((name) => {
      const digits = digitsFor(rows.map((row) => values[name][row.place]));
      return metricColumn(name, (row) => [values[name][row.place]], (row) => number(values[name][row.place], digits));
    }),
  ];
  return sortable(`Utterances through ${system}`, columns.filter(Boolean), rows, 50);
}

function utterancesSection() {
  const chosen = { system: NAMES.find((name) => SYSTEM[name].kind === "model") ?? NAMES[0], condition: DATA.condition, filter: "" };
  const holder = el("div");
  const draw = (change = {}) => {
    Object.assign(chosen, change);
    holder.replaceChildren(utterancesTable(chosen.system, chosen.condition, chosen.filter));
  };
  draw();
  const conditions = [...new Set(DATA.rows.utterances.map((one) => one.condition))];
  section("utterances", "Utterances", DATA.rows.left_out
    ? `The first ${DATA.rows.utterances.length} are here; ${DATA.rows.left_out} more are in utterances.csv beside this page.` : "",
  el("div", { class: "controls" }, chooser("System", NAMES, chosen.system, (system) => draw({ system })),
    conditions.length > 1 ? chooser("Condition", conditions, chosen.condition, (condition) => draw({ condition })) : null,
    el("label", { class: "chooser" }, el("span", {}, "Name holds"),
      el("input", { type: "search", oninput: (event) => draw({ filter: event.target.value.trim() }) }))), holder);
}

/* ---- codes ---- */

function codesSection() {
  const names = NAMES.filter((name) => DATA.codes[name]?.entropy.length);
  if (!names.length) return;
  const bar = (share, text) => el("span", { class: "bar" },
    el("span", { class: "fill", style: `width:${(100 * share).toFixed(1)}%` }), el("span", { class: "value" }, text));
  const one = (name) => {
    const { sizes, entropy, usage, utilisation } = DATA.codes[name];
    const rows = sizes.map((size, place) => el("tr", {}, el("th", { scope: "row" }, `${place + 1}`),
      el("td", { class: "number" }, `${size}`),
      el("td", {}, bar(entropy[place] / Math.log2(size), `${number(entropy[place], 2)} of ${number(Math.log2(size), 2)} bits`)),
      el("td", {}, bar(usage[place], `${number(100 * usage[place], 1)} %`))));
    return el("details", { open: names.indexOf(name) < 2 },
      el("summary", {}, systemName(name), el("span", { class: "aside" },
        ` ${count(sizes.length, "codebook")}, ${number(100 * utilisation, 1)} % of the bits used`)),
      scrolling(`Use of the codebooks of ${name}`, el("table", { class: "codes" }, el("thead", {}, el("tr", {},
        ["codebook", "size", "entropy of a token", "codewords used"].map((title, place) => el("th", { scope: "col", class: place === 1 ? "number" : "text" }, title)))),
      el("tbody", {}, rows))));
  };
  section("codes", "Use of codes",
    "Entropy of the tokens of each codebook, counted over all utterances together, beside its maximum; and the share of its "
    + "codewords that occurred at all. Few utterances use few codewords of a large codebook.", names.map(one));
}
