// The page: choose or drop a record, see its leads, and the probabilities that the network computes from it.
//
// All texts from files are set as text, never as markup.

import { RecordError, missingLeads, shown, LEADS } from "./leads.mjs";
import { checkMetadata, openModel, readMetadata } from "./model.mjs";
import { drawPaper } from "./paper.mjs";
import { prepare } from "./preparation.mjs";
import { MAX_HEADER, MAX_SIGNAL, readRecord } from "./wfdb.mjs";

const WASM = "ort-wasm-simd-threaded.wasm";
const MOST_FILES = 20; // in one drop
const byId = (id) => document.getElementById(id);
const percent = (value) => `${(100 * value).toFixed(1)} %`;
const titleOf = (name) => (Object.hasOwn(page.titles, name) ? page.titles[name] : "");
const page = { metadata: null, classify: null, titles: {}, request: 0 };

followTheme();
acceptFiles();
start();

async function start() {
  try {
    const demo = await (await get("demo.json")).json();
    const bytes = new Uint8Array(await (await get("model.onnx")).arrayBuffer());
    page.metadata = checkMetadata(readMetadata(bytes));
    page.titles = demo.titles;
    describe(demo, bytes.length);
    const ort = await import("./runtime/ort.wasm.bundle.min.mjs");
    // Threads need a page that is isolated from other origins, and gain nothing for a network this small.
    ort.env.wasm.numThreads = 1;
    ort.env.wasm.wasmPaths = { wasm: new URL(`runtime/${WASM}`, import.meta.url).href };
    page.classify = await openModel(ort, bytes, page.metadata);
    byId("status").hidden = true;
    byId("drop").hidden = false;
    offer(demo.records);
    if (demo.records.length) await showExample(demo.records[0]);
  } catch (error) {
    byId("status").hidden = true;
    report(error);
  }
  document.body.dataset.ready = "true";
}

async function get(address) {
  const response = await fetch(address);
  if (response.ok) return response;
  throw new RecordError(`${address} is missing. Build this page: python -m tools.demo --model FILE.onnx --out FOLDER`);
}

// Show which network this is, and the notices about its scores.
function describe(demo, size) {
  const { metadata } = page;
  const { run = {}, precision, versions = {} } = metadata;
  const parts = [run.net, run.recipe && `of ${run.recipe}`].filter(Boolean).join(" ");
  const { leads } = metadata.preparation;
  const named = leads.length < LEADS.length ? `leads ${leads.join(", ")}` : `${leads.length} leads`;
  const facts = [parts, `${metadata.classes.length} classes`, named];
  const kilobytes = `${(size / 1000).toFixed(0)} kB`;
  byId("model").textContent = [...facts, [precision, kilobytes].filter(Boolean).join(" ")].map(String).join(" · ");
  // That it is no medical device is in the page already; these are about its training and its scores.
  const notices = (metadata.notices ?? []).map(String);
  byId("notices").textContent = notices.length ? `Of the network: ${notices.join("; ")}.` : "";
  byId("versions").textContent =
    `kdkit ${versions.kdkit ?? ""} · onnxruntime-web ${demo.runtime} · WebAssembly, one thread`;
}

function offer(records) {
  const buttons = records.map((example) => {
    const button = created("button", example.title);
    button.type = "button";
    button.title = example.findings.map((finding) => titleOf(finding) || finding).join(", ");
    button.dataset.name = example.name;
    button.addEventListener("click", () => showExample(example));
    return button;
  });
  document.querySelector("#examples .records").replaceChildren(...buttons);
  byId("examples").hidden = !records.length;
}

async function showExample(example) {
  await show(example.name, async () => {
    const [header, signal] = await Promise.all(
      [".hea", ".dat"].map(async (suffix) => {
        const response = await get(`records/${example.name}${suffix}`);
        return new Uint8Array(await response.arrayBuffer());
      }),
    );
    const findings = example.findings.map((finding) => titleOf(finding) || finding);
    return {
      ...readRecord(header, new Map([[`${example.name}.dat`, signal]])),
      title: `Simulated record: ${example.title}`,
      findings: `simulated with ${findings.join(", ")}`,
    };
  });
}

// From the beginning: a browser would leave the page for a file that is dropped on it before it is ready.
function acceptFiles() {
  const input = byId("files");
  input.addEventListener("change", () => {
    const files = [...input.files];
    input.value = ""; // so that the same files may be chosen again
    if (files.length) showFiles(files);
  });
  const zone = document.querySelector(".drop");
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    zone.classList.add("over");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) zone.classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    zone.classList.remove("over");
    if (page.classify && event.dataTransfer.files.length) showFiles([...event.dataTransfer.files]);
  });
}

