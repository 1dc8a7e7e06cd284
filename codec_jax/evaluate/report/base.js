"use strict";
/* What every part of the page uses: the figures, elements, numbers, kinds and colours of systems. */

const DATA = JSON.parse(document.getElementById("data").textContent);
const METRIC = Object.fromEntries(DATA.metrics.map((metric) => [metric.name, metric]));
const SYSTEM = Object.fromEntries(DATA.systems.map((system) => [system.name, system]));
const NAMES = DATA.systems.map((system) => system.name);
const REFERENCE = "original";
const MAIN = ["pesq_wb", "estoi", "stoi", "si_sdr", "mel_distance_esc", "mel_distance_taae", "wer", "pesq_nb"];
const QUALITY = DATA.metrics.filter((metric) => !metric.cost).map((metric) => metric.name);
const ORDERED = [...MAIN.filter((name) => QUALITY.includes(name)), ...QUALITY.filter((name) => !MAIN.includes(name))];

/* el("td", {class: "number"}, "3.1"): attributes as in HTML, on... for listeners; children are nodes or text. */
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  return fill(node, attributes, children);
}

function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  return fill(node, attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/* ---- numbers ---- */

/* Digits behind the point that suit all of these values, so that a column's points stand below each other. */
function digitsFor(values) {
  const sizes = values.filter((value) => value !== null && value !== undefined && Number.isFinite(value)).map(Math.abs);
  const largest = Math.max(0, ...sizes);
  if (largest >= 1000) return 0;
  if (largest >= 100) return 1;
  if (largest >= 10) return 2;
  return 3;
}

/* Of systems: the original apart, whose figures are beyond all others. */
function digitsOf(systems, value) {
  return digitsFor(systems.filter((system) => system !== REFERENCE).map(value));
}

function number(value, digits = 3) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const text = value.toFixed(digits);
  return (Number(text) === 0 ? text.replace("-", "") : text).replace("-", "−");
}

function withUnit(metric, text) {
  return metric.unit ? `${text} ${metric.unit}` : text;
}

function range(interval, digits) {
  if (!interval || interval[1] === null || interval[2] === null || interval[1] === interval[2]) return "";
  return `${number(interval[1], digits)} to ${number(interval[2], digits)}`;
}

function arrow(metric) {
  return metric.better === "higher" ? "↑" : metric.better === "lower" ? "↓" : "";
}

function spoken(metric) {
  return metric.better ? `${metric.better} is better` : "";
}

function bits(value) {
  if (value >= 10000) return `${number(value / 1000, 0)}k`;
  return value >= 1000 ? `${+(value / 1000).toFixed(1)}k` : `${+value.toFixed(0)}`;
}

function clock(seconds) {
  return `${Math.floor(seconds / 60)}:${(seconds % 60).toFixed(1).padStart(4, "0")}`;
}

function count(many, one, more = `${one}s`) {
  return `${many} ${many === 1 ? one : more}`;
}

/* ---- systems ---- */

/* Families in the order of colours: models first. Anchors and the original are grey. */
const FAMILIES = [...new Set(
  ["model", "peer"].flatMap((kind) => DATA.systems.filter((s) => s.kind === kind).map((s) => s.family)),
)];
const SHAPES = ["circle", "square", "triangle", "diamond", "wedge", "cross"];

function isAnchor(name) {
  return SYSTEM[name].kind === "anchor" || SYSTEM[name].kind === "original";
}

function colour(family) {
  const place = FAMILIES.indexOf(family);
  return place < 0 ? "var(--muted)" : `var(--series-${place % 7})`;
}

function shape(family) {
  return SHAPES[Math.max(0, FAMILIES.indexOf(family)) % SHAPES.length];
}

/* A marker of one family around (x, y). */
function marker(family, x, y, size = 4.5) {
  const paths = {
    circle: `M${-size} 0a${size} ${size} 0 1 0 ${2 * size} 0a${size} ${size} 0 1 0 ${-2 * size} 0`,
    square: `M${-size * 0.9} ${-size * 0.9}h${size * 1.8}v${size * 1.8}h${-size * 1.8}z`,
    triangle: `M0 ${-size * 1.15}L${size * 1.1} ${size * 0.85}H${-size * 1.1}z`,
    diamond: `M0 ${-size * 1.25}L${size * 1.25} 0L0 ${size * 1.25}L${-size * 1.25} 0z`,
    wedge: `M0 ${size * 1.15}L${size * 1.1} ${-size * 0.85}H${-size * 1.1}z`,
    cross: `M${-size} ${-size}L${size} ${size}M${-size} ${size}L${size} ${-size}`,
  };
  const kind = shape(family);
  const style = kind === "cross" ? `stroke:${colour(family)};stroke-width:2.2;fill:none` : `fill:${colour(family)}`;
  return svg("path", { d: paths[kind], transform: `translate(${x} ${y})`, style, class: "marker" });
}

function swatch(family) {
  return svg("svg", { width: 14, height: 14, viewBox: "-7 -7 14 14", "aria-hidden": "true", class: "swatch" },
    marker(family, 0, 0));
}

/* A name that breaks before its rate, where it has to. */
function breaking(name) {
  const [family, ...rate] = name.split(/(?=@|_(?=\d))/);
  return [family, ...rate.flatMap((part) => [el("wbr"), part])];
}

function systemName(name) {
  const system = SYSTEM[name];
  return el("span", { class: `system ${system.kind}`, title: system.label },
    isAnchor(name) ? "" : swatch(system.family), el("span", {}, breaking(name)));
}

/* ---- controls ---- */

function chooser(label, options, value, changed) {
  const select = el("select", { onchange: (event) => changed(event.target.value) },
    options.map((option) => el("option", { value: option, selected: option === value }, option || "all")));
  return el("label", { class: "chooser" }, el("span", {}, label), select);
}

/* A section of the page, in its navigation; nothing where there is nothing to show. */
function section(id, title, intro, ...content) {
  document.getElementById("nav").append(el("a", { href: `#${id}` }, title));
  const node = el("section", { id, "aria-labelledby": `${id}-title` },
    el("h2", { id: `${id}-title` }, title), intro ? el("p", { class: "intro" }, intro) : null, content);
  document.getElementById("main").append(node);
  return node;
}

function scrolling(label, table) {
  return el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": label }, table);
}
