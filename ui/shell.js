// The frame around both views: bar, connection, theme, messages, dialogs.

const THEMES = ["system", "light", "dark"];

const theme = {
  value: THEMES.includes(memory.get("theme")) ? memory.get("theme") : "system",
  apply() {
    if (this.value === "system") document.documentElement.removeAttribute("data-theme");
    else document.documentElement.setAttribute("data-theme", this.value);
  },
  next() {
    this.value = THEMES[(THEMES.indexOf(this.value) + 1) % THEMES.length];
    memory.set("theme", this.value === "system" ? null : this.value);
    this.apply();
  },
};

const CONNECTION_WORDS = new Map([
  ["connecting", "Connecting"],
  ["live", "Live"],
  ["reconnecting", "Reconnecting"],
  ["stale", "Offline"],
  ["hidden", "Paused"],
  ["refused", "Signed out"],
]);

const shell = {
  main: h("main", { id: "main", tabindex: -1 }),
  toasts: h("div", { class: "toasts", role: "status", "aria-live": "polite" }),
  notice: h("div", { class: "notice", role: "status", hidden: true }),

  build(app) {
    const status = h("span", { class: "conn", role: "status" }, h("i", { class: "dot" }), h("span", { class: "conn-word" }));
    const show = () => {
      status.dataset.state = connection.state;
      setText(status.lastChild, CONNECTION_WORDS.get(connection.state));
      this.explain();
    };
    connection.listeners.add(show);
    const themeButton = h("button", { class: "ghost square", on: { click: () => { theme.next(); showTheme(); } } });
    const showTheme = () => {
      themeButton.replaceChildren(icon(theme.value));
      setAttr(themeButton, "aria-label", `Theme: ${theme.value}`);
      setAttr(themeButton, "title", `Theme: ${theme.value}`);
    };
    showTheme();
    this.user = h("span", { class: "user" });
    app.append(
      h("a", { class: "skip", href: `${location.pathname}${location.search}#main`, on: { click: (event) => { event.preventDefault(); this.main.focus(); } }, text: "Skip to content" }),
      h("header", { class: "top" },
        link(address("."), { class: "brand", "aria-label": "Baton, all runs" }, logo(), h("span", { text: "Baton" })),
        h("span", { class: "grow" }),
        status,
        this.user,
        h("button", { class: "ghost square", "aria-label": "Keyboard shortcuts", title: "Keyboard shortcuts (?)", on: { click: showHelp } }, icon("help")),
        themeButton,
      ),
      this.notice,
      this.main,
      this.toasts,
    );
    show();
  },

  explain() {
    const { state, since, reason } = connection;
    const at = since ? ` What you see was true at ${clockTime.format(since)}.` : "";
    const text = state === "stale" ? `${reason ? `The server does not follow this page: ${reason}.` : "The server cannot be reached."}${at} Trying again.`
      : state === "refused" ? "You are signed out. Sign in again and reload this page."
      : "";
    this.notice.hidden = !text;
    setText(this.notice, text);
  },

  signedIn() {
    setText(this.user, session.user);
    setAttr(this.user, "title", `Signed in as ${session.user}`);
  },

  toast(text, kind = "good") {
    const toast = h("div", { class: `toast ${kind}` }, icon(kind === "good" ? "completed" : "discarded"), h("span", { dir: "auto", text }));
    this.toasts.append(toast);
    setTimeout(() => toast.remove(), kind === "good" ? 5000 : 10_000);
  },

  fail(error) {
    if (error.name === "AbortError") return;
    this.toast(error.id ? `${error.message} (error ${error.id})` : error.message, "bad");
  },
};

function logo() {
  return s("svg", { class: "logo", viewBox: "0 0 16 16", width: 20, height: 20, "aria-hidden": "true" },
    s("rect", { width: 16, height: 16, rx: 4.5 }), s("path", { d: "M4.8 11.2l6.4-6.4" }));
}

/** A panel for when there is nothing to list, or no way to list it. */
function emptyState(title, text, ...more) {
  return h("div", { class: "empty" }, h("h2", { text: title }), h("p", { text }), ...more);
}

function problem(error, again) {
  const title = error.status === 404 ? "Not found" : error.status === 401 || error.status === 403 ? "Not allowed" : "This could not be read";
  return emptyState(title, error.id ? `${error.message} (error ${error.id})` : error.message,
    h("div", { class: "row" }, h("button", { class: "button", text: "Try again", on: { click: again } }), link(address("."), { class: "button", text: "All runs" })));
}

function skeleton(rows, kind) {
  return h("div", { class: `skeleton ${kind}`, "aria-label": "Loading", role: "status" }, Array.from({ length: rows }, () => h("i", {})));
}

function copyButton(read, label) {
  const button = h("button", { class: "ghost square small", "aria-label": label, title: label }, icon("copy"));
  button.addEventListener("click", async (event) => {
    event.preventDefault();
    event.stopPropagation();
    try {
      await navigator.clipboard.writeText(await read());
      button.replaceChildren(icon("check"));
    } catch {
      shell.toast("This browser does not let the page copy. Select the text instead.", "bad");
    }
    setTimeout(() => button.replaceChildren(icon("copy")), 1500);
  });
  return button;
}

/** Ask before something that cannot be taken back. Resolves to the reason, or null when dismissed. */
function confirmAction({ title, text, verb, danger = false, reason = false }) {
  return new Promise((resolve) => {
    const input = reason ? h("input", { class: "input", placeholder: "Reason (optional)", "aria-label": "Reason", maxlength: 500 }) : null;
    const dialog = h("dialog", { class: "dialog", "aria-labelledby": "dialog-title" },
      h("form", { method: "dialog" },
        h("h2", { id: "dialog-title", text: title }),
        h("p", { dir: "auto", text }),
        input,
        h("div", { class: "row end" },
          h("button", { class: "button", value: "", formnovalidate: true, text: "Keep as it is" }),
          h("button", { class: `button ${danger ? "danger" : "primary"}`, value: "yes", text: verb }))));
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes" ? input?.value ?? "" : null);
    });
    // The first button of a form is what Enter presses: here it must not be the one that changes nothing.
    dialog.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.key !== "Enter" || event.target !== input) return;
      event.preventDefault();
      dialog.close("yes");
    });
    document.body.append(dialog);
    dialog.showModal();
    (input ?? dialog.querySelector("button[value=yes]")).focus();
  });
}
