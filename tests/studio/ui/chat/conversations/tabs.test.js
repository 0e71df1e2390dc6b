import assert from "node:assert/strict";
import { test } from "node:test";

import { Tabs } from "#ui/chat/conversations/tabs.js";

// Returns tabs on one channel, as a BroadcastChannel is, and whether each was told that another shows the same.
function opened(...ids) {
  const channels = [], same = ids.map(() => false), changed = [];
  const tabs = ids.map((id, i) => {
    const channel = { postMessage: (data) => channels.filter((each) => each !== channel)
      .forEach((each) => each.onmessage({ data })) };
    const tab = new Tabs(id, {
      onChanged: (head) => changed.push([i, head]), onRemoved: (removed) => changed.push([i, removed]),
      onSame: (isSame) => { same[i] = isSame; },
    }, channel);
    channels.push(channel);
    if (channels.length > 1) tab.say("shown", id);
    return tab;
  });
  return { tabs, same, changed };
}

test("tabs with the same conversation are told, until one of two leaves it", () => {
  const { tabs, same } = opened("a", "a", "b");
  assert.deepEqual(same, [true, true, false]);
  tabs[2].show("a");
  assert.deepEqual(same, [true, true, true]);
  tabs[0].show("c");
  assert.deepEqual(same, [false, true, true]);
  tabs[1].show("d");
  assert.deepEqual(same, [false, false, false]);
});

test("what a tab stores and deletes reaches the others", () => {
  const { tabs, changed } = opened("a", "b");
  tabs[0].changed({ id: "a" });
  tabs[1].removed("b");
  assert.deepEqual(changed, [[1, { id: "a" }], [0, "b"]]);
});
