/* Spectrograms, computed here from the audio: log magnitudes of Hann windows, and their difference. */

const RANGE_DB = 80;
const GAP_DB = 30;
const WARM = [[0, 0, 4], [40, 17, 89], [114, 31, 129], [183, 55, 121], [241, 96, 93], [254, 176, 120], [252, 253, 191]];

/* In place, the Fourier transform of arrays whose length is a power of two. */
function transform(real, imaginary) {
  const n = real.length;
  for (let i = 1, j = 0; i < n; i += 1) {
    let bit = n >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) {
      [real[i], real[j]] = [real[j], real[i]];
      [imaginary[i], imaginary[j]] = [imaginary[j], imaginary[i]];
    }
  }
  for (let size = 2; size <= n; size *= 2) {
    const half = size / 2;
    for (let k = 0; k < half; k += 1) {
      const cos = Math.cos((-2 * Math.PI * k) / size);
      const sin = Math.sin((-2 * Math.PI * k) / size);
      for (let start = k; start < n; start += size) {
        const other = start + half;
        const re = real[other] * cos - imaginary[other] * sin;
        const im = real[other] * sin + imaginary[other] * cos;
        real[other] = real[start] - re;
        imaginary[other] = imaginary[start] - im;
        real[start] += re;
        imaginary[start] += im;
      }
    }
  }
}

/* {frames, bins, levels}: dB of every frame and bin, frame by frame. About 32 ms a window, at most 900 frames. */
function spectrogram(samples, rate) {
  const size = 2 ** Math.round(Math.log2(0.032 * rate));
  const hop = Math.max(size / 4, Math.ceil(samples.length / 900));
  const frames = Math.max(1, Math.ceil(samples.length / hop));
  const bins = size / 2 + 1;
  const levels = new Float32Array(frames * bins);
  const window = Float64Array.from({ length: size }, (_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / size));
  for (let frame = 0; frame < frames; frame += 1) {
    const start = frame * hop - size / 2;
    const real = Float64Array.from({ length: size }, (_, i) => (samples[start + i] ?? 0) * window[i]);
    const imaginary = new Float64Array(size);
    transform(real, imaginary);
    for (let bin = 0; bin < bins; bin += 1) {
      levels[frame * bins + bin] = 20 * Math.log10(Math.hypot(real[bin], imaginary[bin]) + 1e-5);
    }
  }
  return { frames, bins, levels };
}

function mixed(stops, share) {
  const at = Math.min(0.9999, Math.max(0, share)) * (stops.length - 1);
  const low = Math.floor(at);
  return stops[low].map((value, channel) => value + (at - low) * (stops[low + 1][channel] - value));
}

function gapStops() {
  return matchMedia("(prefers-color-scheme: dark)").matches
    ? [[120, 190, 255], [40, 90, 150], [28, 29, 32], [150, 80, 20], [255, 180, 90]]
    : [[20, 70, 140], [130, 180, 225], [250, 249, 247], [240, 175, 110], [160, 70, 0]];
}

/* Paints [frame, bin] values, low bins at the bottom; pick: of a value, its share of the stops. */
function paint(canvas, { frames, bins }, pick, stops) {
  const table = Array.from({ length: 256 }, (_, i) => mixed(stops, i / 255));
  canvas.width = frames;
  canvas.height = bins;
  const context = canvas.getContext("2d");
  const image = context.createImageData(frames, bins);
  for (let frame = 0; frame < frames; frame += 1) {
    for (let bin = 0; bin < bins; bin += 1) {
      const [red, green, blue] = table[Math.round(255 * Math.min(1, Math.max(0, pick(frame * bins + bin))))];
      const place = 4 * ((bins - 1 - bin) * frames + frame);
      image.data.set([red, green, blue, 255], place);
    }
  }
  context.putImageData(image, 0, 0);
}

function paintLevels(canvas, found, top) {
  paint(canvas, found, (i) => (found.levels[i] - top + RANGE_DB) / RANGE_DB, WARM);
}

/* The system less the original in dB; what lies under the range of both is silence, and no difference. */
function paintGap(canvas, found, reference, top) {
  const floor = top - RANGE_DB;
  const gap = (i) => Math.max(floor, found.levels[i]) - Math.max(floor, reference.levels[i]);
  paint(canvas, found, (i) => 0.5 + gap(i) / (2 * GAP_DB), gapStops());
}
