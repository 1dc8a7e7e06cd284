"use strict";
/* Plays one of several equally long clips at a time, all of them running in step, so that a switch keeps the position.

   A switch fades out and then in, 5 ms of raised cosine each, as ITU-R BS.1534-3 (5.3) asks: it wants no cross-fade. */

function makePlayer(sampleRate, changed) {
  const FADE = 0.005, SOON = 0.01, POINTS = 32;
  const rise = Float32Array.from({ length: POINTS }, (_, i) => 0.5 - 0.5 * Math.cos(Math.PI * i / (POINTS - 1)));
  const fall = rise.slice().reverse();
  let context = null, buffers = {}, voices = null, current = null, loop = true;
  let offset = 0, began = 0, free = 0, counted = 0, seconds = {}, plays = {};

  function duration() {
    const first = Object.values(buffers)[0];
    return first ? first.duration : 0;
  }

  /* Clips of a trial, {name: ArrayBuffer of a .wav}; the first to be heard is `name`. */
  async function load(clips, name) {
    stop();
    const decoder = new OfflineAudioContext(1, 1, sampleRate);
    const names = Object.keys(clips);
    const decoded = await Promise.all(names.map((one) => decoder.decodeAudioData(clips[one])));
    buffers = Object.fromEntries(names.map((one, i) => [one, decoded[i]]));
    current = name;
    offset = 0;
    seconds = Object.fromEntries(names.map((one) => [one, 0]));
    plays = Object.fromEntries(names.map((one) => [one, 0]));
    changed();
  }

  function wake() {
    if (!context) {
      // At the rate of the clips: they reach the device through one resampler, the system's, all alike.
      try { context = new AudioContext({ sampleRate }); } catch { context = new AudioContext(); }
    }
    if (context.state !== "running") context.resume();
  }

  function when() { return Math.max(context.currentTime + SOON, free); }

  function fade(name, curve, start) {
    voices[name].gain.gain.setValueCurveAtTime(curve, start, FADE);
    free = start + FADE + 0.001;
  }

  function play() {
    if (voices || !current) return;
    wake();
    const start = when();
    if (offset >= duration() - 0.001) offset = 0;
    voices = {};
    for (const name of Object.keys(buffers)) {
      const gain = new GainNode(context, { gain: 0 });
      const source = new AudioBufferSourceNode(context, { buffer: buffers[name], loop });
      source.connect(gain).connect(context.destination);
      source.start(start, offset);
      voices[name] = { gain, source };
    }
    const mine = voices;
    Object.values(voices)[0].source.onended = () => { if (voices === mine) ended(); };
    fade(current, rise, start);
    began = start - offset;
    counted = start;
    plays[current] += 1;
    changed();
  }

  function ended() {
    count();
    voices = null;
    offset = 0;
    changed();
  }

  function stop() {
    if (!voices) return;
    count();
    const start = when();
    offset = position(start);
    fade(current, fall, start);
    for (const voice of Object.values(voices)) voice.source.stop(start + FADE);
    voices = null;
    changed();
  }

  function select(name) {
    if (name === current || !(name in buffers)) return;
    if (voices) {
      count();
      const start = when();
      fade(current, fall, start);
      fade(name, rise, free);
      plays[name] += 1;
    }
    current = name;
    changed();
  }

  function seek(place) {
    const playing = Boolean(voices);
    stop();
    offset = Math.min(Math.max(place, 0), duration());
    if (playing) play(); else changed();
  }

  function setLoop(on) {
    // A clip in its third round would end at once: begin anew from where it is.
    const playing = Boolean(voices);
    stop();
    loop = on;
    if (playing) play();
  }

  function position(time) {
    if (!voices) return offset;
    const place = Math.max(0, time - began);
    return loop ? place % duration() : Math.min(place, duration());
  }

  /* Seconds for which the current clip was heard, up to now. */
  function count() {
    if (!voices) return;
    const now = context.currentTime;
    if (now > counted) { seconds[current] += now - counted; counted = now; }
  }

  return {
    load, play, stop, select, seek, setLoop,
    toggle: () => { if (voices) stop(); else play(); },
    heard: () => { count(); return { seconds: { ...seconds }, plays: { ...plays } }; },
    state: () => ({ current, playing: Boolean(voices), position: context ? position(context.currentTime) : offset,
      duration: duration() }),
  };
}
