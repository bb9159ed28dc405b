// Filters and resampling in float64, which compute the same as scipy.signal.

// Return the second-order sections [b0, b1, b2, a1, a2] of a Butterworth band-pass (scipy.signal.butter).
//
// The sections are grouped in another way than in scipy, which changes rounding errors only.
export function butterworth(order, low, high, rate) {
  // The edges are warped so that they are right after the bilinear transform, at a rate of 2.
  const [w1, w2] = [low, high].map((edge) => 4 * Math.tan((Math.PI * edge) / rate));
  const [width, centre] = [w2 - w1, Math.sqrt(w1 * w2)];
  const pairs = []; // of poles, whose polynomials are real
  for (let index = 0; index < order; index += 1) {
    const angle = (Math.PI * (2 * index + 1 - order)) / (2 * order);
    if (angle > 1e-9) continue; // the conjugate of another one
    // Low-pass to band-pass: p width / 2 +- sqrt((p width / 2)^2 - centre^2).
    const scaled = times([-Math.cos(angle), -Math.sin(angle)], [width / 2, 0]);
    const square = times(scaled, scaled);
    const root = squareRoot([square[0] - centre ** 2, square[1]]);
    const poles = [plus(scaled, root), plus(scaled, [-root[0], -root[1]])];
    // The pole on the real axis gives two that belong together; another one gives two, each with its conjugate.
    if (Math.abs(angle) < 1e-9) pairs.push(poles);
    else for (const pole of poles) pairs.push([pole, [pole[0], -pole[1]]]);
  }
  return pairs.map((pair) => {
    const [first, second] = pair.map((pole) => over([4 + pole[0], pole[1]], [4 - pole[0], -pole[1]]));
    // The gain of the section: width / ((4 - p) (4 - q)) times 4, of the zero at s = 0.
    const denominator = times([4 - pair[0][0], -pair[0][1]], [4 - pair[1][0], -pair[1][1]])[0];
    const gain = (4 * width) / denominator;
    return [gain, 0, -gain, -(first[0] + second[0]), times(first, second)[0]]; // zeros at 1 and -1
  });
}

// Filter a signal forward and backward (scipy.signal.sosfiltfilt, odd padding); returns a Float64Array.
export function filterBothWays(sections, signal, padding) {
  const time = signal.length;
  const edge = Math.min(padding, time - 1);
  const extended = new Float64Array(time + 2 * edge);
  extended.set(signal, edge);
  for (let index = 1; index <= edge; index += 1) {
    extended[edge - index] = 2 * signal[0] - signal[index];
    extended[edge + time - 1 + index] = 2 * signal[time - 1] - signal[time - 1 - index];
  }
  filterInPlace(sections, extended);
  filterInPlace(sections, extended.reverse());
  return extended.reverse().slice(edge, edge + time);
}

// Filter in place, beginning in the state that a constant signal of the first value would have left.
function filterInPlace(sections, signal) {
  let scale = signal[0]; // the constant after each section
  for (const [b0, b1, b2, a1, a2] of sections) {
    const steady = (scale * (b0 + b1 + b2)) / (1 + a1 + a2);
    let second = b2 * scale - a2 * steady;
    let first = b1 * scale - a1 * steady + second;
    for (let index = 0; index < signal.length; index += 1) {
      const input = signal[index];
      const output = b0 * input + first;
      first = b1 * input - a1 * output + second;
      second = b2 * input - a2 * output;
      signal[index] = output;
    }
    scale = steady;
  }
}

// Return the low-pass of scipy.signal.resample_poly: 2 half + 1 taps, a Kaiser window, the sum `up`.
export function resamplingTaps(up, down, beta, half) {
  const cutoff = 1 / Math.max(up, down); // of half the rate
  const taps = new Float64Array(2 * half + 1);
  let sum = 0;
  for (let index = 0; index < taps.length; index += 1) {
    const offset = index - half;
    const angle = Math.PI * cutoff * offset;
    const sinc = offset === 0 ? 1 : Math.sin(angle) / angle;
    const ratio = half === 0 ? 0 : offset / half;
    taps[index] = sinc * (bessel(beta * Math.sqrt(Math.max(0, 1 - ratio * ratio))) / bessel(beta));
    sum += taps[index];
  }
  return taps.map((tap) => (tap * up) / sum);
}

