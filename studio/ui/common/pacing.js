// Ways to do repeated work less often.

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
