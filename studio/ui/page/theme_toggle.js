// A button that switches between light and dark, and remembers it. The address has the last word.

import { el, isDark, watchTheme } from "../common/dom.js";

const KEY = "jetmoe-studio-theme";

export function mount({ element }) {
  const button = el("button", { type: "button", class: "theme-toggle" });
  const show = () => {
    const name = isDark() ? "Light theme" : "Dark theme";
    button.textContent = isDark() ? "☀" : "☾";
    button.title = name;
    button.setAttribute("aria-label", name);
  };
  const theme = localStorage.getItem(KEY);
  if (theme && !location.search.includes("__theme=")) document.body.classList.toggle("dark", theme === "dark");
  button.addEventListener("click", () => {
    document.body.classList.toggle("dark", !isDark());
    localStorage.setItem(KEY, isDark() ? "dark" : "light");
  });
  show();
  watchTheme(show);
  element.append(button);
}