// Resample a signal by up / down with the taps of this ratio; returns ceil(time * up / down) samples.
//
// The line from the first to the last sample is subtracted before, and added after: beyond the ends are zeros.
export function resamplePolyphase(signal, up, down, taps) {
  const half = (taps.length - 1) / 2;
  const slope = (signal.at(-1) - signal[0]) / Math.max(1, signal.length - 1);
  const rest = signal.map((value, index) => value - (signal[0] + slope * index));
  const resampled = new Float64Array(Math.ceil((signal.length * up) / down));
  for (let index = 0; index < resampled.length; index += 1) {
    // y[m] = sum over k of x[k] h[m down + half - k up], for the k whose tap exists
    const centre = index * down + half;
    const from = Math.max(0, Math.ceil((centre - taps.length + 1) / up));
    const to = Math.min(signal.length - 1, Math.floor(centre / up));
    let sum = 0;
    for (let sample = from; sample <= to; sample += 1) sum += rest[sample] * taps[centre - sample * up];
    resampled[index] = sum + signal[0] + (slope * index * down) / up;
  }
  return resampled;
}

// Interpolate floor(time up / down) samples, between two grids in seconds that both include their end.
export function resampleLinear(signal, up, down, rate, to) {
  const time = signal.length;
  const length = Math.floor((time * up) / down);
  const at = (index, count, hz) => (count > 1 ? (index * count) / (count - 1) : 0) / hz; // numpy.linspace
  const resampled = new Float64Array(length);
  let left = 0;
  for (let index = 0; index < length; index += 1) {
    const target = at(index, length, to);
    while (left < time - 2 && at(left + 1, time, rate) <= target) left += 1;
    const [start, end] = [at(left, time, rate), at(left + 1, time, rate)];
    const outside = time < 2 || target >= at(time - 1, time, rate);
    const slope = outside ? 0 : (signal[left + 1] - signal[left]) / (end - start);
    resampled[index] = outside ? signal[time - 1] : slope * (target - start) + signal[left];
  }
  return resampled;
}

// Return [up, down], the ratio of two rates in lowest terms, which has a denominator of at most `most`.
//
// Rates are decimal numbers, so 360.1 is 3601/10 and not the nearest binary fraction.
export function rateRatio(rate, to, most = 100_000) {
  const [a, b] = [decimal(to), decimal(rate)];
  const [up, down] = limited(a[0] * b[1], a[1] * b[0], BigInt(most));
  return [Number(up), Number(down)];
}

// Return numerator and denominator of a number as it is written.
function decimal(number) {
  const [, whole, digits = "", exponent = "0"] = /^([0-9]+)(?:\.([0-9]+))?(?:e([-+]?[0-9]+))?$/.exec(String(number));
  const power = Number(exponent) - digits.length;
  const value = BigInt(whole + digits);
  return power < 0 ? [value, 10n ** BigInt(-power)] : [value * 10n ** BigInt(power), 1n];
}

// Return the nearest fraction with a bounded denominator, by continued fractions (Fraction.limit_denominator).
function limited(numerator, denominator, most) {
  const divisor = common(numerator, denominator);
  if (denominator / divisor <= most) return [numerator / divisor, denominator / divisor];
  let [p0, q0, p1, q1] = [0n, 1n, 1n, 0n];
  let [n, d] = [numerator, denominator];
  while (true) {
    const quotient = n / d;
    const next = q0 + quotient * q1;
    if (next > most) break;
    [p0, q0, p1, q1] = [p1, q1, p0 + quotient * p1, next];
    [n, d] = [d, n - quotient * d];
  }
  const k = (most - q0) / q1;
  const [p, q] = [p0 + k * p1, q0 + k * q1];
  // Which of the two neighbours is nearer: compare |p1/q1 - x| with |p/q - x|, without rounding.
  const distance = (above, below) => absolute(above * denominator - numerator * below);
  return distance(p1, q1) * q <= distance(p, q) * q1 ? [p1, q1] : [p, q];
}

function common(a, b) {
  while (b) [a, b] = [b, a % b];
  return a;
}

function absolute(value) {
  return value < 0n ? -value : value;
}

// Return the modified Bessel function I0 by its power series, which is exact for the small beta of a window.
function bessel(x) {
  let [sum, term] = [1, 1];
  for (let k = 1; term > sum * 1e-17; k += 1) {
    term *= (x / (2 * k)) ** 2;
    sum += term;
  }
  return sum;
}

// Complex numbers are [real, imaginary].
function plus([a, b], [c, d]) {
  return [a + c, b + d];
}

function times([a, b], [c, d]) {
  return [a * c - b * d, a * d + b * c];
}

function over(a, [c, d]) {
  const size = c * c + d * d;
  return times(a, [c / size, -d / size]);
}

function squareRoot([a, b]) {
  const size = Math.hypot(a, b);
  return [Math.sqrt((size + a) / 2), (b < 0 ? -1 : 1) * Math.sqrt((size - a) / 2)];
}
