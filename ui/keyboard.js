// Keys that work everywhere, and the list of them.

const KEYS = [
  ["Everywhere", [["/", "Search"], ["?", "This list"], ["Esc", "Close, or back to all runs"], ["t", "Light, dark or as the system"]]],
  ["Runs", [["j  k", "Next, previous"], ["Enter", "Open"], ["1 … 5", "All, running, completed, failed, cancelled"]]],
  ["A run", [["1  2  3", "Graph, table, timeline"], ["j  k", "Next, previous row"], ["Enter", "Open the step"]]],
  ["Graph", [["↑ ↓ ← →", "From step to step"], ["Enter", "Open the step or the group"], ["e", "Unfold the group"], ["f", "Fit everything"], ["+  -", "Zoom"], ["w", "Follow what runs"]]],
];

function showHelp() {
  const dialog = h("dialog", { class: "dialog help", "aria-labelledby": "help-title" },
    h("form", { method: "dialog" },
      h("div", { class: "part-head" }, h("h2", { id: "help-title", tabindex: -1, autofocus: true, text: "Keyboard" }), h("span", { class: "grow" }), h("button", { class: "ghost square", "aria-label": "Close" }, icon("close"))),
      h("div", { class: "help-grid" }, KEYS.map(([title, keys]) => h("section", {}, h("h3", { text: title }),
        h("dl", {}, keys.map(([key, meaning]) => h("div", {}, h("dt", {}, key.split("  ").map((each) => h("kbd", { text: each }))), h("dd", { text: meaning })))))))));
  dialog.addEventListener("close", () => dialog.remove());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.key === "?") dialog.close();
  });
  document.body.append(dialog);
  dialog.showModal();
}

function onKey(event) {
  if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.closest?.("input, select, textarea, [contenteditable]");
  if (typing) {
    if (event.key === "Escape") typing.blur();
    return;
  }
  if (event.key === "?") showHelp();
  else if (event.key === "t") document.querySelector(".top button:last-of-type").click();
  else if (!app.view?.keys?.(event)) return;
  event.preventDefault();
}
