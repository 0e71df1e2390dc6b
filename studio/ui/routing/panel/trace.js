// A growing routing trace. Rows are token-major: [T, L, N, K], or [T, L, N] for entropies and the base model's units.
// A unit is an expert, or a group of experts that the router always selects together.

// Gates and entropies are stored as shares of this.
const FULL = 65535;

export class Trace {
  constructor() {
    this.id = "";
    this.count = 0; // tokens so far
    this.total = 0; // tokens on the server
    this.compared = 0; // tokens whose routing in the base model is known
    this.flips = null; // shares of differences to the base model
    this.largestGate = 0; // of one expert
    this.isMixed = false; // whether a router selected experts of several groups for one token
    this.texts = [];
    this.sums = new Float64Array(256); // gates by unit, reused by every call of `gatesOf`
  }

  // `head` has the sizes L, N, K and E, the names of the router kinds, the group of each expert, the number of prompt
  // tokens (`prompt`), whether experts are tied into groups (`tied`), and whether the gates of a router sum to 1
  // (`gatesSumToOne`); otherwise they are probabilities.
  reset(id, head) {
    const empty = { count: 0, total: 0, texts: [], compared: 0, flips: null, largestGate: 0, isMixed: false };
    Object.assign(this, head, { id }, empty);
    this.groupCount = Math.max(...head.groups) + 1;
    this.experts = new Uint8Array(0);
    this.gates = new Uint16Array(0);
    this.entropies = new Uint16Array(0);
    this.baseUnits = { group: new Uint16Array(0), expert: new Uint16Array(0) };
    const routers = head.L * head.N;
    this.assignments = { prompt: new Float64Array(routers * head.E), answer: new Float64Array(routers * head.E) };
    this.gateSums = { prompt: new Float64Array(routers), answer: new Float64Array(routers) };
    this.strongestCounts = new Map(); // { counts, tokens } by part, router and unit
  }

  // Rows that start beyond `count` would leave a gap and are ignored; rows that exist already are skipped.
  append(from, rows) {
    const texts = JSON.parse(new TextDecoder().decode(decode(rows.t)));
    const skip = this.count - from;
    if (skip < 0 || skip >= texts.length) return;
    const start = this.count, routers = this.L * this.N, slots = routers * this.K;
    this.experts = extended(this.experts, start * slots, decode(rows.e).subarray(skip * slots));
    this.gates = extended(this.gates, start * slots, decode16(rows.g).subarray(skip * slots));
    this.entropies = extended(this.entropies, start * routers, decode16(rows.h).subarray(skip * routers));
    this.texts.push(...texts.slice(skip));
    this.count += texts.length - skip;
    for (let t = start; t < this.count; t++) this.add(t);
  }

  add(t) {
    const counts = this.assignments[this.part(t)], sums = this.gateSums[this.part(t)];
    let slot = this.slot(t, 0, 0);
    for (let router = 0; router < this.L * this.N; router++) {
      const group = this.groups[this.experts[slot]];
      for (let k = 0; k < this.K; k++, slot++) {
        if (this.groups[this.experts[slot]] !== group) this.isMixed = true;
        const gate = this.gates[slot] / FULL;
        counts[router * this.E + this.experts[slot]]++;
        sums[router] += gate;
        if (gate > this.largestGate) this.largestGate = gate;
      }
    }
  }

  // Adds the base model's units, which follow those that are known.
  compare(from, rows) {
    if (from !== this.compared) return;
    const routers = this.L * this.N;
    for (const unit of ["group", "expert"]) {
      const added = decode16(rows[unit]);
      this.baseUnits[unit] = extended(this.baseUnits[unit], from * routers, added);
      this.compared = from + added.length / routers;
    }
  }

  // Returns the base model's strongest unit if it is a different one, else null.
  baseUnit(t, l, n, isSingle) {
    if (t >= this.compared) return null;
    const unit = this.baseUnits[isSingle ? "expert" : "group"][this.router(t, l, n)];
    return unit ? unit - 1 : null;
  }

  isPrompt(t) {
    return t < this.prompt;
  }

