// Increments come as the component's value, and Gradio may merge two updates into one. So a message says what it adds
// and how many tokens there are; whatever is missing is fetched from the server, and the trace always ends complete. What
// is otherwise in the base is only ever fetched, once a message says that it is known.
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
    // Who looks at an earlier answer is not torn away by the one that is being written, except by its beginning.
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
