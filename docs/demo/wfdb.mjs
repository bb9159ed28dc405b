// Read WFDB records of format 16 (.hea with .dat or .mat), by the same rules as kdkit. Nothing in a file is trusted.

import { LEADS, RecordError, missingLeads, shown, standardName, standardNames } from "./leads.mjs";

export const MAX_HEADER = 2 ** 20; // bytes
export const MAX_SIGNAL = 2 ** 26; // bytes of all signal files: 46 minutes of 12 leads at 1,000 Hz, prepared in 5 s
const MAX_LINE = 4096; // characters
const MAX_CHANNELS = 1024;
const MAX_GAIN = 1e12; // steps per mV
const DEFAULT_GAIN = 200; // steps per mV, of the specification
const INVALID = -(2 ** 15); // the sample of format 16 that is none
const UNITS = { "": 1, mv: 1, uv: 1e-3, "\u00b5v": 1e-3, "\u03bcv": 1e-3, nv: 1e-6, v: 1e3 }; // in mV

// All numbers have a bounded length, and no two parts that match the same characters follow each other.
const GAIN =
  /\s+(?<gain>-?[0-9]{1,32}(?:\.[0-9]{0,32})?(?:e[-+]?[0-9]{1,4})?)(?:\((?<baseline>-?[0-9]{1,15})\))?(?:\/(?<unit>\S+))?/;
const WORD = "[-_\\p{L}\\p{N}]+";
const CHANNEL = new RegExp(
  `^(?<folder>\\S*/)?(?<file>~?${WORD}(?:\\.${WORD})?)\\s+(?<format>[0-9]{1,3})(?:x(?<frame>[0-9]{1,18}))?` +
    "(?::(?<skew>[0-9]{1,18}))?(?:\\+(?<offset>[0-9]{1,18}))?(?=\\s|$)",
  "u",
);
const LEAD = new RegExp(
  `^${GAIN.source}\\s+[0-9]+\\s+(?<zero>-?[0-9]{1,15})\\s+(?<first>-?[0-9]{1,15})\\s+(?<checksum>-?[0-9]{1,15})` +
    "\\s+[0-9]+\\s+(?<name>\\S.*)$",
);
// The fields before the name are optional, from the last to the first, if one of the twelve leads follows.
const SHORT_LEAD = new RegExp(
  `^(?:${GAIN.source}(?:\\s+[0-9]+(?:\\s+(?<zero>-?[0-9]{1,15})(?:\\s+(?<first>-?[0-9]{1,15})` +
    "(?:\\s+(?<checksum>-?[0-9]{1,15}))?)?)?)?)?\\s+(?<name>[A-Za-z].*)$",
);
const RECORD_LINE = /^(?<name>\S+)\s+(?<leads>\S+)\s+(?<rate>[^\s/]+)\S*(?:\s+(?<samples>\S+))?/;
const RECORD_NAME = new RegExp(`^(?:\\S*/)?(?<name>${WORD})(?:\\.${WORD})?$`, "u");
const COUNT = /^[1-9][0-9]{0,17}$/;
const RATE = /^(?:[0-9]{1,32}(?:\.[0-9]{0,32})?|\.[0-9]{1,32})$/;
const COMMENT = /^#\s*(?<key>\w+)\s*:(?<value>.*)/;
const AGE = /^[-+]?(?:[0-9]{1,32}(?:\.[0-9]{0,32})?|\.[0-9]{1,32})(?:[eE][-+]?[0-9]{1,4})?$/;
// "m" alone may mean male, unless it is a capital.
const AGE_UNIT =
  /^P?([0-9]{1,5})\s*([DWMYdwy]|(?:[Dd]ays?|[Ww]eeks?|[Ww]ks?|[Mm]onths?|[Mm]os?|[Yy]ears?|[Yy]rs?)\.?)(?:\s*old)?$/;
const DAYS = { y: 365.25, m: 365.25 / 12, w: 7, d: 1 };
const SEXES = { f: "female", female: "female", m: "male", male: "male" };

