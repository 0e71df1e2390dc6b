// Asks the server again and again while somebody can see the panel; `ask` returns how many milliseconds to wait.
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
      onTrouble("The server does not answer; trying again …");
      if (!(error instanceof NoAnswer)) console.error(error);
    } finally {
      isAsking = false;
    }
    // Not to the millisecond: pages that once waited together would ask together ever after.
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

// What the server knows of runs; see watching.py.
async function askServer(path, parameters = []) {
  const answer = await fetch(`watch/${path}?${new URLSearchParams(parameters)}`).catch(() => null);
  if (!answer?.ok) throw new NoAnswer();
  return answer.json();
}
