// Call the functions of docs/demo without a browser: JSON on the standard input is a list of calls, that on the output
// a list of results, {value} or {refused: message}. Other errors end the process.

import { readFileSync } from "node:fs";
import { basename } from "node:path";

import {
  butterworth,
  filterBothWays,
  rateRatio,
  resampleLinear,
  resamplePolyphase,
  resamplingTaps,
} from "../../docs/demo/filters.mjs";
import { RecordError, shown, standardName, standardNames } from "../../docs/demo/leads.mjs";
import { checkMetadata, decide, readMetadata } from "../../docs/demo/model.mjs";
import { checkPreparation, personVector, prepare, withoutInvalid } from "../../docs/demo/preparation.mjs";
import { parseAge, readRecord } from "../../docs/demo/wfdb.mjs";

// JSON has no NaN: null stands for it.
const array = (values) => Float64Array.from(values, (value) => value ?? NaN);
const list = (values) => Array.from(values, (value) => (Number.isNaN(value) ? null : value));
const bytes = (path) => new Uint8Array(readFileSync(path));
const read = ({ header, files }) =>
  readRecord(
    typeof header === "string" ? bytes(header) : Uint8Array.from(header),
    new Map(files.map((path) => [basename(path), bytes(path)])),
  );

const FUNCTIONS = {
  age: ({ text }) => parseAge(text),
  bandpass: ({ order, low, high, rate, padding, signal }) =>
    list(filterBothWays(butterworth(order, low, high, rate), array(signal), padding)),
  checkPreparation: ({ preparation }) => checkPreparation(preparation) ?? true,
  checkMetadata: ({ metadata }) => Boolean(checkMetadata(metadata)),
  decide: ({ logits, metadata }) => decide(logits, metadata),
  interpolate: ({ signal, otherwise }) => list(withoutInvalid(array(signal), otherwise)),
  lead_name: ({ text }) => standardName(text),
  lead_names: ({ names }) => standardNames(names),
  linear: ({ signal, rate, to }) => list(resampleLinear(array(signal), ...rateRatio(rate, to), rate, to)),
  metadata: ({ path, content }) => readMetadata(path ? bytes(path) : Uint8Array.from(content)),
  polyphase: ({ signal, rate, to }) => {
    const [up, down] = rateRatio(rate, to);
    return list(resamplePolyphase(array(signal), up, down, resamplingTaps(up, down, 5, 10 * Math.max(up, down))));
  },
  prepare: ({ preparation, ...record }) => {
    const opened = read(record);
    const { signal, ...rest } = prepare(opened, preparation);
    return { ...rest, signal: list(signal), person: list(personVector(opened, preparation)) };
  },
  ratio: ({ rate, to, most }) => rateRatio(rate, to, most),
  // The first samples only: numbers as text take longer than all else.
  read: ({ most, ...record }) => {
    const { signals, ...fields } = read(record);
    return {
      ...fields,
      leads: [...signals.keys()],
      signals: [...signals.values()].map((signal) => list(signal.slice(0, most))),
    };
  },
  shown: ({ text }) => shown(text),
};

const results = JSON.parse(readFileSync(0, "utf-8")).map(({ name, ...options }) => {
  try {
    return { value: FUNCTIONS[name](options) };
  } catch (error) {
    if (error instanceof RecordError) return { refused: error.message };
    throw error;
  }
});
process.stdout.write(JSON.stringify(results));
