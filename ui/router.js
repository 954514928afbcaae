// The address says what is on the screen: the view, its filters, the step that is open.

const ROOT = new URL(".", document.baseURI).pathname;

/** `{view, id, params}` of an address below the mount. */
function readRoute(location) {
  const path = location.pathname.startsWith(ROOT) ? location.pathname.slice(ROOT.length) : "";
  const params = new URLSearchParams(location.search);
  const match = /^runs\/([^/]+)\/?$/.exec(path);
  if (match) return { view: "run", id: decode(match[1]), params };
  return { view: path === "" ? "runs" : "lost", id: null, params };
}

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

const runHref = (id, params) => address(`runs/${encodeURIComponent(id)}`, params);

const router = {
  route: readRoute(location),
  listener: () => {},
  /** Parameters with some changed; null removes one. */
  with(changes) {
    const params = Object.fromEntries(this.route.params);
    for (const [key, value] of Object.entries(changes)) {
      if (value === null || value === "") delete params[key];
      else params[key] = value;
    }
    return this.route.view === "run" ? runHref(this.route.id, params) : address(".", params);
  },
  go(href, { replace = false } = {}) {
    const url = new URL(href, document.baseURI);
    if (url.href === location.href) return;
    history[replace ? "replaceState" : "pushState"](null, "", url);
    this.read();
  },
  read() {
    const before = this.route;
    this.route = readRoute(location);
    this.listener(before);
  },
  start(listener) {
    this.listener = listener;
    addEventListener("popstate", () => this.read());
    // A plain click on one of our own links stays in this page; any other kind is the browser's.
    document.addEventListener("click", (event) => {
      const link = event.target.closest?.("a[data-link]");
      if (!link || event.defaultPrevented || event.button || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
      event.preventDefault();
      this.go(link.getAttribute("href"));
    });
  },
};

/** A link within the page. Its address is always one of ours. */
const link = (href, props, ...children) => h("a", { href, "data-link": true, ...props }, ...children);
