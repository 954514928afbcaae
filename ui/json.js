// A folded tree for JSON. Branches are built when they are opened, so that neither depth nor width can hang the page.

const CHILDREN = 100;
const TEXT = 400;
const OPEN_TO = 2;
const OPEN_WIDTH = 30;
const INDENTED = 24;

/** A number whose digits a double does not hold; shown as it was written. */
class ExactNumber {
  constructor(source) {
    this.source = source;
  }
}

/** Parse, keeping the digits of large numbers where the browser tells them. Throws SyntaxError. */
function parseJson(text) {
  try {
    return JSON.parse(text, (_key, value, context) =>
      typeof value === "number" && context?.source && String(value) !== context.source && Number.isInteger(value) && !Number.isSafeInteger(value)
        ? new ExactNumber(context.source) : value);
  } catch (error) {
    // The reviver is recursive, the parser is not: nested a hundred thousand deep only the latter gets through.
    if (error instanceof RangeError) return JSON.parse(text);
    throw error;
  }
}

function jsonTree(value) {
  return h("div", { class: "json", role: "tree", "aria-label": "JSON" }, jsonNode(null, value, 0));
}

function jsonNode(key, value, depth) {
  const label = key === null ? [] : [h("span", {}, h("bdi", { class: "j-key", text: key }), h("span", { class: "j-mark", text: ": " }))];
  const branch = value !== null && typeof value === "object" && !(value instanceof ExactNumber);
  if (!branch) return h("div", { class: "j-row", role: "treeitem" }, label, jsonLeaf(value));
  const list = Array.isArray(value);
  const entries = list ? null : Object.entries(value);
  const size = list ? value.length : entries.length;
  if (!size) return h("div", { class: "j-row", role: "treeitem" }, label, h("span", { class: "j-mark", text: list ? "[]" : "{}" }));
  const summary = h("span", { class: "j-size", text: list ? `[${count(size)}]` : `{${count(size)}}` });
  const children = h("div", { class: depth < INDENTED ? "j-kids" : "j-kids flat", role: "group", hidden: true });
  const toggle = h("button", { class: "j-toggle", "aria-expanded": "false" }, icon("chevron"), label, summary);
  const node = h("div", { class: "j-node", role: "treeitem" }, toggle, children);
  const item = list ? (at) => [String(at), value[at]] : (at) => entries[at];
  let shown = 0;
  const more = () => {
    children.querySelector(":scope > .j-more")?.remove();
    const end = Math.min(size, shown + CHILDREN);
    for (; shown < end; shown += 1) children.append(jsonNode(...item(shown), depth + 1));
    if (shown < size) children.append(h("button", { class: "j-more", text: `${count(size - shown)} more`, on: { click: more } }));
  };
  const open = (yes) => {
    if (yes && !shown) more();
    children.hidden = !yes;
    setAttr(toggle, "aria-expanded", String(yes));
  };
  toggle.addEventListener("click", () => open(children.hidden));
  if (depth < OPEN_TO && size <= OPEN_WIDTH) open(true);
  return node;
}

function jsonLeaf(value) {
  if (value instanceof ExactNumber) return h("span", { class: "j-number", text: value.source });
  if (typeof value !== "string") return h("span", { class: value === null ? "j-null" : `j-${typeof value}`, text: String(value) });
  return longText(value, "j-string", JSON.stringify);
}

/** Text that is cut until somebody wants all of it. */
function longText(text, kind, format = (whole) => whole) {
  const element = h("span", { class: kind, dir: "auto" });
  if (text.length <= TEXT) {
    element.textContent = format(text);
    return element;
  }
  const cut = [...text.slice(0, TEXT)].slice(0, -1).join("");
  element.append(`${format(cut)}…`, h("button", { class: "j-more", text: `all ${count(text.length)} characters`, on: { click: () => element.replaceChildren(format(text)) } }));
  return element;
}

/** JSON text as a tree; as it is where it was cut or is no JSON. */
function jsonView(text) {
  try {
    return jsonTree(parseJson(text));
  } catch {
    return h("pre", { class: "raw", tabindex: 0, dir: "auto", text });
  }
}
