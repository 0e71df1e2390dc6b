// The other tabs of the browser: what they store and delete, and whether one shows the same conversation.

export class Tabs {
  // `onChanged(head)` and `onRemoved(id)` report what another tab does, `onSame(isSame)` whether one shows `id`.
  constructor(id, { onChanged, onRemoved, onSame }, channel = new BroadcastChannel("jetmoe-studio-conversations")) {
    Object.assign(this, { id, onChanged, onRemoved, onSame, channel });
    channel.onmessage = ({ data }) => this.receive(data);
    globalThis.addEventListener?.("pagehide", () => this.say("left", this.id));
    globalThis.addEventListener?.("pageshow", ({ persisted }) => persisted && this.say("shown", this.id));
    this.say("shown", id);
  }

  // Tells the other tabs which conversation this tab shows.
  show(id) {
    if (id === this.id) return;
    const before = this.id;
    this.id = id;
    this.say("left", before);
    this.onSame(false);
    this.say("shown", id);
  }

  changed(head) {
    this.channel.postMessage({ kind: "changed", head });
  }

  removed(id) {
    this.say("removed", id);
  }

  say(kind, id) {
    this.channel.postMessage({ kind, id });
  }

  receive({ kind, id, head }) {
    if (kind === "changed") this.onChanged(head);
    if (kind === "removed") this.onRemoved(id);
    if (id !== this.id) return;
    if (kind === "shown") this.say("here", id);
    if (kind === "shown" || kind === "here") this.onSame(true);
    if (kind === "left") {
      this.onSame(false);
      this.say("asked", id); // a third tab may show it too
    }
    if (kind === "asked") this.say("here", id);
  }
}
