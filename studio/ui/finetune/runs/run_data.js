// The events of one run, in order, as the series and other data that the page draws.
const LOGGED = ["loss", "learning_rate", "grad_norm", "tok_s", "memory_gib"];
const ROUTED = ["flip_rate", "js", "load_shift", "entropy"];

function createRunData(id) {
  const data = {
    id, row: null, last: 0, version: 0, complete: false, now: 0,
    series: Object.fromEntries([...LOGGED, "eval_loss", ...ROUTED].map((name) => [name, { x: [], y: [] }])),
    routings: [], samples: new Map(), sampled: [], audit: null, gradients: null, warnings: [], logged: null,
  };

  data.add = (events) => {
    for (const event of events) {
      if (event.seq <= data.last) continue;
      data.last = event.seq;
      take[event.kind]?.(event.step, event.values ?? {});
    }
  };

  const take = {
    log(step, values) {
      for (const name of LOGGED) put(data.series[name], step, values[name]);
      data.logged = values;
    },
    eval(step, values) {
      put(data.series.eval_loss, step, values.eval_loss);
    },
    routing(step, values) {
      for (const name of ROUTED) put(data.series[name], step, values[name]);
      while (data.routings.length && data.routings.at(-1).step >= step) data.routings.pop();
      data.routings.push({ step, values });
    },
    sample(step, values) {
      if (typeof values.prompt !== "string") return;
      if (!data.samples.has(values.prompt)) data.samples.set(values.prompt, new Map());
      data.samples.get(values.prompt).set(step, String(values.answer ?? ""));
      if (!data.sampled.includes(step)) data.sampled = [...data.sampled, step].sort((a, b) => a - b);
    },
    audit(step, values) {
      if (values.rows) data.audit = values;
      if (values.gradients) data.gradients = values.gradients;
      if (Array.isArray(values.warnings)) values.warnings.forEach(warn);
    },
    warning(step, values) {
      warn(values.message);
    },
  };

  function warn(message) {
    const sentence = String(message ?? "");
    if (sentence && !data.warnings.includes(sentence)) data.warnings.push(sentence);
  }

  // A resumed run continues from its last checkpoint, so it repeats the steps after that.
  function put(series, step, value) {
    if (value === undefined) return;
    while (series.x.length && series.x.at(-1) >= step) {
      series.x.pop();
      series.y.pop();
      data.version++;
    }
    series.x.push(step);
    series.y.push(typeof value === "number" ? value : NaN);
  }

  return data;
}
