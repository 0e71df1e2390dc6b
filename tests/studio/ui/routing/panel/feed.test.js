import assert from "node:assert/strict";
import { test } from "node:test";

import { Feed } from "#ui/routing/panel/feed.js";
import { Trace } from "#ui/routing/panel/trace.js";

import { base16, encode, HEAD, randomTokens } from "./traces.js";

const ANSWERS = { a: randomTokens(90, 1), b: randomTokens(30, 2) };
const FETCHED = 25;

// A server with the rows of the answers, and what a feed reported of it. `gate` can hold its answers back.
function setUp(gate = () => Promise.resolve()) {
  const seen = { asked: [], resets: [], rows: 0, compared: 0, kept: [] };
  const trace = new Trace();
  const fetchRows = async (id, start, part) => {
    seen.asked.push([id, start, ...(part ? [part] : [])]);
    await gate();
    const tokens = ANSWERS[id]?.slice(start, start + FETCHED) ?? [];
    if (!tokens.length) return {};
    const base = base16(tokens.flatMap(() => new Array(HEAD.L * HEAD.N).fill(1)));
    return { from: start, rows: part ? { group: base, expert: base } : encode(tokens) };
  };
  const feed = new Feed(trace, fetchRows, {
    onReset: (message) => seen.resets.push(message.id),
    onRows: () => seen.rows++,
    onCompared: () => seen.compared++,
    onKept: ({ kept }) => seen.kept.push(kept),
  });
  return { feed, trace, seen };
}

function message(id, from, to, more = {}) {
  const rows = encode(ANSWERS[id].slice(from, to));
  return JSON.stringify({ id, head: HEAD, from, total: to, rows, answer: 0, answers: 1, ...more });
}

const settled = () => new Promise((done) => setImmediate(done));

test("messages in order need no fetch", async () => {
  const { feed, trace, seen } = setUp();
  for (let from = 0; from < 90; from += 10) feed.receive(message("a", from, from + 10));
  await settled();
  assert.deepEqual([trace.count, seen.asked, seen.resets, seen.rows], [90, [], ["a"], 9]);
  assert.deepEqual(trace.texts, ANSWERS.a.map((token) => token.text));
});

test("alternatives that were computed again leave the shown answer alone", async () => {
  const { feed, trace, seen } = setUp();
  feed.receive(message("a", 0, 10));
  feed.receive(JSON.stringify({ id: "a", kept: 7 }));
  await settled();
  assert.deepEqual([trace.count, seen.kept, seen.resets], [10, [7], ["a"]]);
});

test("what a merged message left out is fetched, and the trace ends complete", async () => {
  const { feed, trace, seen } = setUp();
  feed.receive(message("a", 0, 3));
  feed.receive(message("a", 60, 70)); // those from 3 to 60 were merged away
  feed.receive(message("a", 80, 90));
  await settled();
  assert.deepEqual(trace.texts, ANSWERS.a.map((token) => token.text));
  assert.deepEqual(seen.asked[0], ["a", 3]);
  assert.equal(seen.asked.length, Math.ceil(87 / FETCHED), "one fetch at a time");
});

test("an answer that begins is shown, and an earlier one that was picked stays", async () => {
  const { feed, trace, seen } = setUp();
  feed.receive(message("a", 0, 10));
  feed.receive(message("b", 0, 5));
  assert.equal(trace.id, "b");
  feed.receive(message("a", 0, 10, { picked: true }));
  feed.receive(message("b", 5, 10)); // the later answer is still being generated
  await settled();
  assert.deepEqual([trace.id, trace.count, seen.resets], ["a", 10, ["a", "b", "a"]]);
});

test("rows of another answer that arrive late are dropped", async () => {
  let release;
  const held = new Promise((done) => (release = done));
  const { feed, trace } = setUp(() => held);
  feed.receive(message("a", 80, 90)); // asks for the rows from 0 on
  feed.receive(message("b", 0, 5));
  release();
  await settled();
  assert.deepEqual([trace.id, trace.texts], ["b", ANSWERS.b.slice(0, 5).map((token) => token.text)]);
});

test("differences to the base model are fetched when they are announced", async () => {
  const { feed, trace, seen } = setUp();
  feed.receive(message("a", 0, 30, { flips: {} }));
  await settled();
  assert.deepEqual([seen.asked, trace.flips], [[], null]);
  feed.receive(message("a", 30, 30, { flips: { group: [0.1], expert: [0.2] }, rows: null, total: 30 }));
  await settled();
  assert.deepEqual(seen.asked, [["a", 0, "base"], ["a", 25, "base"]]);
  assert.deepEqual([trace.compared, seen.compared, trace.baseUnit(29, 0, 0, false)], [FETCHED * 2, 2, 0]);
});

test("a server without the rows is asked once", async () => {
  const { feed, trace, seen } = setUp();
  ANSWERS.c = randomTokens(9, 3);
  const told = message("c", 5, 9);
  delete ANSWERS.c;
  feed.receive(told);
  await settled();
  assert.deepEqual([seen.asked.length, trace.count], [1, 0]);
});

test("an empty panel and no message", async () => {
  const { feed, seen } = setUp();
  feed.receive("");
  feed.receive(JSON.stringify({ id: "", hint: "Ask something." }));
  await settled();
  assert.deepEqual([seen.resets, seen.asked], [[""], []]);
});