// Return a record: name, rate (Hz), samples, age, sex, and `signals`, a Map from leads to Float64Arrays in mV.
//
// header: the bytes of the .hea file. files: a Map from names to Uint8Arrays. An invalid sample is NaN. Limb leads that
// follow from others are not added. Throws RecordError with a message for the user.
export function readRecord(header, files) {
  const parsed = parseHeader(header);
  const bytes = [...files.values()].reduce((sum, file) => sum + file.length, 0);
  if (bytes > MAX_SIGNAL) {
    throw new RecordError(`The signal files have ${count(bytes)} bytes; this page reads at most ${count(MAX_SIGNAL)}.`);
  }
  const opened = new Map();
  const open = (name) => {
    if (!opened.has(name)) opened.set(name, findFile(name, files));
    return opened.get(name);
  };
  const samples = parsed.samples || countSamples(parsed, open);
  const signals = new Map(parsed.leads.map((lead) => [lead.name, readLead(lead, parsed, open(lead.file), samples)]));
  const { name, rate, age, sex } = parsed;
  return { name, rate, samples, age, sex, signals, notes: parsed.notes };
}

// Return the fields of a header. Throws RecordError if it is malformed, or describes what this page does not read.
export function parseHeader(bytes) {
  const lines = headerLines(bytes);
  const [recordLine = "", ...rest] = lines.filter((line) => !line.startsWith("#"));
  const match = RECORD_LINE.exec(recordLine)?.groups;
  const [, before, segments] = /^(.*)\/([1-9][0-9]{0,17})$/.exec(match?.name ?? "") ?? [];
  const name = RECORD_NAME.exec(match?.name ?? "")?.groups.name;
  // "R1/4" is a record of four segments, and the other lines name these; "sub/101" is one in a folder.
  if (before && rest.length && rest.every((line) => /^(~|\S+)\s+[0-9]+$/.test(line))) {
    throw new RecordError(`The record has ${segments} segments; this page reads records of one. Join them with wfdb.`);
  }
  if (!name) throw new RecordError(`Expected “NAME LEADS RATE SAMPLES” in the first line, got “${shown(recordLine)}”.`);
  if (!COUNT.test(match.leads) || Number(match.leads) > MAX_CHANNELS) {
    throw new RecordError(`The number of leads must be from 1 to ${count(MAX_CHANNELS)}, got “${shown(match.leads)}”.`);
  }
  const rate = RATE.test(match.rate) ? Number(match.rate) : 0;
  if (!(rate > 0)) throw new RecordError(`The rate must be a number of Hz above 0, got “${shown(match.rate)}”.`);
  if (![undefined, "0"].includes(match.samples) && !COUNT.test(match.samples)) {
    throw new RecordError(`The number of samples must be above 0, got “${shown(match.samples)}”.`);
  }
  if (rest.length !== Number(match.leads)) {
    throw new RecordError(`The first line has ${match.leads} leads, but ${rest.length} lines describe one.`);
  }
  const { channels, leads } = parseChannels(rest);
  const comments = lines.map((line) => COMMENT.exec(line)?.groups).filter(Boolean);
  const values = (key) =>
    comments.filter((comment) => comment.key.toLowerCase() === key).map((comment) => comment.value.trim());
  const byDefault = leads.filter((lead) => lead.byDefault).map((lead) => lead.name);
  const notes = byDefault.length
    ? [`No gain in the header for ${byDefault.join(", ")}: ${DEFAULT_GAIN} steps per mV.`]
    : [];
  return {
    name,
    rate,
    samples: Number(match.samples ?? 0),
    channels,
    leads,
    age: unanimous(values("age").map(parseAge)),
    sex: unanimous(values("sex").map((value) => own(SEXES, value.toLowerCase()) ?? null)),
    notes,
  };
}