  part(t) {
    return this.isPrompt(t) ? "prompt" : "answer";
  }

  // Returns the first token of a part ("prompt" or "answer") and the token after its last.
  range(part) {
    const promptEnd = Math.min(this.prompt, this.count);
    return part === "prompt" ? [0, promptEnd] : [promptEnd, this.count];
  }

  router(t, l, n) {
    return (t * this.L + l) * this.N + n;
  }

  slot(t, l, n) {
    return this.router(t, l, n) * this.K;
  }

  // Returns the entropy as a share of the maximum.
  entropy(t, l, n) {
    return this.entropies[this.router(t, l, n)] / FULL;
  }

  // Returns the selected experts with their gates, in the order of the router.
  selected(t, l, n) {
    const first = this.slot(t, l, n), slots = Array.from({ length: this.K }, (_, k) => first + k);
    return slots.map((slot) => ({ expert: this.experts[slot], gate: this.gates[slot] / FULL }));
  }

  // Returns the unit with the largest sum of gates; ties go to the lowest id.
  strongest(t, l, n, isSingle) {
    const sums = this.gatesOf(t, l, n, isSingle);
    let best = 0;
    for (let unit = 1; unit < sums.length; unit++) if (sums[unit] > sums[best]) best = unit;
    return best;
  }

  // Returns the share of the gate of each unit. The next call overwrites the result.
  gatesOf(t, l, n, isSingle) {
    const sums = this.sums.subarray(0, isSingle ? this.E : this.groupCount);
    sums.fill(0);
    const slot = this.slot(t, l, n);
    for (let k = 0; k < this.K; k++) {
      const expert = this.experts[slot + k];
      sums[isSingle ? expert : this.groups[expert]] += this.gates[slot + k];
    }
    for (let unit = 0; unit < sums.length; unit++) sums[unit] /= FULL;
    return sums;
  }

  // Returns in how many tokens of a part each unit is the strongest of a router.
  countStrongest(part, l, n, isSingle) {
    const key = `${part} ${l} ${n} ${isSingle}`, [start, end] = this.range(part);
    if (!this.strongestCounts.has(key))
      this.strongestCounts.set(key, { counts: new Array(isSingle ? this.E : this.groupCount).fill(0), tokens: 0 });
    const known = this.strongestCounts.get(key);
    for (; known.tokens < end - start; known.tokens++)
      known.counts[this.strongest(start + known.tokens, l, n, isSingle)]++;
    return known.counts;
  }

  // Returns in how many tokens of a part each expert of a router is selected.
  countSelected(part, l, n) {
    const first = (l * this.N + n) * this.E;
    return Array.from(this.assignments[part].subarray(first, first + this.E));
  }

  // Returns the mean sum of a router's gates in a part: 1, or the share of the probability that the selected experts
  // hold. 0 without tokens.
  gateSum(part, l, n) {
    const [start, end] = this.range(part);
    return this.gateSums[part][l * this.N + n] / Math.max(end - start, 1);
  }

  // Returns each unit's share of the assignments of one router in a part; they sum to 1.
  load(part, l, n, isSingle) {
    const counts = this.assignments[part], first = (l * this.N + n) * this.E;
    const shares = new Float64Array(isSingle ? this.E : this.groupCount);
    let sum = 0;
    for (let expert = 0; expert < this.E; expert++) {
      shares[isSingle ? expert : this.groups[expert]] += counts[first + expert];
      sum += counts[first + expert];
    }
    return sum ? shares.map((share) => share / sum) : shares;
  }
}

// Returns `array` with `added` from `start` on; the array grows by doubling, so it may be longer than its content.
function extended(array, start, added) {
  const needed = start + added.length;
  if (needed > array.length) {
    const larger = new array.constructor(Math.max(needed, 2 * array.length));
    larger.set(array.subarray(0, start));
    array = larger;
  }
  array.set(added, start);
  return array;
}

function decode(base64) {
  return Uint8Array.from(atob(base64), (sign) => sign.charCodeAt(0));
}

function decode16(base64) {
  return new Uint16Array(decode(base64).buffer);
}
