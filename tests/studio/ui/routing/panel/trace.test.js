import assert from "node:assert/strict";
import { test } from "node:test";

import { Trace } from "#ui/routing/panel/trace.js";

import { base16, encode, gateSums, HEAD, headOf, loadOf, randomTokens } from "./traces.js";

const TOKENS = randomTokens(50);

function traceOf(tokens, head = HEAD) {
  const trace = new Trace();
  trace.reset("a", head);
  trace.append(0, encode(tokens));
  return trace;
}

// Calls back for every router and both units.
function forEachRouter(callback) {
  for (let l = 0; l < HEAD.L; l++)
    for (let n = 0; n < HEAD.N; n++) for (const isSingle of [false, true]) callback(l, n, isSingle);
}

test("a trace holds what was sent", () => {
  const trace = traceOf(TOKENS);
  assert.equal(trace.count, 50);
  assert.deepEqual(trace.texts, TOKENS.map((token) => token.text));
  TOKENS.forEach((token, t) => forEachRouter((l, n) => {
    const selected = trace.selected(t, l, n);
    assert.deepEqual(selected.map(({ expert }) => expert), token.experts[l][n]);
    assert.deepEqual(selected.map(({ gate }) => gate), token.gates[l][n].map((gate) => gate / 65535));
    assert.equal(trace.entropy(t, l, n), token.entropy[l][n] / 65535);
  }));
});

test("the strongest unit has the largest sum of gates; ties go to the lowest id", () => {
  const trace = traceOf(TOKENS);
  let ties = 0;
  TOKENS.forEach((token, t) => forEachRouter((l, n, isSingle) => {
    const sums = gateSums(token, l, n, isSingle), largest = Math.max(...sums);
    ties += sums.filter((sum) => sum === largest).length > 1;
    assert.equal(trace.strongest(t, l, n, isSingle), sums.indexOf(largest));
    assert.deepEqual([...trace.gatesOf(t, l, n, isSingle)], sums.map((sum) => sum / 65535));
  }));
  assert.ok(ties > 20, "the test has ties");
});

test("loads are counted again, for the prompt and the answer", () => {
  const trace = traceOf(TOKENS);
  forEachRouter((l, n, isSingle) => {
    assert.deepEqual([...trace.load("prompt", l, n, isSingle)], loadOf(TOKENS.slice(0, 4), l, n, isSingle));
    assert.deepEqual([...trace.load("answer", l, n, isSingle)], loadOf(TOKENS.slice(4), l, n, isSingle));
  });
});

test("a trace is mixed once a router selects experts of several groups", () => {
  const together = TOKENS.map((token) => ({ ...token, experts: token.experts.map((row) => row.map(() => [4, 5])) }));
  const trace = traceOf(together);
  assert.equal(trace.isMixed, false);
  trace.append(50, encode(TOKENS));
  assert.equal(trace.isMixed, true);
  trace.reset("b", HEAD);
  assert.equal(trace.isMixed, false);
});

for (const [E, K] of [[8, 1], [16, 2], [64, 8], [256, 8]])
  test(`one kind of router with top-${K} of ${E} experts, whose gates are probabilities`, () => {
    const head = headOf(E, K), tokens = randomTokens(30, 1, head), trace = traceOf(tokens, head);
    const gates = tokens.flatMap((token) => token.gates.flat(2));
    assert.equal(trace.largestGate, Math.max(...gates) / 65535);
    for (const [part, used] of [["prompt", tokens.slice(0, 4)], ["answer", tokens.slice(4)]])
      for (let l = 0; l < head.L; l++) {
        const strongest = new Array(E).fill(0), selected = new Array(E).fill(0);
        for (const token of used) {
          const sums = gateSums(token, l, 0, true, head);
          strongest[sums.indexOf(Math.max(...sums))]++;
          for (const expert of token.experts[l][0]) selected[expert]++;
        }
        assert.deepEqual([...trace.load(part, l, 0, true)], loadOf(used, l, 0, true, head));
        assert.deepEqual(trace.countStrongest(part, l, 0, true), strongest);
        assert.deepEqual(trace.countSelected(part, l, 0), selected);
        const held = used.flatMap((token) => token.gates[l][0]).reduce((sum, gate) => sum + gate / 65535, 0);
        assert.ok(Math.abs(trace.gateSum(part, l, 0) - held / used.length) < 1e-9);
      }
  });