function headerLines(bytes) {
  if (bytes.length > MAX_HEADER) {
    throw new RecordError(`The header has ${count(bytes.length)} bytes; this page reads at most ${count(MAX_HEADER)}.`);
  }
  if (bytes.includes(0)) throw new RecordError("The header is not text.");
  let text;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(bytes); // removes a byte order mark
  } catch {
    text = new TextDecoder("latin1").decode(bytes); // some releases write a micro sign as one byte
  }
  // Editors of DOS end a file with 0x1a.
  const lines = text
    .replaceAll("\x1a", "")
    .split(/\r\n|\r|\n/)
    .map((line) => line.trim());
  if (lines.some((line) => line.length > MAX_LINE && !line.startsWith("#"))) {
    throw new RecordError(`The header has a line of more than ${count(MAX_LINE)} characters.`);
  }
  return lines.filter(Boolean);
}

// Return all channels, which are laid out in the files, and the leads among them.
function parseChannels(lines) {
  const channels = [];
  const errors = [];
  let leads = [];
  for (const line of lines) {
    const layout = CHANNEL.exec(line);
    if (!layout) throw lineError(line);
    const { folder, file, format, frame, skew, offset } = layout.groups;
    if (folder && (folder.startsWith("/") || folder.split("/").includes(".."))) {
      throw new RecordError(`Expected the name of a file in the folder of the header, got “${shown(line)}”.`);
    }
    const channel = { file, format, frame: Number(frame ?? 1), skew: Number(skew ?? 0), offset: Number(offset ?? 0) };
    channels.push(channel);
    try {
      leads.push(parseLead(line, line.slice(layout[0].length), channel, channels.length - 1));
    } catch (error) {
      errors.push(error);
    }
  }
  const names = standardNames(leads.map((lead) => lead.name));
  leads = leads.map((lead, row) => ({ ...lead, name: names[row] }));
  // A channel other than the twelve leads that cannot be read is not needed, such as a blood pressure.
  const complete = !missingLeads(leads.map((lead) => lead.name)).length;
  if (errors.length && !complete) throw errors[0];
  const times = (name) => leads.filter((lead) => lead.name.toLowerCase() === name.toLowerCase()).length;
  if (complete) leads = leads.filter((lead) => LEADS.includes(lead.name) || (lead.readable && times(lead.name) === 1));
  const repeated = leads.find((lead) => times(lead.name) > 1);
  if (repeated) throw new RecordError(`Expected every lead once, got ${shown(repeated.name)} several times.`);
  for (const lead of leads) requireReadable(lead, channels);
  return { channels, leads };
}

function parseLead(line, text, channel, position) {
  let match = LEAD.exec(text);
  const short = match ? null : SHORT_LEAD.exec(text);
  if (short && LEADS.includes(standardName(short.groups.name))) match = short;
  if (!match) throw lineError(line);
  const { gain, baseline, unit, zero, first, checksum, name } = match.groups;
  const steps = Number(gain ?? 0);
  if (!steps && unit) throw new RecordError(`A gain of 0 leaves the amplitude unknown, in “${shown(line)}”.`);
  const size = own(UNITS, (unit ?? "").toLowerCase());
  if (unit?.toLowerCase() === "nu") {
    throw new RecordError("The leads are in normalised units (NU): without mV, this page cannot draw them.");
  }
  if (size === undefined) throw new RecordError(`“${shown(unit)}” is not a supported unit; expected mV, uV, nV or V.`);
  if (Math.abs(steps) > MAX_GAIN * size) {
    throw new RecordError(`A gain of ${steps} leaves no signal, in “${shown(line)}”.`);
  }
  return {
    ...channel,
    position,
    name,
    gain: steps || DEFAULT_GAIN,
    byDefault: !steps,
    baseline: Number(baseline ?? zero ?? 0),
    size,
    first: Number(first ?? 0),
    checksum: Number(checksum ?? 0),
    readable: channel.format === "16" && channel.frame === 1 && !channel.skew,
  };
}

