"use strict";
/* What a listener answers on: a slider a sound (MUSHRA), or two sounds and a choice (AB).

   A board has `onpick`, called with the sound to be played, and `refresh`, `missing`, `ask`, `focus` and `key`. */

const BANDS = ["Bad", "Poor", "Fair", "Good", "Excellent"];
const LETTERS = "ABCDEFGHIJKLMNOPQ";

// ---- MUSHRA: a slider each ----------------------------------------------------------------------

function band(score) {
  return BANDS[Math.min(4, Math.floor(score / 20))];
}

function make(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function scales(now, open) {
  const made = { onpick: () => {} };
  const rows = new Map();
  const labels = [...BANDS].reverse().map((text) => make("span", {}, text));
  const root = find("board");
  root.classList.add("scales");
  root.style.setProperty("--count", now.shown.length);
  root.append(make("div", { class: "labels", "aria-hidden": "true" }, ...labels));
  now.shown.forEach((name, i) => {
    const letter = LETTERS[i];
    const button = make("button", { type: "button", class: "button letter", "aria-pressed": "false" }, letter);
    const slider = make("input", { type: "range", min: 0, max: 100, step: 1, "aria-label": `Rating of ${letter}` });
    const value = make("span", { class: "value" }, "–");
    slider.value = open.ratings[name] ?? 50;
    const rate = () => {
      if (slider.disabled) return;
      open.ratings[name] = Number(slider.value);
      save();
      refresh();
    };
    slider.oninput = rate;
    slider.onclick = rate; // also where it stands already
    button.onclick = () => made.onpick(name);
    const column = make("div", { class: "stimulus" }, value, slider, button);
    column.onpointerdown = (event) => { if (event.target === column || slider.disabled) made.onpick(name); };
    rows.set(name, { button, slider, value, column, rate });
    root.append(column);
  });
  let current = null;

  made.refresh = (playing, isHeard) => {
    current = playing;
    for (const [name, row] of rows) {
      const score = open.ratings[name];
      const on = name === playing && (open.plays[name] || 0) > 0;
      row.button.setAttribute("aria-pressed", name === playing);
      row.column.classList.toggle("current", name === playing);
      row.column.classList.toggle("rated", score !== undefined);
      row.button.classList.toggle("heard", isHeard(name));
      row.button.title = isHeard(name) ? "heard" : "not heard yet";
      if (row.slider.disabled === on) row.slider.disabled = !on; // only what is being heard may be rated (5.4)
      row.value.textContent = score ?? "–";
      row.slider.setAttribute("aria-valuetext", score === undefined ? "not rated" : `${score}, ${band(score)}`);
    }
  };
  made.missing = () => now.shown.filter((name) => open.ratings[name] === undefined).length;
  made.ask = (missing) => `Still to rate: ${missing} of ${now.shown.length}.`;
  made.focus = (name) => { refresh(); rows.get(name).slider.focus(); };
  made.key = (event) => {
    const step = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 10, PageDown: -10 }[event.key];
    const row = rows.get(current);
    if (!step || !row || row.slider.disabled || event.target.matches("[data-seek]")) return false;
    row.slider.value = Number(row.slider.value) + step;
    row.rate();
    return true;
  };
  return made;
}

// ---- AB: two sounds, one answer -----------------------------------------------------------------

function pair(now, open) {
  const made = { onpick: () => {} };
  const root = find("board");
  root.classList.add("pair");
  const buttons = now.shown.map((name, i) => {
    const button = make("button", { type: "button", class: "button letter", "aria-pressed": "false" }, LETTERS[i]);
    button.onclick = () => made.onpick(name);
    return button;
  });
  const choices = [[now.shown[0], "A is better"], ["none", "No preference"], [now.shown[1], "B is better"]]
    .filter(([name]) => TEST.ties || name !== "none");
  const radios = choices.map(([name, text], i) => {
    const radio = make("input", { type: "radio", name: "answer", value: name });
    radio.checked = open.answer === name;
    radio.onchange = () => { open.answer = name; save(); refresh(); };
    return { radio, label: make("label", { class: "choice" }, radio, ` ${text} `, make("kbd", {}, String(i + 1))) };
  });
  root.append(make("div", { class: "two" }, ...buttons),
    make("div", { class: "answers", role: "radiogroup", "aria-label": "Your answer" }, ...radios.map((r) => r.label)));

  made.refresh = (playing, isHeard) => now.shown.forEach((name, i) => {
    buttons[i].setAttribute("aria-pressed", name === playing);
    buttons[i].classList.toggle("heard", isHeard(name));
  });
  made.missing = () => (open.answer === null ? 1 : 0);
  made.ask = () => "Which one is better?";
  made.focus = (name) => buttons[now.shown.indexOf(name)].focus();
  made.key = (event) => {
    const chosen = radios[Number(event.key) - 1];
    if (!chosen || !/^[1-3]$/.test(event.key)) return false;
    chosen.radio.checked = true;
    chosen.radio.onchange();
    return true;
  };
  return made;
}
