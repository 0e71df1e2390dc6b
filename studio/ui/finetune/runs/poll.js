// Polls the server while the panel is visible.

const RETRIES_MS = [1000, 2000, 4000, 8000, 15000];

export class Poll {
  // `ask` returns the milliseconds until the next poll. `onTrouble` gets a sentence, or "" once the server responds.
  constructor(element, ask, onTrouble) {
    Object.assign(this, { element, ask, onTrouble });
    this.timer = 0;
    this.failures = 0;
    this.isAsking = this.isOnScreen = this.isRequested = false;
    new IntersectionObserver((entries) => {
      this.isOnScreen = entries.at(-1).isIntersecting;
      if (this.isOnScreen) this.now();
    }).observe(element);
    document.addEventListener("visibilitychange", () => this.now());
  }

  get isVisible() {
    return this.isOnScreen && document.visibilityState === "visible" && this.element.isConnected;
  }

  // Polls at once, or right after the present poll.
  async now() {
    clearTimeout(this.timer);
    this.isRequested = this.isAsking;
    if (this.isAsking || !this.isVisible) return;
    this.isAsking = true;
    const waitMs = await this.wait();
    this.isAsking = false;
    // Random jitter, so that pages that waited for the server together don't keep polling together.
    this.timer = setTimeout(() => this.now(), this.isRequested ? 0 : waitMs * (0.9 + 0.2 * Math.random()));
  }

  // Asks, and returns the milliseconds until the next poll.
  async wait() {
    try {
      const waitMs = await this.ask();
      this.failures = 0;
      this.onTrouble("");
      return waitMs;
    } catch (error) {
      this.onTrouble("The server does not respond. Trying again …");
      if (!(error instanceof NoAnswer)) console.error(error);
      return RETRIES_MS[Math.min(this.failures++, RETRIES_MS.length - 1)];
    }
  }
}

class NoAnswer extends Error {}

// Fetches data about runs; the routes are in `studio/ui/server/run_routes.py`.
export async function fetchRuns(path, parameters = []) {
  const answer = await fetch(`watch/${path}?${new URLSearchParams(parameters)}`).catch(() => null);
  if (!answer?.ok) throw new NoAnswer();
  return answer.json();
}
