// What a conversation's head says, and the words that the list shows and searches. All functions are pure.

export const FORMAT = "jetmoe-studio-conversations-1"; // of `conversation_file.py`
const LONGEST_TITLE = 120, LONGEST_FIRST = 80;

export function newId() {
  // Not crypto.randomUUID, which a page without https lacks.
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

export function emptyConversation(id) {
  return JSON.stringify({ id, title: "", system: "", turns: [] });
}

// Returns the head of a conversation, with the draft and title of the head before.
export function headOf(conversation, before, now) {
  const first = (conversation.turns[0]?.content ?? "").trim().replace(/\s+/g, " ").slice(0, LONGEST_FIRST);
  return {
    id: conversation.id, title: before?.title ?? conversation.title ?? "", first, draft: before?.draft ?? "",
    messages: conversation.turns.length, updated: now, revision: before?.revision ?? 0,
  };
}

export function titleOf({ title, first, draft }) {
  return title || first || (draft.trim() && `Draft: ${draft.trim().slice(0, LONGEST_FIRST)}`) || "New chat";
}

export function cleanTitle(text) {
  return text.trim().replace(/\s+/g, " ").slice(0, LONGEST_TITLE);
}

export function isEmpty({ messages, draft, title }) {
  return !messages && !draft.trim() && !title;
}

export function newestFirst(heads) {
  return [...heads].sort((one, other) => other.updated - one.updated);
}

export function headMatches(head, words) {
  return `${titleOf(head)} ${head.draft}`.toLowerCase().includes(words);
}

// Returns whether a message of a stored conversation contains the words, which are in lower case.
export function bodyMatches(body, words) {
  if (!body.toLowerCase().includes(JSON.stringify(words).slice(1, -1))) return false;
  return JSON.parse(body).turns.some(({ content, base }) =>
    content.toLowerCase().includes(words) || base?.content.toLowerCase().includes(words));
}

export function messagesText(count) {
  return count === 1 ? "1 message" : `${count} messages`;
}
