// States of steps and runs: words, icons, order. Each has a shape of its own, so that colour is never all there is.

// In the order of a bar: what is done, what runs, what failed, and what is to come.
const STEP_STATES = ["completed", "skipped", "executing", "retryable", "available", "scheduled", "held", "cancelled", "discarded"];
const RUN_STATES = ["executing", "completed", "failed", "cancelled"];
const SETTLED = new Set(["completed", "skipped", "cancelled", "discarded"]);
const KNOWN = new Set([...STEP_STATES, ...RUN_STATES, "paused"]);

const MEANINGS = new Map([
  ["held", "waits for its dependencies"],
  ["scheduled", "waits for its time"],
  ["available", "waits for a worker"],
  ["executing", "runs"],
  ["retryable", "failed, and will be tried again"],
  ["completed", "has returned"],
  ["skipped", "did not need to run"],
  ["cancelled", "was cancelled, or what it depends on did not complete"],
  ["discarded", "failed at every attempt"],
]);

const DISC = "M8 1a7 7 0 1 0 0 14a7 7 0 1 0 0-14z";
const RING = "M8 1.75a6.25 6.25 0 1 0 0 12.5a6.25 6.25 0 1 0 0-12.5z";
const CROSS = "M5.5 5.5l5 5M10.5 5.5l-5 5";

// Parts of an icon: `fill` and `line` in the state's colour, `faint` behind, `mark` in the colour of the ground, `turn` rotates.
const ICONS = new Map([
  ["completed", [["fill", DISC], ["mark", "M4.9 8.3l2.1 2.1 4.1-4.6"]]],
  ["discarded", [["fill", DISC], ["mark", CROSS]]],
  ["failed", [["fill", DISC], ["mark", CROSS]]],
  ["cancelled", [["line", RING], ["line", "M3.7 12.3l8.6-8.6"]]],
  ["skipped", [["line", "M3 4l4 4-4 4M8.5 4l4 4-4 4"]]],
  ["executing", [["faint", RING], ["turn", "M8 1.75a6.25 6.25 0 0 1 6.25 6.25"], ["fill", "M8 5.75a2.25 2.25 0 1 0 0 4.5a2.25 2.25 0 1 0 0-4.5z"]]],
  ["retryable", [["line", "M13.6 8.6a5.7 5.7 0 1 1-1.7-4.7M13.4 1.7v3h-3"], ["fill", "M8 6.5a1.5 1.5 0 1 0 0 3a1.5 1.5 0 1 0 0-3z"]]],
  ["available", [["line", RING]]],
  ["scheduled", [["line", RING], ["line", "M8 4.4V8l2.4 1.6"]]],
  ["held", [["dash", RING]]],
  ["paused", [["fill", DISC], ["mark", "M6.2 5.4v5.2M9.8 5.4v5.2"]]],
  ["search", [["line", "M7 2.5a4.5 4.5 0 1 0 0 9a4.5 4.5 0 1 0 0-9zM10.3 10.3l3.2 3.2"]]],
  ["close", [["line", "M4 4l8 8M12 4l-8 8"]]],
  ["chevron", [["line", "M6 4l4 4-4 4"]]],
  ["copy", [["line", "M6 6h7.5v7.5H6zM10 6V2.5H2.5V10H6"]]],
  ["check", [["line", "M3.5 8.5l3 3 6-7"]]],
  ["pause", [["line", "M5.5 3.5v9M10.5 3.5v9"]]],
  ["resume", [["line", "M5 3.2v9.6L12.5 8z"]]],
  ["cancel", [["line", "M4 4h8v8H4z"]]],
  ["retry", [["line", "M13.5 8a5.5 5.5 0 1 1-1.6-3.9M13.5 1.8v3h-3"]]],
  ["rerun", [["line", "M2.5 3.5v9M5.5 3.2v9.6L13 8z"]]],
  ["plus", [["line", "M8 3v10M3 8h10"]]],
  ["minus", [["line", "M3 8h10"]]],
  ["fit", [["line", "M2.5 6V2.5H6M10 2.5h3.5V6M13.5 10v3.5H10M6 13.5H2.5V10"]]],
  ["follow", [["line", "M8 3.5a4.5 4.5 0 1 0 0 9a4.5 4.5 0 1 0 0-9zM8 1v4M8 11v4M1 8h4M11 8h4"]]],
  ["graph", [["line", "M2 6.2h4v3.6H2zM10 2h4v3.6h-4zM10 10.4h4V14h-4zM6 8h2.2V3.8H10M8.2 8v4.2H10"]]],
  ["table", [["line", "M2.5 3h11v10h-11zM2.5 6.3h11M2.5 9.6h11M6.5 6.3V13"]]],
  ["timeline", [["line", "M2 4h6M5 8h6M8.5 12H14"]]],
  ["download", [["line", "M8 2.5v8M4.5 7.2L8 10.7l3.5-3.5M3 13.5h10"]]],
  ["light", [["line", "M8 5.2a2.8 2.8 0 1 0 0 5.6a2.8 2.8 0 1 0 0-5.6zM8 1.2v1.3M8 13.5v1.3M1.2 8h1.3M13.5 8h1.3M3.2 3.2l.9.9M11.9 11.9l.9.9M12.8 3.2l-.9.9M4.1 11.9l-.9.9"]]],
  ["dark", [["line", "M13.5 9.6A5.8 5.8 0 0 1 6.4 2.5a5.8 5.8 0 1 0 7.1 7.1z"]]],
  ["system", [["line", "M2.5 3h11v7.5h-11zM5.5 13.5h5M8 10.5v3"]]],
  ["help", [["line", "M5.7 6a2.4 2.4 0 1 1 3.5 2.1c-.8.4-1.2.9-1.2 1.7"], ["fill", "M8 11.4a.9.9 0 1 0 0 1.8a.9.9 0 1 0 0-1.8z"]]],
  ["up", [["line", "M8 13V3.5M4 7l4-4 4 4"]]],
]);

