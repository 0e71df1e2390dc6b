// Asks the server for the version of the status line, and triggers "change" if the line shows another one. Gradio's
// own timer would take a tenth of a core on every open page.

const EVERY_MS = 1500;

export function mount({ trigger }) {
  async function look() {
    // A hidden page does not ask, or it would keep a paid Space awake.
    if (document.visibilityState !== "visible") return;
    const answer = await fetch("watch/status").catch(() => null);
    const shown = document.querySelector("#status [data-version]")?.dataset.version;
    if (answer?.ok && (await answer.text()) !== shown) trigger("change");
  }
  look();
  setInterval(look, EVERY_MS);
  document.addEventListener("visibilitychange", look);
}
