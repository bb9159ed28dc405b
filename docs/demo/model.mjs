// Open an ONNX file that `kdkit export` wrote, and compute probabilities by onnxruntime-web.

import { RecordError } from "./leads.mjs";
import { checkPreparation, personVector } from "./preparation.mjs";

// Return the metadata of kdkit in the bytes of an ONNX file. Throws RecordError if there are none.
//
// The file is a protocol buffer: a ModelProto, whose field 14 has entries of a key (1) and a value (2). onnxruntime-web
// does not return them.
export function readMetadata(bytes) {
  const decoder = new TextDecoder();
  for (const [number, content] of fields(bytes)) {
    if (number !== 14) continue;
    const entry = new Map([...fields(content)].map(([key, value]) => [key, decoder.decode(value)]));
    if (entry.get(1) === "kdkit") return JSON.parse(entry.get(2));
  }
  throw new RecordError("The file has no metadata of kdkit. Write it by: kdkit export RUN --to onnx");
}

// Yield [number, bytes] of each field of a message that has a length; numbers are skipped.
function* fields(bytes) {
  let position = 0;
  const varint = () => {
    let [value, factor] = [0, 1];
    for (let size = 0; size < 10; size += 1) {
      const byte = bytes[position];
      if (byte === undefined) break;
      position += 1;
      value += (byte & 127) * factor; // not shifts, which have 32 bits
      factor *= 128;
      if (byte < 128) return value;
    }
    throw new RecordError("The file is not a whole ONNX file.");
  };
  while (position < bytes.length) {
    const tag = varint();
    const type = tag % 8;
    if (type === 0) varint();
    else if (type === 1) position += 8;
    else if (type === 5) position += 4;
    else if (type === 2) {
      const end = varint() + position;
      if (end > bytes.length) throw new RecordError("The file is not a whole ONNX file.");
      yield [Math.floor(tag / 8), bytes.subarray(position, end)];
      position = end;
    } else throw new RecordError("The file is not an ONNX file.");
  }
}

// Return the metadata if this page can use a network that has them. Throws RecordError, which names the reason.
export function checkMetadata(metadata) {
  const { format, classes, output, thresholds, inputs } = metadata;
  if (format !== 1) throw new RecordError("The metadata of the network are of another version of kdkit.");
  if (!["sigmoid", "softmax"].includes(output?.activation)) {
    throw new RecordError("The network gives no probabilities of classes, which this page shows.");
  }
  if (!Array.isArray(classes) || !Array.isArray(inputs))
    throw new RecordError("The metadata have no classes or inputs.");
  if (thresholds && thresholds.logits.length !== classes.length) {
    throw new RecordError(`Expected ${classes.length} thresholds in the metadata, got ${thresholds.logits.length}.`);
  }
  checkPreparation(metadata.preparation);
  return metadata;
}

// Return a function of a record and its prepared signal, which returns a promise of rows, one for each class.
//
// ort: the module onnxruntime-web. A row has the name, the probability, its threshold (null if the class is never
// predicted), and whether it is predicted.
export async function openModel(ort, bytes, metadata) {
  const session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
  const person = metadata.preparation.person?.input;
  const signals = session.inputNames.filter((name) => name !== person);
  if (signals.length !== 1)
    throw new RecordError(`Expected one signal as input, got ${session.inputNames.join(", ")}.`);
  return async (record, { signal, leads, length }) => {
    const inputs = { [signals[0]]: new ort.Tensor("float32", signal, [1, leads, length]) };
    if (session.inputNames.includes(person)) {
      const vector = personVector(record, metadata.preparation);
      inputs[person] = new ort.Tensor("float32", vector, [1, vector.length]);
    }
    const outputs = await session.run(inputs);
    const logits = [...outputs[session.outputNames[0]].data];
    if (logits.length !== metadata.classes.length) {
      throw new RecordError(`Expected ${metadata.classes.length} outputs, got ${logits.length}.`);
    }
    return decide(logits, metadata);
  };
}

// Return the rows of the classes for the outputs of a network.
export function decide(logits, { classes, output, thresholds }) {
  const highest = logits.reduce((best, value) => Math.max(best, value), -Infinity);
  const total = logits.reduce((sum, value) => sum + Math.exp(value - highest), 0);
  return classes.map((name, index) => {
    const logit = logits[index];
    if (output.activation === "softmax") {
      return {
        name,
        probability: Math.exp(logit - highest) / total,
        threshold: null,
        predicted: index === logits.indexOf(highest),
      };
    }
    const threshold = thresholds?.logits[index] ?? null;
    return {
      name,
      probability: 1 / (1 + Math.exp(-logit)),
      threshold: threshold === null ? null : 1 / (1 + Math.exp(-threshold)),
      predicted: threshold !== null && logit >= threshold,
    };
  });
}
