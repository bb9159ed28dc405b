// Prepare a record for a network, by the steps in the metadata of its file; docs/export.md defines them.

import {
  butterworth,
  filterBothWays,
  rateRatio,
  resampleLinear,
  resamplePolyphase,
  resamplingTaps,
} from "./filters.mjs";
import { RecordError, selectLeads, shown } from "./leads.mjs";

const MAX_VALUES = 4e7; // numbers of a signal, at any step
const MAX_UPSAMPLING = 50;
const MAX_FILTER = 500_000; // the numerator of a ratio: the filter has 20 times as many numbers
const MAX_ORDER = 10; // of a band-pass
const SHORTEST = 0.05; // share of a window that a record has to fill, as in `kdkit predict`
const FLAT = 1e-6; // the deviation below which a lead is flat, as in `kdkit predict`
const PERSON = ["age / 100", "age known", "female", "male", "sex known"];
const HIDDEN = "0"; // a feature that is 0 for every person

// For each step: a function of the signal so far, and the values that its other options may have; null allows any.
const STEPS = {
  leads: [leads, { names: null, unit: ["mV"], derive_limb_leads: [true, false] }],
  interpolate_invalid: [interpolateInvalid, { all_invalid: null }],
  bandpass: [
    bandpass,
    {
      low: null,
      high: null,
      order: null,
      padding_samples: null,
      filter: ["butterworth"],
      form: ["second-order sections"],
      direction: ["forward and backward"],
      padding: ["odd"],
    },
  ],
  resample: [
    resample,
    {
      rate: null,
      method: ["polyphase", "linear"],
      subtracted: ["line from first to last sample"],
      window: ["kaiser"],
      beta: null,
      half_length: ["10 * max(up, down)"],
    },
  ],
  zscore: [zscore, { axis: ["time"], flat_below: null }],
  // Random windows are for training; a prediction takes the middle, as `kdkit predict --windows centre` does.
  window: [cutWindow, { length: null, position: ["centre", "random"], padding: null }],
};

// Throw RecordError if a preparation has a step or an option that this page does not know.
export function checkPreparation(preparation) {
  if (preparation?.kind !== "ecg" || preparation.version !== 2 || !Array.isArray(preparation.steps)) {
    throw new RecordError("The network is not for ECGs, or its preparation is of another version of kdkit.");
  }
  for (const { step, ...options } of preparation.steps) {
    if (!Object.hasOwn(STEPS, step))
      throw new RecordError(`This page does not know the step “${shown(String(step))}”.`);
    for (const [name, value] of Object.entries(options)) {
      const allowed = Object.hasOwn(STEPS[step][1], name) ? STEPS[step][1][name] : [];
      if (allowed && !allowed.includes(value)) {
        throw new RecordError(
          `This page does not know ${shown(name)} = ${shown(String(value))} of the step “${step}”.`,
        );
      }
    }
  }
  const names = preparation.steps.map(({ step }) => step);
  if (names[0] !== "leads" || names.at(-1) !== "window" || names.filter((name) => name === "leads").length > 1) {
    throw new RecordError("Expected a preparation that begins with leads and ends with a window.");
  }
}

// Return {signal, leads, length, start, end, flat}: a Float32Array (leads, length), the seconds of the record in it,
// and the names of leads without a signal.
export function prepare(record, preparation) {
  checkPreparation(preparation);
  let state = { record, names: [], rate: record.rate, rows: [], flat: [], start: 0, end: record.samples / record.rate };
  for (const { step, ...options } of preparation.steps) state = STEPS[step][0](state, options);
  const length = state.rows[0].length;
  const signal = new Float32Array(state.rows.length * length);
  state.rows.forEach((row, index) => signal.set(row, index * length));
  if (!signal.every(Number.isFinite)) throw new RecordError("The signal has values that are too large to prepare it.");
  return { signal, leads: state.rows.length, length, start: state.start, end: state.end, flat: state.flat };
}

// Return the vector of age and sex, of which unknown values are 0, or null if the network has no such input.
export function personVector({ age, sex }, preparation) {
  const features = preparation.person?.features;
  if (!features) return null;
  const isKnown = (feature, index) => feature === PERSON[index] || feature === HIDDEN;
  if (features.length !== PERSON.length || !features.every(isKnown))
    throw new RecordError("This page does not know the features of the person.");
  const vector = [(age ?? 0) / 100, age !== null, sex === "female", sex === "male", sex !== null];
  return Float32Array.from(vector, (value, index) => (features[index] === HIDDEN ? 0 : value));
}

