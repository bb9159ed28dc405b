// Draw a record on the paper of an electrocardiograph, as the reports of kdkit do: 25 mm/s and 10 mm/mV.

import { LEADS, missingLeads, selectLeads } from "./leads.mjs";
import { withoutInvalid } from "./preparation.mjs";

const SVG = "http://www.w3.org/2000/svg";
const MM_PER_SECOND = 25;
const MM_PER_MV = 10;
const ROW = 26; // mm from one row to the next
const MARGIN = 3; // mm above the first row and below the last one
const LEFT = 10; // mm, for the calibration pulse
const HIGHEST = 30; // mm from the middle of a row, beyond which a signal is cut off; high ones cross other rows
const POINTS = 4000; // of a line over the whole paper, at most
const MOST_ROWS = 15; // of a record without the twelve leads
const LAYOUT = [["I", "aVR", "V1", "V4"], ["II", "aVL", "V2", "V5"], ["III", "aVF", "V3", "V6"], ["II"]];

// Return an SVG of the seconds from start to end of a record: three rows of four leads and lead II throughout. Of a
// record that does not have the twelve leads, each lead has a row.
export function drawPaper(record, start, end) {
  const twelve = !missingLeads([...record.signals.keys()]).length;
  const rows = twelve ? LAYOUT : [...record.signals.keys()].slice(0, MOST_ROWS).map((lead) => [lead]);
  const [from, to] = [Math.round(start * record.rate), Math.round(end * record.rate)];
  const names = rows.flat();
  const signals = twelve ? selectLeads(record.signals, names) : names.map((name) => record.signals.get(name));
  const width = LEFT + (MM_PER_SECOND * (to - from)) / record.rate;
  const height = ROW * rows.length + 2 * MARGIN;
  const svg = element("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
  svg.setAttribute("aria-label", twelve ? "ECG of twelve leads" : `ECG of ${names.length} leads`);
  svg.style.width = `${width}mm`;
  svg.append(pattern("ecg-fine", 1, 0.1), pattern("ecg-coarse", 5, 0.2));
  for (const name of ["fine", "coarse"]) svg.append(element("rect", { class: name, width, height }));
  let lead = 0;
  rows.forEach((columns, row) => {
    const middle = MARGIN + ROW * (row + 0.5);
    svg.append(element("path", { d: `M2 ${middle}h1v-${MM_PER_MV}h5v${MM_PER_MV}h1` }));
    const size = Math.floor((to - from) / columns.length);
    columns.forEach((name, column) => {
      const part = signals[lead].subarray(from + column * size, from + (column + 1) * size);
      const left = LEFT + (MM_PER_SECOND * column * size) / record.rate;
      const label = element("text", { x: left + 1, y: middle - 10.5 });
      label.textContent = LEADS.includes(name) ? name : name.slice(0, 20);
      svg.append(element("path", { d: line(withoutInvalid(part, 0), record.rate, left, middle) }), label);
      lead += 1;
    });
  });
  return svg;
}

// Return the path of a part of a lead in mV; of long ones, the lowest and highest of neighbours.
function line(part, rate, left, middle) {
  const step = part.length > POINTS ? 2 * Math.ceil(part.length / POINTS) : 1;
  const points = [];
  for (let first = 0; first + step <= part.length; first += step) {
    let [low, high] = [first, first];
    for (let index = first; index < first + step; index += 1) {
      if (part[index] < part[low]) low = index;
      if (part[index] > part[high]) high = index;
    }
    points.push(...(low === high ? [low] : [Math.min(low, high), Math.max(low, high)]));
  }
  const limit = HIGHEST / MM_PER_MV;
  const drawn = points.map((index) => {
    const up = MM_PER_MV * Math.max(-limit, Math.min(limit, part[index]));
    return `${(left + (MM_PER_SECOND * index) / rate).toFixed(2)} ${(middle - up).toFixed(2)}`;
  });
  return drawn.length ? `M${drawn.join("L")}` : "";
}

function pattern(id, size, stroke) {
  const squares = element("pattern", { id, width: size, height: size, patternUnits: "userSpaceOnUse" });
  const path = element("path", { d: `M${size} 0H0V${size}`, class: `${id}-line`, "stroke-width": stroke });
  squares.append(path);
  return squares;
}

function element(name, attributes) {
  const created = document.createElementNS(SVG, name);
  for (const [attribute, value] of Object.entries(attributes)) created.setAttribute(attribute, value);
  return created;
}
