/* Plots, drawn as SVG: quality over rate, over seconds, and by group, with intervals as bars. */

const WIDTH = 400;
const HEIGHT = 280;
const EDGE = { left: 46, right: 14, top: 14, bottom: 40 };
const NAMED = 84; // pixels for the names of anchors, right of the plot

function niceTicks(low, high, wanted = 5) {
  const rough = (high - low) / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= rough) ?? 10 * power;
  const ticks = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high + 1e-9 * step; tick += step) ticks.push(tick);
  return { ticks, digits: Math.max(0, -Math.floor(Math.log10(step) + 1e-9) + (step / power === 2.5 ? 1 : 0)) };
}

function logTicks(low, high) {
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
    for (const digit of [1, 2, 5]) ticks.push(digit * 10 ** power);
  }
  const inside = ticks.filter((tick) => tick >= low * 0.999 && tick <= high * 1.001);
  return inside.length > 6 ? inside.filter((tick) => !`${tick}`.startsWith("5")) : inside;
}

/* Where values of these limits lie between two ends, in pixels. */
function scale(low, high, from, to, log = false) {
  const f = log ? Math.log : (value) => value;
  return (value) => from + ((f(value) - f(low)) / (f(high) - f(low) || 1)) * (to - from);
}

function limits(values, share = 0.06) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const room = (high - low || Math.abs(high) * 0.1 || 1) * share;
  return [low - room, high + room];
}

function whisker(x, y1, y2, family) {
  return svg("path", { d: `M${x} ${y1}V${y2}M${x - 3} ${y1}h6M${x - 3} ${y2}h6`, class: "whisker", style: `stroke:${colour(family)}` });
}

