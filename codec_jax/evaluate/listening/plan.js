"use strict";
/* The order in which a listener gets trials and sounds: chance from a seed that is stored with the results. */

const TEST = window.TEST;
const MUSHRA = TEST.kind === "mushra";

/* Mulberry32: numbers in [0, 1). */
function generator(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

function shuffled(list, random) {
  const found = [...list];
  for (let i = found.length - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    [found[i], found[j]] = [found[j], found[i]];
  }
  return found;
}

/* Trials in a listener's order. AB: orders are balanced over trials already, half of the listeners get them reversed. */
function plan(seed) {
  const random = generator(seed);
  const turned = random() < 0.5;
  const order = (trial) => ({
    ...trial,
    shown: MUSHRA ? shuffled(trial.stimuli, random) : turned ? [...trial.stimuli].reverse() : trial.stimuli,
  });
  return { practice: order(TEST.practice), trials: shuffled(TEST.trials, random).map(order) };
}

function hex(bytes) {
  return Array.from(crypto.getRandomValues(new Uint8Array(bytes)), (b) => b.toString(16).padStart(2, "0")).join("");
}
