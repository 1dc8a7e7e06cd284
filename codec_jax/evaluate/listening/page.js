"use strict";
/* The test as a listener goes through it: welcome, practice, trials, results. What was done survives a reload. */

const STORE = `codec-jax-listen:${TEST.test}`;
const ENOUGH = 0.5; // seconds after which a sound counts as heard: the shortest loop of BS.1534-3
const find = (name) => document.querySelector(`#main [data-${name}]`);

// ---- what is remembered -------------------------------------------------------------------------

let kept = true;
let state = restore() || fresh();
let order = plan(state.seed);

function fresh() {
  const seed = parseInt(hex(4), 16);
  return { seed, listener: "", transducer: "", began: "", ended: "", reloads: 0, step: -2, trials: [], open: null };
}

function restore() {
  try {
    const found = JSON.parse(localStorage.getItem(STORE));
    if (found) found.reloads += 1;
    return found;
  } catch {
    return null;
  }
}

function save() {
  try {
    localStorage.setItem(STORE, JSON.stringify(state));
  } catch {
    kept = false;
  }
}

// ---- sounds -------------------------------------------------------------------------------------

const player = makePlayer(TEST.sample_rate, () => refresh());
const arrived = {};
let refresh = () => {};

/* Each stimuli/NAME.js calls this. */
window.heard = (name, text) => {
  arrived[name] = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer;
};

function fetched(name) {
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = `stimuli/${name}.js`;
    script.onload = () => {
      const clip = arrived[name];
      delete arrived[name];
      script.remove();
      if (clip) resolve([name, clip]); else reject(new Error(name));
    };
    script.onerror = () => reject(new Error(name));
    document.head.append(script);
  });
}

const wanted = new Map();

/* The clips of these names; those of the trial to come are asked for early. */
function clips(names, early = false) {
  const label = names.join();
  const found = wanted.get(label) || Promise.all(names.map(fetched)).then(Object.fromEntries);
  if (early) wanted.set(label, found); else wanted.delete(label);
  if (early) found.catch(() => wanted.delete(label));
  return found;
}

const namesOf = (trial) => (trial.reference ? [trial.reference, ...trial.shown] : trial.shown);

// ---- pages --------------------------------------------------------------------------------------

function show(template, place, share) {
  player.stop();
  refresh = () => {};
  document.onkeydown = null;
  const main = document.getElementById("main");
  main.replaceChildren(document.getElementById(template).content.cloneNode(true));
  document.getElementById("title").textContent = document.title = TEST.title;
  document.getElementById("place").textContent = place;
  document.getElementById("progress").style.width = `${100 * share}%`;
  window.scrollTo(0, 0);
  main.focus({ preventScroll: true });
}

function go(step) {
  state.step = step;
  save();
  if (step === -2) welcome();
  else if (step < TEST.trials.length) trial(step);
  else end();
}

function welcome() {
  show("welcome", "Preparation", 0);
  const count = TEST.trials.length;
  find("lead").textContent =
    `You will hear short recordings and judge their quality: one practice round, then ${count} ` +
    `${count === 1 ? "trial" : "trials"}. Take breaks whenever you like; your place is kept.`;
  const form = find("form");
  const volume = find("volume");
  form.listener.value = new URLSearchParams(location.search).get("listener") || "";
  let played = false;
  const practice = order.practice;
  const name = practice.reference || practice.shown[0];
  clips([name]).then((found) => player.load(found, name)).catch(broken);
  refresh = () => {
    const playing = player.state().playing;
    volume.textContent = playing ? "Stop the test sound" : "Play the test sound";
    volume.setAttribute("aria-pressed", playing);
  };
  volume.onclick = () => { played = true; player.toggle(); };
  form.onsubmit = (event) => {
    event.preventDefault();
    if (!played) {
      find("status").textContent = "Please play the test sound first.";
      volume.focus();
      return;
    }
    state.listener = form.listener.value.trim() || hex(4);
    state.transducer = form.transducer.value;
    state.began = new Date().toISOString();
    go(-1);
  };
}

function broken(error) {
  const status = find("status");
  if (status) status.textContent = `The sound ${error.message} cannot be played: the test's folder is not complete.`;
}