// All channels of the file of a lead lie between its samples, so that each of them must have the same layout.
function requireReadable(lead, channels) {
  for (const channel of channels.filter((other) => other.file === lead.file)) {
    if (channel.format !== "16") {
      throw new RecordError(
        `The signal has format ${channel.format}; this page reads format 16 only. Convert it, for example by ` +
          'wfdb.wrsamp(..., fmt=["16"] * leads).',
      );
    }
    if (channel.frame !== 1) {
      throw new RecordError(`The signal has ${channel.frame} samples per frame; this page reads records of one.`);
    }
    if (channel.skew) throw new RecordError("The signal has a skew between its leads, which this page does not read.");
  }
}

// Return the bytes of a file by its name in the header, which may lack its suffix or have another case.
function findFile(name, files) {
  const lower = name.toLowerCase();
  const match =
    [...files].find(([file]) => file === name) ??
    [...files].find(([file]) => file.toLowerCase() === lower) ??
    [...files].find(([file]) => [`${lower}.mat`, `${lower}.dat`].includes(file.toLowerCase()));
  if (match) return match[1];
  throw new RecordError(`The header names the signal file ${shown(name)}. Choose or drop both files together.`);
}

// Return the samples per lead that the file of the first lead holds.
function countSamples({ channels, leads: [lead] }, open) {
  const channelsOfFile = channels.filter((channel) => channel.file === lead.file).length;
  return Math.floor((open(lead.file).length - lead.offset) / (2 * channelsOfFile));
}

function readLead(lead, { channels, leads }, bytes, samples) {
  const positions = channels.flatMap((channel, index) => (channel.file === lead.file ? [index] : []));
  const [stride, start] = [positions.length, positions.indexOf(lead.position)];
  const { offset } = channels[positions[0]]; // WFDB has one for all channels of a file
  const most = Math.max(0, Math.floor((bytes.length - offset) / (2 * stride)));
  if (!(samples >= 1 && samples <= most)) {
    throw new RecordError(
      `The file ${shown(lead.file)} holds ${count(most)} samples per lead, but the header has ${count(samples)}.`,
    );
  }
  const view = new DataView(bytes.buffer, bytes.byteOffset + offset, 2 * stride * samples);
  const signal = new Float64Array(samples);
  let sum = 0;
  for (let index = 0; index < samples; index += 1) {
    const step = view.getInt16(2 * (index * stride + start), true);
    sum += step;
    signal[index] = step === INVALID ? NaN : ((step - lead.baseline) / lead.gain) * lead.size;
  }
  // The checksum decides; if the record has none, the first sample, unless it is 0 too.
  const hasChecksums = leads.some((other) => other.checksum);
  const checked = lead.checksum || (hasChecksums && LEADS.includes(lead.name));
  const differs = checked
    ? (sum - lead.checksum) % 65536 !== 0
    : lead.first !== 0 && lead.first !== view.getInt16(2 * start, true);
  if (differs) {
    throw new RecordError(
      `The samples of lead ${shown(lead.name)} do not match the first samples and checksums in the header: the signal ` +
        "file was converted, damaged or replaced.",
    );
  }
  return signal;
}

// Return an age in years, or null if the text is not one from 0 to 120.
export function parseAge(text) {
  const withUnit = AGE_UNIT.exec(text);
  let years = NaN;
  if (withUnit) years = (Number(withUnit[1]) * DAYS[withUnit[2][0].toLowerCase()]) / DAYS.y;
  else if (AGE.test(text)) years = Number(text);
  return years >= 0 && years <= 120 ? years : null;
}

function unanimous(values) {
  return new Set(values).size === 1 ? values[0] : null;
}

function own(table, key) {
  return Object.hasOwn(table, key) ? table[key] : undefined;
}

function lineError(line) {
  return new RecordError(
    `Expected “FILE FORMAT GAIN/UNIT BITS ZERO FIRST CHECKSUM BLOCK LEAD” in the header, got “${shown(line)}”.`,
  );
}

function count(number) {
  return number.toLocaleString("en");
}
