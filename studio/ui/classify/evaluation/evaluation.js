// Buttons in the confusion matrix and above the texts select which texts of their report are shown. The listener is on
// the root element, because every new report replaces the buttons.
element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-shows]");
  const report = button?.closest(".ev-report");
  if (!report) return;
  const { shows, caption } = button.dataset;
  for (const row of report.querySelectorAll("tr[data-place]")) {
    const wrong = row.hasAttribute("data-wrong");
    row.hidden = !(shows === "all" || (shows === "wrong" ? wrong : row.dataset.place === shows));
  }
  for (const other of report.querySelectorAll("button[data-shows]")) other.setAttribute("aria-pressed", String(other === button));
  report.querySelector(".ev-shown").textContent = caption;
  report.querySelector(".ev-texts").scrollTop = 0;
});
