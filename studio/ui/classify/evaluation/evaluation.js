// The evaluation of a classifier: the choice of texts, and the calibration plots.

import { drawCalibration } from "./calibration.js";

export function mount({ element, watch }) {
  // On the element, because every new report replaces the buttons.
  element.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-shows]");
    if (button) showTexts(button, button.closest(".ev-report"));
  });
  const draw = () => element.querySelectorAll("figure[data-calibration]").forEach(drawCalibration);
  watch("value", draw);
  draw();
}

// Buttons in the confusion matrix and above the texts select which texts of their report are shown.
function showTexts(button, report) {
  const { shows, caption } = button.dataset;
  for (const row of report.querySelectorAll("tr[data-place]")) row.hidden = !isShown(row, shows);
  for (const other of report.querySelectorAll("button[data-shows]"))
    other.setAttribute("aria-pressed", String(other === button));
  report.querySelector(".ev-shown").textContent = caption;
  report.querySelector(".ev-texts").scrollTop = 0;
}

function isShown(row, shows) {
  if (shows === "all") return true;
  return shows === "wrong" ? row.hasAttribute("data-wrong") : row.dataset.place === shows;
}
