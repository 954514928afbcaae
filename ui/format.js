// Numbers and times as text.

const LOCALE = "en-GB";
const numbers = new Intl.NumberFormat(LOCALE);
const exactTime = new Intl.DateTimeFormat(LOCALE, { dateStyle: "medium", timeStyle: "medium" });
const clockTime = new Intl.DateTimeFormat(LOCALE, { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const dayTime = new Intl.DateTimeFormat(LOCALE, { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });

/** The server's clock, as durations compare its times with now. */
const clock = {
  offset: 0,
  now() {
    return Date.now() + this.offset;
  },
  /** Learn from a response's Date header, which has whole seconds: smaller differences mean nothing. */
  learn(header) {
    const there = Date.parse(header ?? "");
    if (Number.isNaN(there)) return;
    const offset = there + 500 - Date.now();
    this.offset = Math.abs(offset) > 2000 ? offset : 0;
  },
};

const time = (text) => (text ? Date.parse(text) : null);
const count = (value) => numbers.format(value);

/** How long, in at most two units. */
function duration(ms) {
  if (ms === null || Number.isNaN(ms)) return "";
  if (ms < 0) ms = 0;
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 59_950) return `${(ms / 1000).toFixed(1)} s`;
  const seconds = Math.round(ms / 1000);
  if (seconds < 3600) return `${Math.floor(seconds / 60)}m ${pad(seconds % 60)}s`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)}h ${pad(Math.floor((seconds % 3600) / 60))}m`;
  return `${Math.floor(seconds / 86_400)}d ${Math.floor((seconds % 86_400) / 3600)}h`;
}

/** The same for what still runs: whole seconds, so that it ticks evenly. */
const ticking = (ms) => (ms < 60_000 ? `${Math.max(0, Math.floor(ms / 1000))} s` : duration(ms));

const pad = (value) => String(value).padStart(2, "0");

function ago(moment) {
  const seconds = Math.round((clock.now() - moment) / 1000);
  if (seconds < 0) return `in ${span(-seconds)}`;
  if (seconds < 5) return "just now";
  return seconds < 7 * 86_400 ? `${span(seconds)} ago` : dayTime.format(moment);
}

function span(seconds) {
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86_400)} d`;
}

function bytes(size) {
  if (size < 1000) return `${size} B`;
  if (size < 1_000_000) return `${(size / 1000).toFixed(1)} kB`;
  return `${(size / 1_000_000).toFixed(1)} MB`;
}

const plural = (value, word) => `${count(value)} ${word}${value === 1 ? "" : "s"}`;

/** The last part of an id, which is the random one: enough to tell runs apart by eye. */
const shortId = (id) => id.slice(-8);

/** A <time> with relative text and the exact moment as title; `tick()` keeps it true. */
function timeTag(text, props) {
  const moment = time(text);
  if (moment === null) return h("span", { ...props, text: "–" });
  return h("time", { datetime: text, title: exactTime.format(moment), "data-ago": moment, ...props, text: ago(moment) });
}

/** One timer for everything on the page that shows how long ago, or for how long. */
const ticker = {
  calls: new Set(),
  add(call) {
    this.calls.add(call);
    return () => this.calls.delete(call);
  },
  start() {
    setInterval(() => {
      if (document.hidden) return;
      for (const call of this.calls) call();
      for (const tag of document.querySelectorAll("time[data-ago]")) setText(tag, ago(Number(tag.dataset.ago)));
    }, 1000);
  },
};
