// Brings a trace up to date. Messages arrive as the component's value, and Gradio may merge two of them into one. So
// each message has its rows and the total number of tokens; missing rows are fetched from the server, and the trace
// always ends complete. Differences to the base model are always fetched, as soon as a message announces them.

export class Feed {
  // `fetchRows(id, start)` and `fetchRows(id, start, "base")` return { from, rows }, or {} if there are none.
  constructor(trace, fetchRows, { onReset, onRows, onCompared, onKept }) {
    Object.assign(this, { trace, fetchRows, onReset, onRows, onCompared, onKept });
    this.announced = new Set(); // ids of answers
    this.wanted = ""; // the answer to show
    this.shown = "";
    this.isFetching = false;
  }

  receive(value) {
    if (!value) return;
    const message = JSON.parse(value);
    if (!message.id) {
      this.onReset(message);
      return;
    }
    if ("kept" in message) {
      this.onKept(message);
      return;
    }
    const isNew = !this.announced.has(message.id);
    this.announced.add(message.id);
    // A new answer is shown when it begins; later updates don't replace an earlier answer that the user selected.
    if (message.picked || isNew) this.wanted = message.id;
    if (message.id === this.wanted) this.apply(message, isNew);
  }

  apply(message, isNew) {
    const { trace } = this;
    if (trace.id !== message.id) trace.reset(message.id, message.head);
    if (this.shown !== message.id || message.picked || isNew) this.onReset(message);
    this.shown = message.id;
    if (message.flips?.group) trace.flips = message.flips;
    trace.total = Math.max(trace.total, message.total);
    if (message.rows) trace.append(message.from, message.rows);
    this.onRows(message);
    this.fetchMissing();
  }

  async fetchMissing() {
    if (this.isFetching) return;
    this.isFetching = true;
    try {
      for (let part = this.missing(); part; part = this.missing()) if (!(await this.fetch(part))) break;
    } finally {
      this.isFetching = false;
    }
  }

  // Returns what to ask for, or null if the trace is complete.
  missing() {
    const { trace } = this;
    if (trace.count < trace.total) return [trace.count];
    return trace.flips && trace.compared < trace.count ? [trace.compared, "base"] : null;
  }

  // Returns false if the server has no such rows.
  async fetch(part) {
    const { trace } = this, { id } = trace, [, isBase] = part;
    const answer = await this.fetchRows(id, ...part);
    if (trace.id !== id) return true;
    if (!answer?.rows) return false;
    if (isBase) trace.compare(answer.from, answer.rows);
    else trace.append(answer.from, answer.rows);
    if (isBase) this.onCompared();
    else this.onRows();
    return true;
  }
}
