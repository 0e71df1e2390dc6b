// Ways to do repeated work less often, and long work in parts.

const SLICE_MS = 6;

// Returns a function that runs the latest requested work once per animation frame.
export function oncePerFrame() {
  let latest = null;
  return (work) => {
    if (!latest) requestAnimationFrame(() => {
      const due = latest;
      latest = null;
      due();
    });
    latest = work;
  };
}

// Runs `work` at most once per interval. The last request is never lost: it runs at the end of its interval.
export class Throttle {
  constructor(work, intervalMs, clock = () => performance.now()) {
    Object.assign(this, { work, intervalMs, clock, timer: null, ranAt: -Infinity });
  }

  request() {
    if (this.timer !== null) return;
    const waitMs = this.ranAt + this.intervalMs - this.clock();
    if (waitMs <= 0) this.run();
    else this.timer = setTimeout(() => this.run(), waitMs);
  }

  // Runs at once.
  run() {
    clearTimeout(this.timer);
    this.timer = null;
    this.ranAt = this.clock();
    this.work();
  }
}

// Runs long work in slices of at most `SLICE_MS`, each in a task of its own, so that the page answers between them.
export class Slices {
  constructor() {
    this.work = null; // an iterator; each `next` does a piece
    this.channel = new MessageChannel();
    this.channel.port1.onmessage = () => this.slice();
  }

  // Starts other work, and gives up what is left of the work before. Short work ends before this returns.
  run(work) {
    const isWaiting = this.work !== null;
    this.work = work;
    if (!isWaiting) this.slice();
  }

  slice() {
    const end = performance.now() + SLICE_MS;
    while (this.work && performance.now() < end) if (this.work.next().done) this.work = null;
    if (this.work) this.channel.port2.postMessage(null);
  }
}
