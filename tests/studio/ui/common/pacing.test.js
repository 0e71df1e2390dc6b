import assert from "node:assert/strict";
import { test } from "node:test";

import { oncePerFrame, Throttle } from "#ui/common/pacing.js";

// Calls a function at each millisecond until `end`, and returns the times at which the throttle ran.
function runsOf(t, end, atMs) {
  const ran = [], due = new Map();
  let now = 0;
  t.mock.method(globalThis, "setTimeout", (work, waitMs) => {
    due.set(work, now + waitMs);
    return work;
  });
  t.mock.method(globalThis, "clearTimeout", (work) => due.delete(work));
  const throttle = new Throttle(() => ran.push(now), 1000, () => now);
  for (; now < end; now++) {
    for (const [work, at] of due) if (at <= now && due.delete(work)) work();
    atMs(now, throttle);
  }
  return ran;
}

test("many requests run once per interval, the last one at its end", (t) => {
  const ran = runsOf(t, 5000, (ms, throttle) => ms < 2500 && ms % 16 === 0 && throttle.request());
  assert.deepEqual(ran, [0, 1000, 2000, 3000]);
});

test("a request after a pause runs at once", (t) => {
  const ran = runsOf(t, 5000, (ms, throttle) => [100, 4000].includes(ms) && throttle.request());
  assert.deepEqual(ran, [100, 4000]);
});

test("running at once replaces the request that waits", (t) => {
  const ran = runsOf(t, 3000, (ms, throttle) => {
    if (ms === 0 || ms === 300) throttle.request();
    if (ms === 500) throttle.run();
  });
  assert.deepEqual(ran, [0, 500]);
});

test("a frame runs the latest work once", () => {
  const frames = [], done = [];
  globalThis.requestAnimationFrame = (frame) => frames.push(frame);
  const later = oncePerFrame();
  for (const name of ["a", "b", "c"]) later(() => done.push(name));
  assert.equal(frames.length, 1);
  frames.pop()();
  assert.deepEqual(done, ["c"]);
  later(() => done.push("d"));
  frames.pop()();
  assert.deepEqual(done, ["c", "d"]);
  delete globalThis.requestAnimationFrame;
});
