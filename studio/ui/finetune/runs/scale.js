// Axis scales, ticks and paths.
function scaleOf(low, high, start, end, isLog = false) {
  const f = isLog ? Math.log10 : (value) => value;
  const from = f(low), span = f(high) - from || 1;
  return {
    to: (value) => start + ((f(value) - from) / span) * (end - start),
    from: (place) => from + ((place - start) / (end - start)) * span,
  };
}

function ticksOf(low, high, wanted, isWhole = false) {
  const rough = (high - low) / wanted || 1, power = 10 ** Math.floor(Math.log10(rough));
  let step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  if (isWhole) step = Math.max(1, Math.round(step));
  const ticks = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) ticks.push(Number((k * step).toPrecision(12)));
  return ticks;
}

function logTicksOf(low, high) {
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
    for (const factor of [1, 2, 5]) ticks.push(Number((factor * 10 ** power).toPrecision(12)));
  const inside = ticks.filter((tick) => tick >= low && tick <= high);
  if (inside.length < 2) return ticksOf(low, high, 4).filter((tick) => tick > 0);
  if (inside.length < 8) return inside;
  const tens = inside.filter((tick) => Number.isInteger(Number(Math.log10(tick).toFixed(9))));
  return tens.length > 6 ? tens.filter((_, index) => index % Math.ceil(tens.length / 6) === 0) : tens;
}

function tickText(value) {
  const size = Math.abs(value);
  if (size && (size < 0.001 || size >= 1e6)) return value.toExponential().replace("e+", "e");
  return value.toLocaleString("en", { maximumFractionDigits: 6 });
}

// Index of the first x that is at least `value`.
function lowerBound(x, value) {
  let low = 0, high = x.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (x[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

function nearest(x, value) {
  const at = lowerBound(x, value);
  return at > 0 && (at === x.length || value - x[at - 1] <= x[at] - value) ? at - 1 : at;
}

// An exponential moving average with bias correction for the first values.
function smoothed(y, weight) {
  let sum = 0, total = 0;
  return y.map((value) => {
    if (Number.isNaN(value)) return value;
    sum = weight * sum + (1 - weight) * value;
    total = weight * total + (1 - weight);
    return sum / total;
  });
}

// A path through the points between two indices. If there are more points than pixels, it connects the lowest and
// highest point of each pixel column.
function pathOf(x, y, from, to, across, down, width) {
  const parts = [];
  let isOpen = false;
  const lineTo = (px, value) => {
    if (Number.isNaN(value) || !Number.isFinite(down.to(value))) return void (isOpen = false);
    parts.push(`${isOpen ? "L" : "M"}${px.toFixed(1)} ${down.to(value).toFixed(1)}`);
    isOpen = true;
  };
  if (to - from <= 2 * width) {
    for (let i = from; i < to; i++) lineTo(across.to(x[i]), y[i]);
    return parts.join("");
  }
  for (let i = from; i < to; ) {
    const column = Math.round(across.to(x[i]));
    let low = NaN, high = NaN, lowAt = i, highAt = i, first = i;
    for (; i < to && Math.round(across.to(x[i])) === column; i++) {
      if (!(y[i] >= low)) if (!Number.isNaN(y[i])) [low, lowAt] = [y[i], i];
      if (!(y[i] <= high)) if (!Number.isNaN(y[i])) [high, highAt] = [y[i], i];
    }
    if (Number.isNaN(low)) lineTo(column, y[first]);
    else for (const value of lowAt < highAt ? [low, high] : [high, low]) lineTo(column, value);
  }
  return parts.join("");
}