function end() {
  show("end", "Finished", 1);
  const text = JSON.stringify(result(), null, 1);
  const listener = state.listener.replace(/[^\p{L}\p{N}_.-]+/gu, "_");
  const name = `listen-${TEST.test.slice(0, 8)}-${listener}.json`;
  const minutes = Math.max(1, Math.round((Date.parse(state.ended) - Date.parse(state.began)) / 60000));
  find("file").textContent = name;
  find("summary").textContent =
    `Listener ${state.listener}, ${TEST.trials.length} ${TEST.trials.length === 1 ? "trial" : "trials"}, ` +
    `${minutes} min.${kept ? "" : " This browser keeps nothing: save before you close the page."}`;
  find("text").value = text;
  find("save").onclick = () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text + "\n"], { type: "application/json" }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    find("status").textContent = "Saved. Look for it among your downloads.";
  };
  const again = find("again");
  again.onclick = () => {
    if (!again.dataset.sure) {
      again.dataset.sure = "yes";
      again.textContent = "Results are deleted here: press again if the file is saved";
      return;
    }
    try { localStorage.removeItem(STORE); } catch { /* nothing was kept */ }
    state = fresh();
    order = plan(state.seed);
    go(-2);
  };
}

// ---- a trial ------------------------------------------------------------------------------------

function trial(step) {
  const practice = step < 0;
  const now = practice ? order.practice : order.trials[step];
  const last = step === TEST.trials.length - 1;
  show("trial", practice ? "Practice" : `Trial ${step + 1} of ${TEST.trials.length}`,
    (step + 1) / (TEST.trials.length + 1));
  const open = state.open && state.open.trial === now.trial && state.open.practice === practice ? state.open
    : { trial: now.trial, practice, ratings: {}, answer: null, plays: {}, seconds: {}, spent: 0 };
  const before = structuredClone({ plays: open.plays, seconds: open.seconds, spent: open.spent });
  const entered = Date.now();
  state.open = open;
  words(practice, now.shown.length);
  const board = MUSHRA ? scales(now, open) : pair(now, open);
  const next = find("next");
  next.textContent = practice ? "Start the test" : last ? "Finish" : "Next";
  find("reference").hidden = !now.reference;

  const names = namesOf(now);

  function tally() {
    const { plays, seconds } = player.heard();
    for (const name of names) {
      open.plays[name] = (before.plays[name] || 0) + plays[name];
      open.seconds[name] = Math.round(1000 * ((before.seconds[name] || 0) + seconds[name])) / 1000;
    }
    open.spent = before.spent + (Date.now() - entered) / 1000;
  }

  const isHeard = (name) => (open.seconds[name] || 0) >= ENOUGH;
  const pick = (name) => { player.select(name); player.play(); };

  function update() {
    tally();
    const at = player.state();
    find("play").textContent = at.playing ? "Pause" : "Play";
    find("reference").setAttribute("aria-pressed", at.current === now.reference);
    find("reference").classList.toggle("heard", isHeard(now.reference));
    const seek = find("seek");
    seek.max = at.duration || 1;
    if (document.activeElement !== seek || at.playing) seek.value = at.position;
    find("time").textContent = `${at.position.toFixed(1)} / ${at.duration.toFixed(1)} s`;
    board.refresh(at.current, isHeard);
    const unheard = names.filter((name) => !isHeard(name)).length;
    const missing = board.missing();
    next.disabled = unheard + missing > 0;
    const said = unheard ? `Still to hear: ${unheard} of ${names.length}.` : missing ? board.ask(missing) : "All done.";
    if (find("status").textContent !== said) find("status").textContent = said;
  }

  find("play").onclick = () => player.toggle();
  find("reference").onclick = () => pick(now.reference);
  find("loop").onchange = (event) => player.setLoop(event.target.checked);
  player.setLoop(true);
  find("seek").oninput = (event) => player.seek(Number(event.target.value));
  board.onpick = pick;
  next.onclick = () => {
    tally();
    if (!practice) state.trials.push(finished(now, open));
    state.open = null;
    if (last) state.ended = new Date().toISOString();
    go(step + 1);
  };
  document.onkeydown = (event) => key(event, now, pick, board);
  ready(now, step, update);
}