async function showFiles(files) {
  await show(null, async () => {
    if (files.length > MOST_FILES) throw new RecordError(`Choose the files of one record, not ${files.length} files.`);
    const headers = files.filter((file) => /\.hea$/i.test(file.name));
    if (headers.length !== 1) {
      const names = shown(files.map((file) => file.name).join(", "));
      throw new RecordError(`Expected one .hea file with its .dat or .mat file, got ${names}.`);
    }
    if (headers[0].size > MAX_HEADER) throw new RecordError(`${shown(headers[0].name)} is too long for a header.`);
    const signals = files.filter((file) => file !== headers[0]);
    const size = signals.reduce((sum, file) => sum + file.size, 0);
    if (size > MAX_SIGNAL) {
      throw new RecordError(`The signal has ${size} bytes; this page reads at most ${MAX_SIGNAL}.`);
    }
    const bytes = async (file) => new Uint8Array(await file.arrayBuffer());
    const header = await bytes(headers[0]);
    const contents = await Promise.all(signals.map(async (file) => [file.name, await bytes(file)]));
    const record = readRecord(header, new Map(contents));
    return { ...record, title: `Record ${shown(record.name)}`, findings: "" };
  });
}

// Show a record that `read` returns, or why it cannot be shown. example: its name if it is one of the simulated ones.
async function show(example, read) {
  page.request += 1;
  const request = page.request; // a later one wins, whichever is read first
  document.body.dataset.shown = "";
  for (const button of document.querySelectorAll(".records button")) {
    button.setAttribute("aria-pressed", String(button.dataset.name === example));
  }
  byId("problem").hidden = true;
  try {
    const record = await read();
    const began = performance.now();
    const prepared = prepare(record, page.metadata.preparation);
    const computing = performance.now();
    const rows = await page.classify(record, prepared);
    const ended = performance.now();
    if (request !== page.request) return;
    showRecord(record, prepared);
    showRows(rows);
    byId("times").textContent =
      `Prepared in ${(computing - began).toFixed(1)} ms, computed in ${(ended - computing).toFixed(1)} ms.`;
    byId("record").hidden = false;
  } catch (error) {
    if (request === page.request) report(error);
  }
  document.body.dataset.shown = String(request);
}

function showRecord(record, { start, end, flat }) {
  const seconds = record.samples / record.rate;
  const person = [record.age === null ? "" : `${Number(record.age.toFixed(1))} years`, record.sex].filter(Boolean);
  byId("name").textContent = record.title;
  byId("facts").textContent = [
    `${Number(seconds.toFixed(1))} s at ${record.rate} Hz`,
    person.length ? person.join(", ") : "age and sex unknown",
    record.findings,
  ]
    .filter(Boolean)
    .join(" · ");
  byId("paper").replaceChildren(drawPaper(record, start, end));
  const names = [...record.signals.keys()];
  const derived = missingLeads(names).length ? [] : LEADS.filter((lead) => !names.includes(lead));
  const whole = end - start >= seconds - 1 / record.rate;
  byId("used").textContent = [
    whole ? "" : `The network sees the seconds from ${start.toFixed(1)} to ${end.toFixed(1)}, which are shown.`,
    derived.length ? `Derived from other limb leads: ${derived.join(", ")}.` : "",
    flat.length ? `Flat: ${flat.join(", ")}.` : "",
    ...record.notes,
    "25 mm/s, 10 mm/mV, as recorded.",
  ]
    .filter(Boolean)
    .join(" ");
}

// The predicted classes first, and then those with the highest probabilities.
function showRows(rows) {
  const ordered = rows.toSorted((a, b) => b.predicted - a.predicted || b.probability - a.probability);
  byId("rows").replaceChildren(...ordered.map(classRow));
}

function classRow({ name, probability, threshold, predicted }) {
  const row = created("tr");
  row.classList.toggle("predicted", predicted);
  row.dataset.probability = probability; // in full, for tests and scripts
  row.dataset.name = name;
  const head = created("th", name);
  head.scope = "row";
  if (titleOf(name)) head.append(" ", created("small", titleOf(name)));
  const bar = created("div", "", "meter");
  const fill = created("i", "", "fill");
  fill.style.width = `${100 * probability}%`;
  bar.append(fill);
  if (threshold !== null) {
    const mark = created("i", "", "mark");
    mark.style.left = `${100 * threshold}%`;
    bar.append(mark);
  }
  const limit = threshold === null ? (page.metadata.thresholds ? "never" : "") : percent(threshold);
  const cell = created("td", "", "wide");
  cell.append(bar);
  row.append(
    head,
    created("td", predicted ? "yes" : "no", "decision"),
    created("td", percent(probability), "number"),
    created("td", limit, "number"),
    cell,
  );
  return row;
}

function report(error) {
  if (!(error instanceof RecordError)) console.error(error);
  const text =
    error instanceof RecordError ? error.message : `The page failed: ${shown(String(error?.message ?? error))}`;
  byId("problem").textContent = text;
  byId("problem").hidden = false;
  byId("record").hidden = true; // nothing of another record next to an error
}

function followTheme() {
  const [root, toggle] = [document.documentElement, byId("theme")];
  const isDark = () =>
    (root.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  toggle.hidden = false;
  toggle.setAttribute("aria-pressed", String(isDark()));
  toggle.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    toggle.setAttribute("aria-pressed", String(isDark()));
  });
}

function created(tag, text = "", className = "") {
  const element = document.createElement(tag);
  if (text) element.textContent = text;
  if (className) element.className = className;
  return element;
}
