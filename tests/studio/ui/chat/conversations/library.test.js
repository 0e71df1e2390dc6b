import assert from "node:assert/strict";
import { test } from "node:test";

import { Library } from "#ui/chat/conversations/library.js";
import { MemoryStore, openStore } from "#ui/chat/conversations/store.js";

const ID = (digit) => String(digit).repeat(32);

function value(id, ...contents) {
  const turns = contents.map((content, i) => ({ role: i % 2 ? "assistant" : "user", content }));
  return JSON.stringify({ id, title: "", system: "", turns });
}

// A tab with its own library on a shared store; `told` has the kinds of its events.
async function tab(store = new MemoryStore()) {
  let now = 0;
  const told = [], library = new Library(store, ({ kind }) => told.push(kind), () => ++now);
  await library.load();
  return { store, told, library };
}

// Until all is stored, copies too, which are stored after what made them necessary.
async function idle(library) {
  for (let writing; writing !== library.writing; await writing) writing = library.writing;
}

const titles = (heads) => heads.map(({ title, first }) => title || first);

test("conversations are listed, searched, renamed, deleted and brought back", async () => {
  const { library } = await tab();
  library.receive(value(ID(1), "A whale", "It sings"));
  library.receive(value(ID(2), "A lighthouse", "It \"shines\""));
  assert.deepEqual(titles(await library.search("")), ["A lighthouse", "A whale"]);
  await library.writing;
  for (const words of ["sings", "WHALE"]) assert.deepEqual(titles(await library.search(words)), ["A whale"]);
  assert.deepEqual(titles(await library.search("\"shines\"")), ["A lighthouse"]);
  assert.deepEqual(await library.search("assistant"), [], "only messages are searched");
  await library.rename(ID(1), "Ocean");
  assert.deepEqual(titles(await library.search("")), ["A lighthouse", "Ocean"]);
  assert.equal(JSON.parse((await library.open(ID(1))).value).title, "Ocean");
  await library.remove(ID(2));
  assert.deepEqual(titles(await library.search("")), ["Ocean"]);
  library.restore();
  assert.deepEqual(titles(await library.search("")), ["A lighthouse", "Ocean"]);
  assert.equal(JSON.parse(await library.exported()).conversations.length, 2);
});

test("what arrives late goes to its own conversation", async () => {
  const { library } = await tab();
  library.receive(value(ID(1), "Count"));
  const shown = library.receive(value(ID(2)));
  assert.equal(library.receive(value(ID(1), "Count", "1 2 3")), shown);
  assert.equal(library.id, ID(2));
  assert.equal(JSON.parse((await library.open(ID(1))).value).turns[1].content, "1 2 3");
  await library.remove(ID(1));
  library.receive(value(ID(1), "Count", "1 2 3 4"));
  assert.deepEqual(await library.search(""), [], "a deleted conversation stays deleted");
});

test("a name outlives the answers that were asked for before it", async () => {
  const { library } = await tab();
  library.receive(value(ID(1), "Hi"));
  await library.rename(ID(1), "Greeting");
  assert.equal(JSON.parse(library.receive(value(ID(1), "Hi", "Hello"))).title, "Greeting");
});

test("two tabs with the same conversation keep a copy of each", async () => {
  const one = await tab();
  one.library.receive(value(ID(1), "Hi", "Hello"));
  await one.library.writing;
  const two = await tab(one.store);
  await two.library.open(ID(1));
  one.library.receive(value(ID(1), "Hi", "Hello", "One?", "1"));
  await one.library.writing;
  two.library.receive(value(ID(1), "Hi", "Hello", "Two?"));
  two.library.receive(value(ID(1), "Hi", "Hello", "Two?", "2"));
  await idle(two.library);
  assert.ok(two.told.includes("copied") && two.library.id !== ID(1));
  two.library.receive(value(ID(1), "Hi", "Hello", "Two?", "2", "Three?", "3"));
  await idle(two.library);
  const contents = await Promise.all((await one.store.heads()).map(async ({ id }) =>
    JSON.parse(await one.store.body(id)).turns.map((turn) => turn.content).join(" ")));
  assert.deepEqual(contents.sort(), ["Hi Hello One? 1", "Hi Hello Two? 2 Three? 3"]);
});

test("a draft is kept with its conversation, and one that is emptied leaves nothing", async () => {
  const { store, library } = await tab();
  library.keepDraft("not sent");
  await library.writing;
  const { id } = library;
  library.startNew();
  assert.equal((await library.open(id)).draft, "not sent");
  library.keepDraft("");
  await library.writing;
  assert.deepEqual([await store.heads(), await library.search("")], [[], []]);
});

test("a draft in another tab makes no copy", async () => {
  const one = await tab();
  one.library.receive(value(ID(1), "Hi", "Hello"));
  await one.library.writing;
  const two = await tab(one.store);
  await two.library.open(ID(1));
  two.library.keepDraft("half a");
  await two.library.writing;
  one.library.receive(value(ID(1), "Hi", "Hello", "One?", "1"));
  await one.library.writing;
  two.library.keepDraft("half a question");
  await two.library.writing;
  assert.equal((await one.store.heads()).length, 1);
  assert.equal(JSON.parse(await one.store.body(ID(1))).turns.length, 4);
});

test("a full storage loses nothing, and stores again once there is room", async () => {
  const store = new MemoryStore(), put = store.put.bind(store);
  const { told, library } = await tab(store);
  library.receive(value(ID(1), "Old"));
  await library.writing;
  store.put = async () => {
    throw new DOMException("full", "QuotaExceededError");
  };
  library.receive(value(ID(2), "New", "Answer"));
  await library.writing;
  assert.equal(told.at(-1), "full");
  assert.equal(JSON.parse((await library.open(ID(2))).value).turns.length, 2);
  assert.equal(JSON.parse(await library.exported()).conversations.length, 2);
  store.put = put;
  await library.remove(ID(1));
  await library.writing;
  assert.equal(told.at(-1), "stored");
  assert.equal(JSON.parse(await store.body(ID(2))).turns[1].content, "Answer");
});

test("several imported conversations are all stored, and the first is open", async () => {
  const { library } = await tab();
  library.receive(JSON.stringify({ several: [value(ID(1), "First"), value(ID(2), "Second")] }));
  assert.equal(library.id, ID(1));
  assert.equal((await library.search("")).length, 2);
});

test("where the browser refuses storage, the memory of the page is used", async (t) => {
  t.mock.method(console, "info", () => {});
  const refusing = { open: () => { throw new DOMException("refused", "SecurityError"); } };
  for (const storage of [refusing, undefined]) {
    const { store, isKept } = await openStore(storage);
    assert.deepEqual([await store.heads(), isKept], [[], false]);
  }
});