/* series: {family, points: [{x, interval, name}]}. levels: {name, value}, drawn across where they are near. */
function curves(metric, series, levels, label, text) {
  const points = series.flatMap((one) => one.points);
  const ys = points.flatMap((p) => [p.interval[0], p.interval[1] ?? p.interval[0], p.interval[2] ?? p.interval[0]]);
  const [bottom, top] = limits(ys);
  const near = levels.filter((l) => l.value >= bottom - (top - bottom) && l.value <= top + (top - bottom));
  const far = levels.filter((l) => !near.includes(l));
  const [low, high] = limits([...ys, ...near.map((l) => l.value)]);
  const xs = points.map((p) => p.x);
  const [left, right] = [Math.min(...xs) / 1.25, Math.max(...xs) * 1.25];
  const end = WIDTH - (near.length ? NAMED : EDGE.right);
  const x = scale(left, right, EDGE.left, end, true);
  const y = scale(low, high, HEIGHT - EDGE.bottom, EDGE.top);
  const { ticks, digits } = niceTicks(low, high);
  const parts = [
    ticks.map((tick) => [svg("line", { x1: EDGE.left, x2: end, y1: y(tick), y2: y(tick), class: "grid" }),
      svg("text", { x: EDGE.left - 7, y: y(tick) + 4, class: "tick end" }, number(tick, digits))]),
    logTicks(left, right).map((tick) => [
      svg("line", { x1: x(tick), x2: x(tick), y1: HEIGHT - EDGE.bottom, y2: HEIGHT - EDGE.bottom + 4, class: "axis" }),
      svg("text", { x: x(tick), y: HEIGHT - EDGE.bottom + 17, class: "tick middle" }, text(tick))]),
    svg("line", { x1: EDGE.left, x2: end, y1: HEIGHT - EDGE.bottom, y2: HEIGHT - EDGE.bottom, class: "axis" }),
    svg("text", { x: (EDGE.left + end) / 2, y: HEIGHT - 6, class: "label middle" }, label),
    levelLines(near, y, end), series.map((one) => curve(one, x, y, metric)),
  ];
  const said = series.map((one) => one.points.map((p) => `${p.name} ${number(p.interval[0])}`).join(", ")).join("; ");
  return el("figure", { class: "plot" },
    el("figcaption", {}, el("code", {}, metric.name), " ", arrow(metric), metric.unit ? el("span", { class: "unit" }, ` ${metric.unit}`) : null),
    svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${metric.name}, ${spoken(metric)}: ${said}` }, parts),
    far.length ? el("p", { class: "beyond" }, "Beyond the plot: ", far.map((l) => `${l.name} ${number(l.value, digitsFor([l.value]))}`).join(", ")) : null);
}

function curve(one, x, y, metric) {
  const sorted = [...one.points].sort((a, b) => a.x - b.x);
  const line = sorted.map((p, place) => `${place ? "L" : "M"}${x(p.x)} ${y(p.interval[0])}`).join("");
  return svg("g", {},
    svg("path", { d: line, class: "curve", style: `stroke:${colour(one.family)}` }),
    sorted.map((p) => svg("g", {},
      svg("title", {}, `${p.name}: ${withUnit(metric, number(p.interval[0]))} (${range(p.interval, 3)})`),
      p.interval[1] === null ? null : whisker(x(p.x), y(p.interval[1]), y(p.interval[2]), one.family),
      marker(one.family, x(p.x), y(p.interval[0])))));
}

/* Lines across for anchors, up to `end`, and their names right of it, kept apart. */
function levelLines(levels, y, end) {
  const sorted = [...levels].sort((a, b) => y(a.value) - y(b.value));
  const places = sorted.map((level) => y(level.value));
  for (let i = 1; i < places.length; i += 1) places[i] = Math.max(places[i], places[i - 1] + 13);
  for (let i = places.length - 1, most = HEIGHT - EDGE.bottom; i >= 0; i -= 1, most -= 13) {
    places[i] = Math.min(places[i], most);
  }
  return sorted.map((level, i) => {
    const at = y(level.value);
    return svg("g", {}, svg("title", {}, `${level.name}: ${number(level.value, digitsFor([level.value]))}`),
      svg("line", { x1: EDGE.left, x2: end, y1: at, y2: at, class: "level" }),
      svg("path", { d: `M${end} ${at}L${end + 8} ${places[i]}`, class: "leader" }),
      svg("text", { x: end + 11, y: places[i] + 4, class: "tick anchor" }, level.name));
  });
}

function legend(families, anchors) {
  return el("ul", { class: "legend" },
    families.map((family) => el("li", {}, swatch(family), family)),
    anchors ? el("li", {}, svg("svg", { width: 22, height: 14, viewBox: "0 0 22 14", "aria-hidden": "true" },
      svg("line", { x1: 0, x2: 22, y1: 7, y2: 7, class: "level" })), "anchors and the original") : null);
}

/* ---- quality over rate ---- */

function rateSection() {
  const means = DATA.means[DATA.condition];
  const rated = (name) => means[name]?.bits_per_second?.[0];
  const coded = NAMES.filter((name) => !isAnchor(name) && rated(name));
  if (!coded.length) return;
  const plot = (name) => {
    const points = (family) => coded
      .filter((system) => SYSTEM[system].family === family && means[system][name]?.[0] != null)
      .map((system) => ({ x: rated(system), interval: means[system][name], name: system }));
    const series = FAMILIES.map((family) => ({ family, points: points(family) })).filter((one) => one.points.length);
    const levels = NAMES.filter((system) => !coded.includes(system) && means[system]?.[name]?.[0] != null)
      .map((system) => ({ name: system, value: means[system][name][0] }));
    return series.length ? curves(METRIC[name], series, levels, "measured bit/s", bits) : null;
  };
  const main = ORDERED.filter((name) => MAIN.includes(name)).slice(0, 6);
  const rest = ORDERED.filter((name) => !main.includes(name)).map(plot).filter(Boolean);
  section("rate", "Quality over rate",
    "Measured bits per second on a logarithmic axis; bars are 95 % intervals of the mean over utterances.",
    legend(FAMILIES.filter((family) => coded.some((name) => SYSTEM[name].family === family)), true),
    el("div", { class: "plots" }, main.map(plot)),
    rest.length ? el("details", {}, el("summary", {}, `${count(rest.length, "more metric")}`), el("div", { class: "plots" }, rest)) : null);
}

/* ---- by group ---- */

/* One panel per group: systems below each other, a dot and its interval on one axis for all. */
function dots(name, groups) {
  const metric = METRIC[name];
  const shown = NAMES.filter((system) => Object.values(groups).some((there) => there[system]?.[name]?.[0] != null));
  const compared = shown.filter((system) => system !== REFERENCE);
  const all = Object.values(groups).flatMap((there) => compared.flatMap((s) => (there[s]?.[name] ?? []).slice(0, 3)))
    .filter((value) => value !== null && value !== undefined);
  if (!all.length) return el("p", { class: "none" }, "Not defined here.");
  const [low, high] = limits(all);
  const edge = { left: Math.min(190, 14 + 6.6 * Math.max(...compared.map((s) => s.length))), right: 16 };
  const height = 22 * compared.length + 44;
  const x = scale(low, high, edge.left, WIDTH - edge.right);
  const { ticks, digits } = niceTicks(low, high, 4);
  return Object.entries(groups).map(([group, there]) => {
    const rows = compared.map((system, place) => {
      const at = 16 + 22 * place;
      const found = there[system]?.[name];
      const family = SYSTEM[system].family;
      return [svg("text", { x: 0, y: at + 4, class: "tick row" }, system),
        svg("line", { x1: edge.left, x2: WIDTH - edge.right, y1: at, y2: at, class: "grid" }),
        !found || found[0] === null ? svg("text", { x: edge.left, y: at + 4, class: "tick" }, "–") : svg("g", {},
          svg("title", {}, `${system}: ${withUnit(metric, number(found[0]))} (${range(found, 3)}), n = ${found[3]}`),
          found[1] === null ? null : svg("path", { d: `M${x(found[1])} ${at}H${x(found[2])}M${x(found[1])} ${at - 3}v6M${x(found[2])} ${at - 3}v6`, class: "whisker", style: `stroke:${colour(family)}` }),
          marker(family, x(found[0]), at, 4.2))];
    });
    const foot = ticks.map((tick) => svg("text", { x: x(tick), y: height - 8, class: "tick middle" }, number(tick, digits)));
    const many = Math.max(...NAMES.map((system) => there[system]?.[name]?.[3] ?? 0));
    return el("figure", { class: "plot" }, el("figcaption", {}, group, el("span", { class: "unit" }, ` ${count(many, "utterance")}`)),
      svg("svg", { viewBox: `0 0 ${WIDTH} ${height}`, role: "img", "aria-label": `${name} for ${group}` }, rows, foot));
  });
}

function groupsTable(name, groups, kind) {
  const metric = METRIC[name];
  const titles = Object.keys(groups);
  const rows = NAMES.filter((system) => titles.some((title) => groups[title][system]));
  const digits = Math.min(...titles.map((title) => digitsOf(rows, (system) => groups[title][system]?.[name]?.[0])));
  const columns = titles.map((title) => ({
    title, unit: metric.unit, hint: `${name} of ${title}`, better: metric.better,
    value: (system) => groups[title][system]?.[name]?.[0] ?? null,
    cell: (system) => interval(groups[title][system]?.[name], digits),
  }));
  const first = { title: "system", text: true, hint: "by name", value: (system) => system, cell: systemName };
  return sortable(`${name} per ${kind}`, [first, ...columns], rows);
}

function groupSection(id, title, intro, groups, kind) {
  if (!groups) return;
  const holder = el("div");
  const names = [...ORDERED, "bits_per_second"].filter((name) => METRIC[name]);
  const draw = (name) => holder.replaceChildren(...[
    lengths(name, groups), el("div", { class: "plots" }, dots(name, groups)),
    el("details", {}, el("summary", {}, "As a table"), groupsTable(name, groups, kind))].filter(Boolean));
  draw(names[0]);
  section(id, title, intro, chooser("Metric", names, names[0], draw), holder);
}

/* Quality over the seconds of length@SECONDS, where there are several. */
function lengths(name, groups) {
  const there = Object.keys(groups).filter((group) => group.startsWith("length@"));
  if (there.length < 2) return null;
  const compared = NAMES.filter((system) => !isAnchor(system));
  const series = compared.map((system) => ({
    family: SYSTEM[system].family,
    points: there.filter((group) => groups[group][system]?.[name]?.[0] != null)
      .map((group) => ({ x: Number(group.slice(7)), interval: groups[group][system][name], name: `${system}, ${group}` })),
  })).filter((one) => one.points.length);
  if (!series.length) return null;
  return el("div", {}, legend([...new Set(series.map((one) => one.family))], false),
    el("div", { class: "plots" }, curves(METRIC[name], series, [], "seconds of each utterance", (tick) => `${+tick.toFixed(1)}`)));
}
