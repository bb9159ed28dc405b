// Names of leads, and the limb leads that follow from two others (Einthoven, Goldberger).

export const LEADS = ["I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6"];

// Each limb lead by its factors of I and II. All six lie in one plane and no two on one axis, so any two give the rest.
const LIMB_LEADS = { I: [1, 0], II: [0, 1], III: [-1, 1], aVR: [-0.5, -0.5], aVL: [1, -0.5], aVF: [-0.5, 1] };
const isLimbLead = (name) => Object.hasOwn(LIMB_LEADS, name);
const PREFIX = /^(mdc[\s_-]+)?(e[ck]g[\s_-]+)?(lead[\s_-]*)?(d(?=i{1,3}$))?/i;

// A file that the page cannot use; the message is for the user.
export class RecordError extends Error {}

// Return one of the twelve names for a name such as "AVR" or "Lead I", and any other name as it is.
export function standardName(name) {
  const short = name.replace(PREFIX, "").toLowerCase();
  return LEADS.find((lead) => lead.toLowerCase() === short) ?? name;
}

// Return the names of the leads of a record, and C1 to C6 as V1 to V6 if I, II and all six are there.
export function standardNames(names) {
  const short = names.map((name) => name.replace(PREFIX, "").toUpperCase());
  const chest = /^C[1-6]$/;
  const electrodes = new Set(short.filter((name) => chest.test(name)));
  const areChestLeads =
    electrodes.size === 6 && short.includes("I") && short.includes("II") && !short.some((name) => /^V[1-6]$/.test(name));
  return names.map((name, row) =>
    areChestLeads && chest.test(short[row]) ? `V${short[row][1]}` : standardName(name),
  );
}

// Return the leads that are absent and cannot be derived.
export function missingLeads(names, leads = LEADS) {
  const derivable = names.filter(isLimbLead).length >= 2;
  return leads.filter((lead) => !names.includes(lead) && !(derivable && isLimbLead(lead)));
}

// Return [[lead, factor], [lead, factor]], the two limb leads from which another one is computed: I and II if both are
// there, otherwise the pair that magnifies noise least.
export function derivation(names, lead) {
  const present = Object.keys(LIMB_LEADS).filter((name) => names.includes(name));
  let pairs = present.flatMap((first, index) => present.slice(index + 1).map((second) => [first, second]));
  if (present.includes("I") && present.includes("II")) pairs = [["I", "II"]];
  const size = ([[, p], [, q]]) => Math.abs(p) + Math.abs(q);
  // the first of the best, as in Python
  return pairs.map((pair) => factors(pair, lead)).reduce((best, next) => (size(next) < size(best) ? next : best));
}

// Solve lead = p first + q second by Cramer's rule.
function factors([first, second], lead) {
  const [[a, b], [c, d], [e, f]] = [first, second, lead].map((name) => LIMB_LEADS[name]);
  const determinant = a * d - b * c; // never 0
  return [
    [first, (e * d - f * c) / determinant],
    [second, (a * f - b * e) / determinant],
  ];
}

// Return the signals of these leads, in this order, of a Map from names to Float64Arrays.
export function selectLeads(signals, leads, { derive = true } = {}) {
  const names = [...signals.keys()];
  const missing = derive ? missingLeads(names, leads) : leads.filter((lead) => !signals.has(lead));
  if (missing.length) {
    throw new RecordError(
      `The network needs the leads ${leads.join(", ")}. The record has ${shown(names.join(", "))}, ` +
        `which do not give ${missing.join(", ")}.`,
    );
  }
  return leads.map((lead) => {
    if (signals.has(lead)) return signals.get(lead);
    const [[first, p], [second, q]] = derivation(names, lead);
    const other = signals.get(second);
    return signals.get(first).map((value, index) => p * value + q * other[index]);
  });
}

// Return a text of a file for a message, without the end of a long one and without control characters.
export function shown(text, length = 100) {
  const clipped = text.length > length ? `${text.slice(0, length)}…` : text;
  return clipped.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, "\u{FFFD}");
}
