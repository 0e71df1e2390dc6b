// Points of a curve as an SVG path. NaN marks a missing value.

// Returns an exponential moving average with bias correction for the first values.
export function smoothed(y, weight) {
  let sum = 0, total = 0;
  return y.map((value) => {
    if (Number.isNaN(value)) return value;
    sum = weight * sum + (1 - weight) * value;
    total = weight * total + (1 - weight);
    return sum / total;
  });
}

// Returns the range of the vertical axis for parts of curves `{ y, start, end }`, with some room around them.
export function valueRange(parts, isLog, startsAtZero) {
  const [lowest, high] = extremes(parts, isLog), low = startsAtZero ? Math.min(0, lowest) : lowest;
  if (lowest > high) return isLog ? [0.1, 1] : [0, 1];
  if (isLog) return low === high ? [low / 2, high * 2] : [low / (high / low) ** 0.05, high * (high / low) ** 0.05];
  const room = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
  return [startsAtZero && low >= 0 ? 0 : low - room, high + room];
}

function extremes(parts, isLog) {
  let low = Infinity, high = -Infinity;
  for (const { y, start, end } of parts)
    for (let i = start; i < end; i++) {
      if (Number.isNaN(y[i]) || (isLog && y[i] <= 0)) continue;
      if (y[i] < low) low = y[i];
      if (y[i] > high) high = y[i];
    }
  return [low, high];
}

// Returns a path through the points from `start` to before `end`. If there are more points than pixels, it connects the
// lowest and the highest point of each pixel column.
export function curvePath({ x, y, start, end }, across, down, width) {
  const path = end - start <= 2 * width ? fullPath : thinPath;
  return path({ x, y, start, end }, across, down);
}

export function fullPath({ x, y, start, end }, across, down) {
  const path = new Path(down);
  for (let i = start; i < end; i++) path.lineTo(across.place(x[i]), y[i]);
  return path.toString();
}

function thinPath({ x, y, start, end }, across, down) {
  const path = new Path(down);
  for (let i = start; i < end; ) {
    const column = Math.round(across.place(x[i]));
    let low = -1, high = -1; // indices, -1 without a number
    for (; i < end && Math.round(across.place(x[i])) === column; i++) {
      if (Number.isNaN(y[i])) continue;
      if (low < 0 || y[i] < y[low]) low = i;
      if (high < 0 || y[i] > y[high]) high = i;
    }
    if (low < 0) path.lineTo(column, NaN);
    else for (const index of low < high ? [low, high] : [high, low]) path.lineTo(column, y[index]);
  }
  return path.toString();
}

// A path with a gap at values that have no place.
class Path {
  constructor(down) {
    Object.assign(this, { down, parts: [], isOpen: false });
  }

  lineTo(left, value) {
    const top = this.down.place(value);
    if (Number.isFinite(top)) this.parts.push(`${this.isOpen ? "L" : "M"}${left.toFixed(1)} ${top.toFixed(1)}`);
    this.isOpen = Number.isFinite(top);
  }

  toString() {
    return this.parts.join("");
  }
}
