// The conversations of a browser, and the one that this tab shows. The server sends values (`conversation.to_json`),
// each with its id: what arrives late, after another conversation was opened, goes where it belongs.

import {
  FORMAT, bodyMatches, emptyConversation, headMatches, headOf, isEmpty, newId, newestFirst, titleOf,
} from "./records.js";

export class Library {
  // `tell(event)` gets { kind: "changed", head }, { kind: "removed", id }, { kind: "copied" }, { kind: "full" } and
  // { kind: "stored" }.
  constructor(store, tell, now = Date.now) {
    Object.assign(this, { store, tell, now });
    this.heads = new Map();
    this.aliases = new Map(); // ids by the ids that the server still uses
    this.deleted = new Set();
    this.unsaved = new Map(); // [head, body] by id, where the storage is full
    this.last = null; // [head, body] of the conversation that was deleted last
    this.revisions = new Map(); // what this tab has read or stored last, by id
    this.writing = Promise.resolve();
    this.startNew();
  }

  async load() {
    for (const head of await this.store.heads()) this.heads.set(head.id, head);
  }

  get head() {
    return this.heads.get(this.id);
  }

  // --- the conversation of this tab

  startNew() {
    this.id = newId();
    this.value = emptyConversation(this.id);
    return { value: this.value, draft: "" };
  }

  // Returns the value and the draft of a stored conversation, which this tab shows from now on.
  async open(id) {
    await this.writing;
    const head = (await this.store.heads()).find((each) => each.id === id) ?? this.unsaved.get(id)?.[0];
    if (!head) return this.startNew();
    this.heads.set(id, head);
    this.revisions.set(id, head.revision);
    this.id = id;
    this.aliases.delete(id);
    this.value = titled((await this.bodyOf(id)) || emptyConversation(id), head.title);
    return { value: this.value, draft: head.draft };
  }

  // Stores a value of the server, and returns the value that the page holds from now on.
  receive(text) {
    const { several, ...conversation } = JSON.parse(text);
    if (several) {
      for (const each of several.slice(1)) this.write(JSON.parse(each));
      return this.receive(several[0]);
    }
    conversation.id = this.aliases.get(conversation.id) ?? conversation.id;
    const { id } = conversation, isLate = id !== this.id && this.heads.has(id);
    if (this.deleted.has(id)) return this.value;
    const stored = this.write(conversation);
    if (isLate) return this.value;
    this.id = id;
    this.value = stored;
    return this.value;
  }

  keepDraft(draft) {
    if (draft === (this.head?.draft ?? "")) return;
    const head = { ...(this.head ?? headOf(JSON.parse(this.value), null, this.now())), draft };
    if (isEmpty(head)) this.forget(head.id);
    else this.put(head, this.value, true);
  }

  forget(id) {
    this.heads.delete(id);
    this.revisions.delete(id);
    this.writing = this.writing.then(() => this.store.remove(id));
  }

  // --- any conversation

  // Returns the heads that match, the newest first; it reads messages only where words are searched for.
  async search(text) {
    const words = text.trim().toLowerCase();
    const heads = newestFirst(this.heads.values()).filter((head) => !isEmpty(head));
    if (!words) return heads;
    const found = await Promise.all(heads.map(async (head) =>
      headMatches(head, words) || bodyMatches((await this.bodyOf(head.id)) || emptyConversation(head.id), words)));
    return heads.filter((_, i) => found[i]);
  }

  async rename(id, title) {
    if (id !== this.id) this.revisions.delete(id);
    this.put({ ...this.heads.get(id), title }, titled((await this.bodyOf(id)) || emptyConversation(id), title));
    if (id === this.id) this.value = titled(this.value, title);
  }

  async remove(id) {
    this.last = [this.heads.get(id), await this.bodyOf(id)];
    this.deleted.add(id);
    this.heads.delete(id);
    this.unsaved.delete(id);
    await (this.writing = this.writing.then(() => this.store.remove(id)));
    this.tell({ kind: "removed", id });
    for (const [known, body] of this.unsaved.values()) this.put(known, body); // there may be room now
  }

  restore() {
    const [head, body] = this.last;
    this.last = null;
    this.deleted.delete(head.id);
    this.revisions.delete(head.id);
    this.put(head, body);
    return head.id;
  }

  async exported() {
    const heads = newestFirst(this.heads.values()).filter(({ messages }) => messages);
    const conversations = await Promise.all(heads.map(async ({ id, title }) =>
      ({ ...JSON.parse(await this.bodyOf(id)), title })));
    return JSON.stringify({ format: FORMAT, conversations });
  }

  // --- what other tabs do

  // Whether another tab has stored a newer version of the conversation of this tab.
  get isBehind() {
    return (this.head?.revision ?? 0) > (this.revisions.get(this.id) ?? 0);
  }

  changedElsewhere(head) {
    this.heads.set(head.id, head);
  }

  removedElsewhere(id) {
    this.heads.delete(id);
  }

  // --- storing

  async bodyOf(id) {
    return this.unsaved.get(id)?.[1] ?? this.store.body(id);
  }

  // Stores a conversation and returns its value.
  write(conversation) {
    const before = this.heads.get(conversation.id), head = headOf(conversation, before, this.now());
    const text = JSON.stringify({ ...conversation, title: head.title });
    if (text !== this.value && (before || !isEmpty(head))) this.put(head, text);
    return text;
  }

  put(head, body, isDraft = false) {
    this.heads.set(head.id, head);
    this.writing = this.writing.then(() => this.attempt(head, body, isDraft)).catch(() => this.keep(head, body));
  }

  // A draft is not worth a copy of the conversation: it is dropped where another tab has stored a newer one.
  async attempt(head, body, isDraft) {
    const revision = this.revisions.get(head.id) ?? head.revision;
    const next = { ...head, revision: revision + (isDraft ? 0 : 1) };
    if (await this.store.put(next, body, revision)) this.stored(next);
    else if (!isDraft) await this.copy(head, body);
  }

  stored(head) {
    this.revisions.set(head.id, head.revision);
    if (this.heads.get(head.id)?.updated <= head.updated) this.heads.set(head.id, head);
    this.unsaved.delete(head.id);
    this.tell({ kind: "changed", head });
    if (!this.unsaved.size) this.tell({ kind: "stored" });
  }

  keep(head, body) {
    this.unsaved.set(head.id, [head, body]);
    this.tell({ kind: "full" });
  }

  // Another tab has stored the same conversation, so this tab goes on with a copy.
  async copy(head, body) {
    const id = this.aliases.get(head.id) ?? newId(), title = `${titleOf(head)} (copy)`;
    this.aliases.set(head.id, id);
    for (const known of await this.store.heads()) if (known.id === head.id) this.heads.set(known.id, known);
    if (this.id === head.id) {
      this.id = id;
      this.value = titled(this.value, title, id);
    }
    this.put({ ...head, id, title, revision: 0 }, titled(body, title, id));
    this.tell({ kind: "copied" });
  }
}

function titled(text, title, id) {
  const conversation = JSON.parse(text);
  return JSON.stringify({ ...conversation, title, id: id ?? conversation.id });
}
