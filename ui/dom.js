// Elements from code. What the server sends becomes text or an attribute, never markup: nothing here parses HTML.

const SVG = "http://www.w3.org/2000/svg";

/** An HTML element. `props`: attributes, `text`, or `on: {event: listener}`; null, undefined and false leave one out. */
function h(tag, props, ...children) {
  return fill(document.createElement(tag), props, children);
}

/** An SVG element, in the same way. */
function s(tag, props, ...children) {
  return fill(document.createElementNS(SVG, tag), props, children);
}

function fill(element, props, children) {
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "text") element.textContent = value;
    else if (name === "on") for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Write only what differs: an equal text or attribute costs no layout. */
function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function setAttr(element, name, value) {
  if (value === null) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
}

/** A name as somebody wrote it: isolated, so that its direction and controls do not reach its neighbours. */
function name(text, props) {
  return h("bdi", { dir: "auto", ...props, text });
}

/** Collects calls and makes the last one after `delay` ms of quiet. */
function debounce(delay, call) {
  let timer = 0;
  const later = (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => call(...values), delay);
  };
  later.stop = () => clearTimeout(timer);
  return later;
}

/** Calls at once, then at most every `delay` ms, the last call always made. */
function throttle(delay, call) {
  let timer = 0;
  let again = false;
  const tick = () => {
    timer = 0;
    if (again) run();
  };
  const run = () => {
    again = false;
    timer = setTimeout(tick, delay);
    call();
  };
  const soon = () => {
    if (timer) again = true;
    else run();
  };
  soon.stop = () => {
    clearTimeout(timer);
    timer = 0;
    again = false;
  };
  return soon;
}

const calm = matchMedia("(prefers-reduced-motion: reduce)");

/** Storage that may be forbidden. */
const memory = {
  get(key) {
    try {
      return localStorage.getItem(`baton.${key}`);
    } catch {
      return null;
    }
  },
  set(key, value) {
    try {
      if (value === null) localStorage.removeItem(`baton.${key}`);
      else localStorage.setItem(`baton.${key}`, value);
    } catch {
      // Then it is forgotten with the tab.
    }
  },
};
