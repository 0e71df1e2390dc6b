// Runs in the page's head, before Gradio reads the browser's storage without a guard: in a frame of another website the
// browser may refuse it, and the page would stay at "Loading…". What is stored here instead lasts as long as the page.
(() => {
  for (const name of ["localStorage", "sessionStorage"]) {
    try {
      window[name].getItem("");
    } catch {
      Object.defineProperty(window, name, { value: inMemory(), configurable: true });
      window.isStorageRefused = true;
    }
  }

  // An address that asks for an adapter starts a new conversation; the page forgets that part of the address soon.
  if (new URL(location.href).searchParams.has("adapter")) sessionStorage.removeItem("jetmoe-studio-open-conversation");

  // Before the page is drawn; `theme_toggle.js` does it again, because Gradio sets the theme of the system.
  document.addEventListener("DOMContentLoaded", () => {
    const theme = localStorage.getItem("jetmoe-studio-theme");
    if (theme && !location.search.includes("__theme=")) document.body.classList.toggle("dark", theme === "dark");
  });

  function inMemory() {
    const kept = new Map();
    return {
      getItem: (key) => kept.get(String(key)) ?? null,
      setItem: (key, value) => void kept.set(String(key), String(value)),
      removeItem: (key) => void kept.delete(String(key)),
      clear: () => kept.clear(),
      key: (index) => [...kept.keys()][index] ?? null,
      get length() {
        return kept.size;
      },
    };
  }
})();
