/* The page, from its head to its foot. */

function headSection() {
  const kinds = (kind, one, more) => {
    const found = new Set(DATA.systems.filter((s) => s.kind === kind).map((s) => s.family));
    return found.size ? count(found.size, one, more) : "";
  };
  const systems = [kinds("model", "model"), kinds("peer", "other codec"), "anchors"].filter(Boolean).join(", ");
  const languages = DATA.languages.length > 1 ? ` in ${DATA.languages.join(", ")}` : "";
  const machine = DATA.machines.at(-1);
  const list = (values) => el("ul", {}, Object.entries(values).map(([name, value]) => el("li", {}, el("b", {}, name), ` ${value}`)));
  const facts = {
    Audio: `${DATA.settings.audio}: ${count(DATA.utterances, "utterance")}, ${number(DATA.seconds, 0)} s${languages}`,
    Models: Object.keys(DATA.settings.models).length ? list(DATA.settings.models) : null,
    Conditions: DATA.conditions.length > 1 ? `${DATA.conditions.join(", ")}; means are of ${DATA.condition}` : DATA.condition,
    "Measured on": DATA.machines.map((one) => el("div", {}, `${one.cpu}, ${count(one.cores, "core")}; JAX on ${one.device}`
      + `${one.devices > 1 ? ` × ${one.devices}` : ""}; ${one.system}`)),
    Versions: [`Python ${machine.python}`, ...Object.entries(machine.versions).map(([name, version]) => `${name} ${version}`)].join(", "),
  };
  fill(document.getElementById("head"), {}, [el("h1", {}, "Codecs compared"),
    el("p", { class: "lead" }, `${systems[0].toUpperCase()}${systems.slice(1)} on ${count(DATA.utterances, "utterance")}.`),
    el("dl", { class: "facts" }, Object.entries(facts).filter(([, value]) => value)
      .map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)))),
    DATA.remarks.length ? el("ul", { class: "remarks" }, DATA.remarks.slice(0, 12).map((text) => el("li", {}, text))) : null]);
}

function notesSection() {
  if (!DATA.notes.length && !DATA.unread.length) return;
  const items = DATA.notes.map((one) => el("details", {},
    el("summary", {}, el("span", { class: "aside" }, `${count(one.rows, "row")}: `), one.note),
    el("p", {}, el("b", {}, "Systems "), one.systems.join(", ")),
    el("p", {}, el("b", {}, "Utterances "), one.utterances.join("; "), one.rows > one.utterances.length * one.systems.length ? " and others" : "")));
  section("notes", "Not scored",
    "What is not defined stays out of the means above, and n says how many were left: a silent reference has no SI-SDR, "
    + "and an utterance without speech no PESQ or STOI.",
    DATA.unread.length ? el("p", {}, el("b", {}, "Could not be read: "), DATA.unread.join(", ")) : null, items);
}

function howSection() {
  const unit = (metric) => [metric.unit, spoken(metric)].filter(Boolean).join(", ");
  section("how", "How the numbers came about", "",
    el("p", {}, `Intervals are 95 % of a studentised bootstrap over utterances (${DATA.intervals.draws} resamples): of an equally `
      + "drawn set of utterances, 95 of 100 such intervals would hold the true mean. With fewer than three utterances there is none. "
      + "Differences are paired, utterance by utterance. What a codec delays is taken off before it is scored, and every "
      + "system is scored against the input that it was given, noise and echo included, at the input's rate."),
    el("dl", { class: "how" }, DATA.metrics.map((metric) => el("div", {}, el("dt", {}, el("code", {}, metric.name),
      el("span", { class: "unit" }, unit(metric))), el("dd", {}, metric.how)))),
    el("h3", {}, "Systems"),
    el("dl", { class: "how" }, DATA.systems.map((system) => el("div", {}, el("dt", {}, systemName(system.name)),
      el("dd", {}, [system.label, system.sample_rate ? `works at ${system.sample_rate} Hz` : "",
        system.nominal_bps ? `${number(system.nominal_bps, 0)} bit/s nominal` : ""].filter(Boolean).join("; "))))));
}

headSection();
meansSection();
rateSection();
differencesSection();
groupSection("languages", "Languages", "", DATA.groups.language, "language");
groupSection("conditions", "Conditions", "Every codec is judged against what it was given: noise is to be kept, not removed.",
  DATA.groups.condition, "condition");
groupSection("lengths", "Lengths", "", DATA.groups.length, "length");
listenSection();
utterancesSection();
codesSection();
notesSection();
howSection();