test("strongest units are counted on as tokens arrive", () => {
  const trace = new Trace(), expected = traceOf(TOKENS);
  trace.reset("a", HEAD);
  for (const end of [2, 3, 5, 20, 50]) {
    trace.append(trace.count, encode(TOKENS.slice(trace.count, end)));
    for (const part of ["prompt", "answer"]) trace.countStrongest(part, 1, 1, false);
  }
  for (const part of ["prompt", "answer"])
    assert.deepEqual(trace.countStrongest(part, 1, 1, false), expected.countStrongest(part, 1, 1, false));
});

test("a trace without tokens of a part has no load", () => {
  const trace = traceOf(TOKENS.slice(0, 2));
  assert.deepEqual([...trace.load("answer", 0, 0, false)], [0, 0, 0]);
  assert.deepEqual([trace.range("prompt"), trace.range("answer")], [[0, 2], [2, 2]]);
});

test("rows may come twice or overlap, but never leave a gap", () => {
  const trace = new Trace();
  trace.reset("a", HEAD);
  const counts = [[3, 9], [0, 5], [0, 5], [2, 4], [6, 20], [5, 5], [3, 21], [22, 50]].map(([from, to]) => {
    trace.append(from, encode(TOKENS.slice(from, to)));
    return trace.count;
  });
  assert.deepEqual(counts, [0, 5, 5, 5, 5, 5, 21, 21]);
});

test("overlapping rows give the same trace as all at once", () => {
  const trace = new Trace(), expected = traceOf(TOKENS), used = (each) => each.subarray(0, 50 * HEAD.L * HEAD.N);
  trace.reset("a", HEAD);
  for (const [from, to] of [[3, 9], [0, 5], [0, 5], [2, 4], [6, 20], [3, 21], [10, 50], [49, 50]])
    trace.append(from, encode(TOKENS.slice(from, to)));
  assert.deepEqual(trace.texts, expected.texts);
  assert.deepEqual(used(trace.entropies), used(expected.entropies));
  assert.deepEqual(trace.assignments, expected.assignments);
});

test("the base model's units are there where they differ, in order", () => {
  const trace = traceOf(TOKENS.slice(0, 3)), routers = HEAD.L * HEAD.N;
  assert.equal(trace.baseUnit(0, 0, 0, false), null, "not compared yet");
  const rows = (first) => ({
    group: base16(Array.from({ length: routers }, (_, i) => first * (i % 2))),
    expert: base16(Array.from({ length: routers }, () => first + 1)),
  });
  trace.compare(1, rows(2));
  assert.equal(trace.compared, 0, "a gap");
  trace.compare(0, rows(2));
  trace.compare(1, rows(3));
  trace.compare(0, rows(9));
  assert.equal(trace.compared, 2);
  assert.deepEqual([trace.baseUnit(0, 0, 0, false), trace.baseUnit(0, 0, 1, false)], [null, 1]);
  assert.deepEqual([trace.baseUnit(1, 0, 1, false), trace.baseUnit(1, 2, 1, true)], [2, 3]);
  assert.equal(trace.baseUnit(2, 0, 1, false), null);
});

test("another answer starts anew", () => {
  const trace = traceOf(TOKENS);
  trace.reset("b", { ...HEAD, prompt: 1 });
  assert.deepEqual([trace.count, trace.texts, trace.id, trace.compared, trace.flips], [0, [], "b", 0, null]);
  trace.append(0, encode(TOKENS.slice(10, 12)));
  assert.deepEqual([...trace.load("answer", 1, 1, true)], loadOf(TOKENS.slice(11, 12), 1, 1, true));
});
