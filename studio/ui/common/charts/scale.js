// Axis scales, their ticks, and searches in sorted values.

// Maps values between `low` and `high` to places between `start` and `end`, and back.
export function createScale(low, high, start, end, isLog = false) {
  const transform = isLog ? Math.log10 : (value) => value;
  const first = transform(low), span = transform(high) - first || 1;
  return {
    place: (value) => start + ((transform(value) - first) / span) * (end - start),
    // For linear scales only.
    value: (place) => first + ((place - start) / (end - start)) * span,
  };
}

// Returns about `wanted` round values between `low` and `high`.
export function linearTicks(low, high, wanted, isWhole = false) {
  const rough = (high - low) / wanted || 1, power = 10 ** Math.floor(Math.log10(rough));
  let step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  if (isWhole) step = Math.max(1, Math.round(step));
  const ticks = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) ticks.push(rounded(k * step));
  return ticks;
}

// Returns 1, 2 and 5 times the powers of ten in the range; only powers where that is too many.
export function logTicks(low, high) {
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
    for (const factor of [1, 2, 5]) ticks.push(rounded(factor * 10 ** power));
  const inside = ticks.filter((tick) => tick >= low && tick <= high);
  if (inside.length < 2) return linearTicks(low, high, 4).filter((tick) => tick > 0);
  if (inside.length < 8) return inside;
  const powers = inside.filter((tick) => Number.isInteger(Number(Math.log10(tick).toFixed(9))));
  return powers.length > 6 ? powers.filter((_, index) => index % Math.ceil(powers.length / 6) === 0) : powers;
}

export function tickText(value) {
  const size = Math.abs(value);
  if (size && (size < 0.001 || size >= 1e6)) return value.toExponential().replace("e+", "e");
  return value.toLocaleString("en", { maximumFractionDigits: 6 });
}

// Removes the error of a product.
function rounded(value) {
  return Number(value.toPrecision(12));
}

// Returns the index of the first of the sorted values that is at least `value`.
export function lowerBound(sorted, value) {
  let low = 0, high = sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

// Returns the index of the nearest of the sorted values; of two equally near ones, the lower.
export function nearest(sorted, value) {
  const index = lowerBound(sorted, value);
  const isBelowNearer = index === sorted.length || value - sorted[index - 1] <= sorted[index] - value;
  return index > 0 && isBelowNearer ? index - 1 : index;
}
