/* Players: every system of an utterance starts at once, and switching is a matter of which is heard. */

const FADE = 0.008;
const player = {
  context: null, example: -1, chosen: REFERENCE, systems: [], buffers: {}, spectra: {}, gains: {}, sources: [],
  playing: false, looping: false, offset: 0, began: 0, seconds: 0, loading: 0,
};

function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0)).buffer;
}

/* Decodes at the clip's own rate, so that samples are those of the file. */
async function decoded(example, system) {
  const node = document.getElementById(`audio-${example}-${NAMES.indexOf(system)}`);
  const rate = DATA.audio.examples[example].sample_rate;
  return new OfflineAudioContext(1, 1, rate).decodeAudioData(bytesOf(node.textContent));
}

function position() {
  if (!player.playing) return player.offset;
  const spent = player.offset + Math.max(0, player.context.currentTime - player.began);
  return player.looping && player.seconds ? spent % player.seconds : Math.min(spent, player.seconds);
}

function start() {
  if (player.playing || !player.seconds) return;
  player.context ??= new AudioContext();
  player.context.resume();
  if (player.offset >= player.seconds - 0.01) player.offset = 0;
  player.began = player.context.currentTime + 0.03;
  player.gains = {};
  player.sources = player.systems.map((system) => {
    const source = player.context.createBufferSource();
    source.buffer = player.buffers[system];
    source.loop = player.looping;
    const gain = player.context.createGain();
    gain.gain.value = system === player.chosen ? 1 : 0;
    source.connect(gain).connect(player.context.destination);
    source.start(player.began, player.offset);
    player.gains[system] = gain;
    return source;
  });
  player.playing = true;
  drawTransport();
  requestAnimationFrame(follow);
}

function stop(at = position()) {
  player.sources.forEach((source) => source.stop());
  player.sources = [];
  player.offset = at;
  player.playing = false;
  drawTransport();
}

function seek(seconds) {
  const was = player.playing;
  if (was) stop();
  player.offset = Math.min(Math.max(0, seconds), player.seconds);
  if (was) start();
  drawTransport();
}

function follow() {
  if (!player.playing) return;
  if (!player.looping && position() >= player.seconds) stop(0);
  else requestAnimationFrame(follow);
  drawTransport();
}

/* Another system at the same sample: both sound already, one fades out as the other fades in. */
function hear(system) {
  if (!player.systems.includes(system)) return;
  player.chosen = system;
  if (player.playing) {
    const now = player.context.currentTime;
    for (const [name, gain] of Object.entries(player.gains)) {
      gain.gain.cancelScheduledValues(now);
      gain.gain.setValueAtTime(gain.gain.value, now);
      gain.gain.linearRampToValueAtTime(name === system ? 1 : 0, now + FADE);
    }
  }
  drawChoice();
}

function toggle() {
  if (player.playing) stop();
  else start();
}

/* ---- one utterance ---- */

async function load(example) {
  if (player.playing) stop(0);
  const ticket = (player.loading += 1);
  const there = NAMES.filter((_, place) => document.getElementById(`audio-${example}-${place}`));
  Object.assign(player, { example, systems: there, buffers: {}, spectra: {}, offset: 0, seconds: 0 });
  if (!there.includes(player.chosen)) player.chosen = there[0];
  drawExample();
  const found = await Promise.all(there.map((system) => decoded(example, system)));
  if (ticket !== player.loading) return;
  there.forEach((system, place) => { player.buffers[system] = found[place]; });
  player.seconds = Math.min(...found.map((buffer) => buffer.duration));
  drawTransport();
  drawChoice();
}

async function listenTo(example, system) {
  if (system) player.chosen = system;
  document.getElementById("listen").scrollIntoView();
  await load(example);
  document.getElementById("play").focus({ preventScroll: true });
}

function spectrumOf(system) {
  const buffer = player.buffers[system];
  player.spectra[system] ??= spectrogram(buffer.getChannelData(0), buffer.sampleRate);
  return player.spectra[system];
}

/* ---- what is seen of it ---- */

function drawTransport() {
  const play = document.getElementById("play");
  play.textContent = player.playing ? "Pause" : "Play";
  play.disabled = !player.seconds;
  const seeker = document.getElementById("seek");
  seeker.max = player.seconds.toFixed(3);
  seeker.value = position().toFixed(3);
  seeker.setAttribute("aria-valuetext", `${position().toFixed(1)} seconds`);
  document.getElementById("time").textContent = `${clock(position())} / ${clock(player.seconds)}`;
  const share = player.seconds ? position() / player.seconds : 0;
  document.querySelectorAll(".cursor").forEach((cursor) => { cursor.style.left = `${100 * share}%`; });
}

function drawChoice() {
  document.querySelectorAll("#choices button").forEach((button) => {
    button.setAttribute("aria-pressed", button.dataset.system === player.chosen);
  });
  if (!player.seconds) return;
  const other = player.chosen === REFERENCE ? null : player.chosen;
  const reference = spectrumOf(player.buffers[REFERENCE] ? REFERENCE : player.chosen);
  const top = reference.levels.reduce((a, b) => Math.max(a, b), -200);
  paintLevels(document.querySelector("#spectrum-original canvas"), reference, top);
  const heard = spectrumOf(player.chosen);
  paintLevels(document.querySelector("#spectrum-system canvas"), heard, top);
  paintGap(document.querySelector("#spectrum-gap canvas"), heard, reference, top);
  document.querySelector("#spectrum-system figcaption").textContent = other ?? "original, which is chosen";
  document.querySelector("#spectrum-gap figcaption").textContent = `difference ±${GAP_DB} dB: orange more, blue less`;
}