/** An icon of 16 by 16. It says nothing to a screen reader: the word is beside it. */
function icon(which, props) {
  return s("svg", { class: "icon", viewBox: "0 0 16 16", width: 16, height: 16, "aria-hidden": "true", ...props }, iconParts(which));
}

function iconParts(which) {
  return (ICONS.get(which) ?? ICONS.get("held")).map(([kind, d]) => s("path", { class: `i-${kind}`, d }));
}

/** Class of a state; what this page does not know looks like nothing in particular. */
const stateClass = (state) => `s-${KNOWN.has(state) ? state : "unknown"}`;

const capital = (word) => word.charAt(0).toUpperCase() + word.slice(1);

/** What a run is to its reader: paused and cancelling are no states of their own in the database. */
function runMood(run) {
  if (run.state !== "executing") return run.state;
  return run.paused_at ? "paused" : "executing";
}

function stateTag(state, word) {
  return h("span", { class: `state ${stateClass(state)}` }, icon(state), h("span", { text: word ?? capital(state) }));
}

/** One state for a group: what needs a look comes first. */
function groupState(counts) {
  for (const state of ["executing", "retryable", "discarded", "available", "scheduled", "held", "cancelled", "completed", "skipped"]) {
    if (counts.get(state)) return state;
  }
  return "held";
}

/** Counts as the server sends them, as a Map: a name from outside is never a property here. */
const toMap = (object) => new Map(Object.entries(object ?? {}));

/** A segmented bar. */
class Bar {
  constructor(label) {
    this.element = h("div", { class: "bar", role: "img", "aria-label": label });
    this.segments = new Map();
  }

  update(counts, total, label) {
    if (label) setAttr(this.element, "aria-label", label);
    for (const state of ["completed", "skipped", "executing", "retryable", "discarded", "cancelled"]) {
      const share = total ? ((counts.get(state) ?? 0) / total) * 100 : 0;
      let segment = this.segments.get(state);
      if (!segment && !share) continue;
      if (!segment) {
        segment = h("i", { class: stateClass(state) });
        this.segments.set(state, segment);
        const order = STEP_STATES.indexOf(state);
        const next = [...this.segments].filter(([other]) => STEP_STATES.indexOf(other) > order);
        next.sort(([a], [b]) => STEP_STATES.indexOf(a) - STEP_STATES.indexOf(b));
        this.element.insertBefore(segment, next.length ? next[0][1] : null);
      }
      segment.style.width = `${share}%`;
      segment.hidden = !share;
    }
  }
}

/** What a run without its steps tells of them. */
function runCounts(run) {
  const failed = run.state === "cancelled" ? "cancelled" : "discarded";
  return new Map([["completed", run.steps - run.unsettled - run.failed], [failed, run.failed]]);
}
