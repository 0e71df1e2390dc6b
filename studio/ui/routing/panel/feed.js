// Updates arrive as the component's value, and Gradio may merge two of them into one. So each message has its rows and
// the total number of tokens; missing rows are fetched from the server, and the trace always ends complete. Differences
// to the base model are always fetched, as soon as a message announces them.
function createFeed(trace, onReset, onRows, onCompared) {
  const announced = new Set();
  let picked = "", wanted = "", fetching = false;

  function missing() {
    if (trace.count < trace.total) return [trace.count];
    return trace.flips && trace.compared < trace.count ? [trace.compared, "base"] : null;
  }

  async function fill() {
    if (fetching) return;
    fetching = true;
    try {
      for (let part = missing(); part; part = missing()) {
        const id = trace.id;
        const answer = await server.rows(id, ...part);
        if (trace.id !== id) continue;
        if (!answer || !answer.rows) break;
        if (part.length === 1) {
          trace.append(answer.from, answer.rows);
          onRows();
        } else {
          trace.compare(answer.from, answer.rows);
          onCompared();
        }
      }
    } finally {
      fetching = false;
    }
  }

  return function receive(value) {
    if (!value) return;
    const message = JSON.parse(value);
    if (!message.id) return onReset(message);
    const isNew = !announced.has(message.id);
    announced.add(message.id);
    // A new answer is shown when it begins; later updates don't replace an earlier answer that the user selected.
    if (message.picked || isNew) wanted = message.id;
    if (message.id !== wanted) return;
    if (trace.id !== message.id) trace.reset(message.id, message.head);
    if (picked !== message.id || message.picked || isNew) onReset(message);
    picked = message.id;
    if (message.flips?.group) trace.flips = message.flips;
    trace.total = Math.max(trace.total, message.total);
    if (message.rows) trace.append(message.from, message.rows);
    onRows(message);
    fill();
  };
}