/* The sounds, then the buttons; then the next trial's sounds, quietly. */
async function ready(now, step, update) {
  const controls = document.querySelectorAll("#main button, #main input");
  controls.forEach((control) => { control.disabled = true; });
  find("status").textContent = "Loading…";
  try {
    const found = await clips(namesOf(now));
    await player.load(found, now.reference || now.shown[0]);
  } catch (error) {
    broken(error);
    return;
  }
  if (state.step !== step) return;
  controls.forEach((control) => { control.disabled = false; });
  refresh = update;
  refresh();
  const coming = order.trials[step + 1];
  if (coming) clips(namesOf(coming), true);
}

function finished(now, open) {
  const answer = MUSHRA ? { ratings: open.ratings } : { answer: open.answer };
  return { trial: now.trial, reference: now.reference || null, shown: now.shown, ...answer,
    plays: open.plays, heard_seconds: open.seconds, seconds: Math.round(open.spent * 10) / 10 };
}

function words(practice, count) {
  find("heading").textContent = (practice ? "Practice: " : "") +
    (MUSHRA ? "how good is each, compared with the reference?" : "which of the two do you prefer?");
  const first = document.getElementById("main").querySelector("h1");
  first.textContent = first.textContent[0].toUpperCase() + first.textContent.slice(1);
  const task = MUSHRA
    ? "Listen to the reference, then rate every lettered sound. Any difference from the reference counts as a flaw. " +
      "One of the letters is the reference itself and deserves 100."
    : "Listen to A and to B as often as you like, then say which one sounds better.";
  find("lead").textContent = practice
    ? `${task} This round does not count: try everything out.`
    : task;
  const keys = MUSHRA
    ? [["R", "reference"], [`A – ${LETTERS[count - 1]}`, "sounds"], ["Space", "play, pause"], ["↑ ↓", "rate what you hear"]]
    : [["A B", "sounds"], ["Space", "play, pause"], [TEST.ties ? "1 2 3" : "1 2", "answer"]];
  find("keys").replaceChildren(...keys.flatMap(([name, meaning]) => {
    const cap = Object.assign(document.createElement("kbd"), { textContent: name });
    return [cap, Object.assign(document.createElement("span"), { textContent: meaning })];
  }));
}

function key(event, now, pick, board) {
  if (event.ctrlKey || event.metaKey || event.altKey || find("play").disabled) return;
  const target = event.target;
  const letter = event.key.toUpperCase();
  const index = LETTERS.indexOf(letter);
  if (event.key === " " && !target.closest(".foot, .transport, .answers")) {
    player.toggle();
  } else if (letter === "R" && now.reference) {
    pick(now.reference);
  } else if (letter.length === 1 && index >= 0 && index < now.shown.length) {
    pick(now.shown[index]);
    board.focus(now.shown[index]);
  } else if (!board.key(event)) {
    return;
  }
  event.preventDefault();
}

// ---- results ------------------------------------------------------------------------------------

/* CRC-32 of UTF-8, against damage and slips of an editor, not against forgers. */
function crc32(text) {
  let crc = ~0;
  for (const byte of new TextEncoder().encode(text)) {
    crc ^= byte;
    for (let i = 0; i < 8; i++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return (~crc >>> 0).toString(16).padStart(8, "0");
}

function result() {
  const lines = state.trials.map((one) => [one.trial, one.shown.join(","),
    MUSHRA ? one.shown.map((name) => one.ratings[name]).join(",") : one.answer].join("|"));
  const head = [TEST.format, TEST.test, TEST.kind, state.listener, state.seed].join("|");
  return {
    format: TEST.format, test: TEST.test, kind: TEST.kind, listener: state.listener, seed: state.seed,
    transducer: state.transducer, began: state.began, ended: state.ended, reloads: state.reloads,
    user_agent: navigator.userAgent, trials: state.trials, check: crc32([head, ...lines].join("\n")),
  };
}

setInterval(() => refresh(), 100);
setInterval(save, 1000);
go(state.step);