function leads(state, { names, derive_limb_leads: derive }) {
  return { ...state, names, rows: selectLeads(state.record.signals, names, { derive }) };
}

function interpolateInvalid(state, { all_invalid: otherwise }) {
  return { ...state, rows: state.rows.map((row) => withoutInvalid(row, otherwise)) };
}

// Interpolate linearly what is not a number; the ends take the nearest number.
export function withoutInvalid(row, otherwise) {
  if (!row.some(Number.isNaN)) return row;
  const filled = row.slice();
  let last = -1; // the last valid sample
  for (let index = 0; index <= row.length; index += 1) {
    if (index < row.length && Number.isNaN(row[index])) continue;
    for (let gap = last + 1; gap < index; gap += 1) {
      if (last < 0) filled[gap] = index < row.length ? row[index] : otherwise;
      else if (index === row.length) filled[gap] = row[last];
      else filled[gap] = ((row[index] - row[last]) / (index - last)) * (gap - last) + row[last];
    }
    last = index;
  }
  return filled;
}

function bandpass(state, { low, high, order, padding_samples: padding }) {
  if (!(low > 0 && low < high && high < state.rate / 2)) {
    throw new RecordError(
      `The record has ${state.rate} Hz: the band of the network, ${low} to ${high} Hz, needs more than ${2 * high} Hz.`,
    );
  }
  if (!(Number.isInteger(order) && order >= 1 && order <= MAX_ORDER)) {
    throw new RecordError(`Expected a band-pass of order 1 to ${MAX_ORDER}, got ${shown(String(order))}.`);
  }
  const sections = butterworth(order, low, high, state.rate);
  return { ...state, rows: state.rows.map((row) => filterBothWays(sections, row, padding)) };
}

function resample(state, { rate, method, beta }) {
  const [up, down] = rateRatio(state.rate, rate);
  if (up === down) return state;
  if (!(up > 0 && up / down <= MAX_UPSAMPLING && up <= MAX_FILTER)) {
    throw new RecordError(`Cannot resample from ${state.rate} to ${rate} Hz; is the rate in the header right?`);
  }
  if ((state.rows.length * state.rows[0].length * up) / down > MAX_VALUES) {
    throw new RecordError("The record is too long for this page.");
  }
  const taps = method === "polyphase" ? resamplingTaps(up, down, beta, 10 * Math.max(up, down)) : null;
  const change = (row) =>
    taps ? resamplePolyphase(row, up, down, taps) : resampleLinear(row, up, down, state.rate, rate);
  const rows = state.rows.map(change);
  if (!rows[0].length) throw new RecordError(`No sample is left after resampling to ${rate} Hz.`);
  return { ...state, rate, rows };
}

function zscore(state, { flat_below: flat }) {
  const scale = (row) => {
    const [mean, deviation] = moments(row);
    return row.map((value) => (deviation < flat ? 0 : (value - mean) / deviation));
  };
  return { ...state, rows: state.rows.map(scale) };
}

// Return [mean, standard deviation] of the samples of a lead.
function moments(row) {
  const mean = row.reduce((sum, value) => sum + value, 0) / row.length;
  return [mean, Math.sqrt(row.reduce((sum, value) => sum + (value - mean) ** 2, 0) / row.length)];
}

function cutWindow(state, { length, padding }) {
  const time = state.rows[0].length;
  const spare = time - length;
  if (time < SHORTEST * length) {
    const [has, needs] = [time / state.rate, (SHORTEST * length) / state.rate].map((value) =>
      Number(value.toPrecision(3)),
    );
    throw new RecordError(`The record has ${has} s; the network needs at least ${needs} s.`);
  }
  const flat = state.names.filter((_, index) => moments(state.rows[index])[1] < FLAT);
  if (flat.length === state.rows.length) throw new RecordError("All leads that the network takes are flat.");
  const [from, before] = [Math.max(0, Math.floor(spare / 2)), Math.max(0, Math.floor(-spare / 2))];
  const rows = state.rows.map((row) => {
    const window = new Float64Array(length).fill(padding);
    window.set(row.subarray(from, from + length), before);
    return window;
  });
  const whole = spare <= 0;
  return {
    ...state,
    rows,
    flat,
    start: whole ? state.start : from / state.rate,
    end: whole ? state.end : Math.min(state.end, (from + length) / state.rate),
  };
}