function drawExample() {
  const example = DATA.audio.examples[player.example];
  document.querySelectorAll("#examples button").forEach((button) => {
    button.setAttribute("aria-pressed", Number(button.dataset.example) === player.example);
  });
  const place = DATA.rows.utterances.findIndex(
    (one) => one.name === example.utterance && one.condition === DATA.condition);
  const metric = METRIC[DATA.audio.metric];
  const figure = (system) => (metric && place >= 0 ? DATA.rows.values[system]?.[metric.name]?.[place] : null);
  const digits = digitsOf(player.systems, figure);
  document.getElementById("choices").replaceChildren(...player.systems.map((system, i) => el("button",
    { type: "button", "data-system": system, "aria-pressed": false, onclick: () => hear(system), title: SYSTEM[system].label },
    el("kbd", {}, i < 9 ? `${i + 1}` : ""), el("span", { class: "who" }, breaking(system)),
    el("span", { class: "score" }, figure(system) === null ? "" : number(figure(system), digits)))));
  document.getElementById("utterance").textContent = example.utterance;
  const half = example.sample_rate / 2000;
  document.querySelectorAll(".hertz").forEach((node) => { node.replaceChildren(...[half, half / 2, 0].map((k) => el("span", {}, `${+k.toFixed(1)}`))); });
  drawTransport();
}

function panel(id, title) {
  return el("figure", { id, class: "spectrum" }, el("figcaption", {}, title),
    el("div", { class: "picture" }, el("div", { class: "hertz", "aria-hidden": "true" }),
      el("div", { class: "canvas", onclick: (event) => seek(player.seconds * (event.offsetX / event.currentTarget.clientWidth)) },
        el("canvas", { role: "img", "aria-label": `Spectrogram: ${title}` }), el("span", { class: "cursor" }))));
}

function listenSection() {
  const { examples, format, metric, left_out: left, most_seconds: most } = DATA.audio;
  if (!examples.length) return;
  const roles = (example) => example.roles.map(([family, which, value]) => el("span", { class: "role" },
    `${which} of ${family}: ${number(value, 2)}`));
  const lossy = format === "FLAC" ? "The audio here is lossless." :
    "To bound this file the audio here is Opus at about 68 kbit/s; the files under decoded/ are lossless.";
  const bound = left ? ` ${count(left, "more utterance")} did not fit.` : "";
  section("listen", "Listen",
    `The worst, median and best utterance of each model${metric ? `, by ${metric}` : ""}, at most ${most} s of each. ${lossy}${bound}`,
    el("div", { class: "listen" },
      el("div", { id: "examples", role: "group", "aria-label": "Utterance" }, examples.map((example, i) => el("button",
        { type: "button", "data-example": i, "aria-pressed": i === 0, onclick: () => load(i) },
        el("span", { class: "who" }, example.utterance), roles(example)))),
      el("div", { id: "player" },
        el("h3", { id: "utterance" }),
        el("div", { class: "transport" },
          el("button", { type: "button", id: "play", class: "primary", onclick: toggle, disabled: true }, "Play"),
          el("input", { type: "range", id: "seek", min: 0, max: 0, step: 0.001, value: 0, "aria-label": "Position", oninput: (event) => seek(Number(event.target.value)) }),
          el("output", { id: "time" }, clock(0)),
          el("label", { class: "loop" }, el("input", { type: "checkbox", id: "loop", onchange: (event) => {
            const at = position();
            const was = player.playing;
            if (was) stop(at);
            player.looping = event.target.checked;
            if (was) start();
          } }), "loop")),
        el("div", { id: "choices", role: "group", "aria-label": "System" }),
        el("p", { class: "key" }, el("kbd", {}, "space"), " plays, ", el("kbd", {}, "1"), " to ", el("kbd", {}, "9"),
          " switch at the same sample, ", el("kbd", {}, "["), " and ", el("kbd", {}, "]"), " step through all systems. "
          + "Numbers beside names are this utterance's ", metric ? el("code", {}, metric) : "figures", "."),
        el("div", { class: "spectra" }, panel("spectrum-original", "original"), panel("spectrum-system", "system"),
          panel("spectrum-gap", "difference")))));
  document.addEventListener("keydown", pressed);
  document.addEventListener("keyup", (event) => { if (event.key === " " && inPlayer(event.target)) event.preventDefault(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawChoice);
  player.chosen = Object.values(DATA.audio.looked_at).at(-1) ?? REFERENCE;
  load(0);
}

function inPlayer(node) {
  return Boolean(node.closest?.("#player")) && node.id !== "loop";
}

/* Keys of the player, where nothing else wants them. */
function pressed(event) {
  const typing = event.target.closest?.("select, textarea, input:not([type=range]):not([type=checkbox])");
  const busy = event.target.closest?.("button, summary, a, input, .scroll") && !inPlayer(event.target);
  if (typing || event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.key === " " && !busy && event.target.id !== "loop") {
    event.preventDefault();
    toggle();
  } else if (/^[1-9]$/.test(event.key)) {
    hear(player.systems[Number(event.key) - 1]);
  } else if (event.key === "[" || event.key === "]") {
    const step = event.key === "]" ? 1 : -1;
    const many = player.systems.length;
    hear(player.systems[(player.systems.indexOf(player.chosen) + step + many) % many]);
  }
}
