// A growing routing trace. Rows are token-major: [T, L, N, K], or [T, L, N] for entropies and the base model's units.
function createTrace() {
  const trace = { id: "", count: 0, texts: [] };
  const mass = new Float64Array(256);

  trace.reset = (id, head) => {
    Object.assign(trace, head, { id, count: 0, total: 0, texts: [], compared: 0, flips: null });
    trace.m = Math.max(...head.groups) + 1;
    trace.experts = new Uint8Array(0);
    trace.gates = new Uint16Array(0);
    trace.entropies = new Uint16Array(0);
    trace.others = { group: new Uint16Array(0), expert: new Uint16Array(0) };
    trace.assigned = [0, 1].map(() => new Float64Array(head.L * head.N * head.E)); // prompt, answer
  };

  // Rows that start beyond `count` would leave a gap and are ignored; rows that exist already are skipped.
  trace.append = (from, rows) => {
    const texts = JSON.parse(new TextDecoder().decode(bytes(rows.t)));
    const skip = trace.count - from;
    if (skip < 0 || skip >= texts.length) return;
    const perToken = trace.L * trace.N * trace.K;
    trace.experts = put(trace.experts, bytes(rows.e), trace.count, skip, perToken);
    trace.gates = put(trace.gates, new Uint16Array(bytes(rows.g).buffer), trace.count, skip, perToken);
    trace.entropies = put(trace.entropies, new Uint16Array(bytes(rows.h).buffer), trace.count, skip, trace.L * trace.N);
    trace.texts.push(...texts.slice(skip));
    const start = trace.count;
    trace.count += texts.length - skip;
    for (let t = start; t < trace.count; t++) countToken(t);
  };

  trace.compare = (from, rows) => {
    if (from !== trace.compared) return;
    const perToken = trace.L * trace.N;
    let fresh = 0;
    for (const unit of ["group", "expert"]) {
      const others = new Uint16Array(bytes(rows[unit]).buffer);
      trace.others[unit] = put(trace.others[unit], others, from, 0, perToken);
      fresh = others.length / perToken;
    }
    trace.compared += fresh;
  };

  // Returns the base model's strongest unit if it is a different one, else null.
  trace.baseUnit = (t, l, n, single) => {
    const other = t < trace.compared ? trace.others[single ? "expert" : "group"][(t * trace.L + l) * trace.N + n] : 0;
    return other ? other - 1 : null;
  };

  trace.isPrompt = (t) => t < trace.prompt;
  trace.at = (t, l, n) => ((t * trace.L + l) * trace.N + n) * trace.K;
  trace.entropy = (t, l, n) => trace.entropies[(t * trace.L + l) * trace.N + n] / 65535;
  trace.scope = (name) => (name === "prompt" ? [0, Math.min(trace.prompt, trace.count)] : [Math.min(trace.prompt, trace.count), trace.count]);

  // Returns the unit (expert, or group unless `single`) with the largest sum of gates; ties go to the lowest id.
  trace.strongest = (t, l, n, single) => {
    const sums = trace.massOf(t, l, n, single);
    let best = 0;
    for (let unit = 1; unit < sums.length; unit++) if (sums[unit] > sums[best]) best = unit;
    return best;
  };

  trace.massOf = (t, l, n, single) => {
    const units = single ? trace.E : trace.m;
    mass.fill(0, 0, units);
    for (let k = 0, at = trace.at(t, l, n); k < trace.K; k++, at++) {
      const expert = trace.experts[at];
      mass[single ? expert : trace.groups[expert]] += trace.gates[at];
    }
    return mass.subarray(0, units);
  };

  // Returns each unit's share of the assignments of one router; they sum to 1.
  trace.load = (scope, l, n, single) => {
    const counts = trace.assigned[scope === "prompt" ? 0 : 1];
    const shares = new Float64Array(single ? trace.E : trace.m);
    let sum = 0;
    for (let expert = 0; expert < trace.E; expert++) {
      const count = counts[(l * trace.N + n) * trace.E + expert];
      shares[single ? expert : trace.groups[expert]] += count;
      sum += count;
    }
    return sum ? shares.map((share) => share / sum) : shares;
  };

  function countToken(t) {
    const counts = trace.assigned[trace.isPrompt(t) ? 0 : 1];
    let at = trace.at(t, 0, 0);
    for (let router = 0; router < trace.L * trace.N; router++)
      for (let k = 0; k < trace.K; k++, at++) counts[router * trace.E + trace.experts[at]]++;
  }

  function bytes(base64) {
    return Uint8Array.from(atob(base64), (sign) => sign.charCodeAt(0));
  }

  function put(array, rows, count, skip, perToken) {
    const fresh = rows.subarray(skip * perToken);
    const needed = count * perToken + fresh.length;
    if (needed > array.length) {
      const bigger = new array.constructor(Math.max(needed, 2 * array.length));
      bigger.set(array.subarray(0, count * perToken));
      array = bigger;
    }
    array.set(fresh, count * perToken);
    return array;
  }

  return trace;
}
