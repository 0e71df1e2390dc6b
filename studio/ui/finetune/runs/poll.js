// Polls the server while the panel is visible; `ask` returns the milliseconds until the next poll.
function createPoll(ask, onTrouble) {
  const RETRIES = [1000, 2000, 4000, 8000, 15000];
  let timer = 0, isAsking = false, isOnScreen = false, failures = 0, again = false;

  const isSeen = () => isOnScreen && document.visibilityState === "visible";

  async function tick() {
    clearTimeout(timer);
    if (isAsking) {
      again = true;
      return;
    }
    if (!isSeen() || !element.isConnected) return;
    isAsking = true;
    again = false;
    let wait;
    try {
      wait = await ask();
      failures = 0;
      onTrouble("");
    } catch (error) {
      wait = RETRIES[Math.min(failures++, RETRIES.length - 1)];
      onTrouble("The server does not respond. Trying again …");
      if (!(error instanceof NoAnswer)) console.error(error);
    } finally {
      isAsking = false;
    }
    // Random jitter, so that pages that waited for the server together don't keep polling together.
    timer = setTimeout(tick, again ? 0 : wait * (0.9 + 0.2 * Math.random()));
  }

  new IntersectionObserver((entries) => {
    isOnScreen = entries.at(-1).isIntersecting;
    if (isOnScreen) tick();
  }).observe(element);
  document.addEventListener("visibilitychange", tick);
  return tick;
}

class NoAnswer extends Error {}

// Fetches data about runs; the routes are in ui/server/run_routes.py.
async function askServer(path, parameters = []) {
  const answer = await fetch(`watch/${path}?${new URLSearchParams(parameters)}`).catch(() => null);
  if (!answer?.ok) throw new NoAnswer();
  return answer.json();
}
