// When each step waited and ran: one line per step, one per folded group, on a common axis.

const TIMELINE_ROWS = 400;
const TIMELINE_PAGE = 100;
const TICKS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14_400, 43_200, 86_400, 172_800, 604_800].map((seconds) => seconds * 1000);

class Timeline {
  constructor(run) {
    this.run = run;
    this.rows = new Map();
    this.open = new Map();
    this.limit = TIMELINE_ROWS;
    this.axis = h("div", { class: "axis", "aria-hidden": "true" });
    this.list = h("div", { class: "lines", role: "list", "aria-label": "Timeline" });
    this.foot = h("div", { class: "foot" });
    this.scroller = h("div", { class: "scroller", tabindex: -1 }, h("div", { class: "axis-row" }, h("span", { class: "axis-name muted", text: "Step" }), this.axis), this.list, this.foot);
    this.element = h("div", { class: "timeline" }, this.scroller,
      h("div", { class: "keys muted" }, h("span", {}, h("i", { class: "key-wait" }), "waited for a worker"), h("span", {}, h("i", { class: "key-run" }), "ran")));
    this.soon = throttle(500, () => this.draw());
    this.untick = ticker.add(() => this.element.isConnected && this.run.run?.state === "executing" && this.scale());
  }

  close() {
    this.soon.stop();
    this.untick();
  }

  update() {
    this.draw();
  }

  change(steps, boxes) {
    let known = true;
    for (const id of boxes.keys()) {
      const row = this.rows.get(id);
      if (row) row.update(this.run.boxes.get(id));
      else known = false;
      if (this.open.has(id)) this.reopen(id);
    }
    // What starts moves up among what has started.
    if (!known || [...steps.values()].some((step) => step.started_at && !this.placed.has(step.position))) this.soon();
  }

  reopen(id) {
    const opened = this.open.get(id);
    opened.again ??= throttle(2000, () => this.open.has(id) && this.fetch(id, true));
    opened.again();
  }

  lines() {
    const { layout, boxes } = this.run;
    const lines = [];
    for (const box of layout?.boxes ?? []) {
      const state = boxes.get(box.id);
      lines.push({ id: box.id, box, state, start: startOf(state) });
    }
    return lines.sort((a, b) => (a.start ?? Infinity) - (b.start ?? Infinity) || a.box.x - b.box.x || a.box.y - b.box.y);
  }

  draw() {
    if (!this.element.isConnected || !this.run.run) return;
    const lines = this.lines();
    this.placed = new Set(lines.filter(({ start, box }) => start !== null && !box.group).map(({ box }) => box.position));
    const keep = new Set();
    let at = this.list.firstChild;
    const put = (id, make, state) => {
      keep.add(id);
      let row = this.rows.get(id);
      if (!row) {
        row = make();
        this.rows.set(id, row);
      }
      row.update(state);
      if (row.element === at) at = at.nextSibling;
      else this.list.insertBefore(row.element, at);
    };
    for (const { id, box, state } of lines.slice(0, this.limit)) {
      put(id, () => new TimelineRow(this, box.label, box), state);
      for (const step of this.open.get(id)?.steps ?? []) put(`step ${step.position}`, () => new TimelineRow(this, step.name, { id, position: step.position, inner: true }), step);
    }
    for (const [id, row] of this.rows) {
      if (keep.has(id)) continue;
      row.element.remove();
      this.rows.delete(id);
    }
    this.foot.replaceChildren(
      h("span", { text: lines.length > this.limit ? `The first ${count(this.limit)} of ${count(lines.length)}` : "" }),
      lines.length > this.limit ? h("button", { class: "button small", text: "Show more", on: { click: () => { this.limit += TIMELINE_ROWS; this.draw(); } } }) : "");
    this.mark(this.run.position);
    this.scale();
  }

  /** One axis for all: rows hold milliseconds, the list holds how many there are. */
  scale() {
    const { run } = this.run;
    if (!run) return;
    this.begin = time(run.inserted_at);
    const end = time(run.finished_at) ?? clock.now();
    const length = Math.max(1000, end - this.begin);
    this.list.style.setProperty("--length", length);
    this.list.style.setProperty("--now", clock.now() - this.begin);
    const step = TICKS.find((each) => length / each <= 6) ?? length / 5;
    const marks = Array.from({ length: Math.floor(length / step) + 1 }, (_, index) => index * step).filter((at) => at / length < 0.96);
    const key = marks.join();
    if (key !== this.marksKey) {
      this.marksKey = key;
      this.axis.replaceChildren(...marks.map((at) => h("span", { "data-at": at, text: at ? duration(at).replace(/\.0 s/, " s").replace(/m 00s/, "m") : "0" })));
    }
    for (const mark of this.axis.children) mark.style.left = `${(Number(mark.dataset.at) / length) * 100}%`;
    this.list.style.setProperty("--tick", `${(step / length) * 100}%`);
  }

  async toggle(box) {
    if (this.open.has(box.id)) {
      this.open.get(box.id).again?.stop();
      this.open.delete(box.id);
      this.draw();
    } else await this.fetch(box.id, false);
    this.rows.get(box.id)?.turned(this.open.has(box.id));
  }

  async fetch(id, again) {
    try {
      const found = await api.steps(this.run.id, { box: id, expand: this.run.expand.join(","), sort: "started_at", limit: TIMELINE_PAGE });
      if (again && !this.open.has(id)) return;
      this.open.set(id, { ...this.open.get(id), steps: found.steps });
      this.draw();
    } catch (error) {
      shell.fail(error);
    }
  }

  mark(position) {
    for (const row of this.rows.values()) setAttr(row.element, "aria-current", row.position === position && position !== null ? "true" : null);
  }

  keys(event) {
    return walkRows(event, [...this.list.querySelectorAll(".line-name")]);
  }
}

const startOf = (state) => time(state?.started_at ?? null);

class TimelineRow {
  constructor(timeline, label, { group = false, inner = false, position = null, ...box }) {
    this.timeline = timeline;
    this.box = box.id;
    this.group = group;
    this.position = position;
    this.icon = h("span", { class: "line-icon" });
    this.wait = h("i", { class: "wait", hidden: true });
    this.bar = h("i", { class: "ran", hidden: true });
    this.took = h("span", { class: "took num" });
    const text = [this.icon, name(label, { class: "cut", title: label })];
    if (group) {
      this.caret = h("button", { class: "line-name", "aria-expanded": "false", on: { click: () => timeline.toggle({ id: box.id }) } }, icon("chevron"), text, h("b", { class: "num muted", text: count(box.total) }));
    }
    const head = this.caret ?? link("", { class: "line-name" }, text);
    this.link = group ? null : head;
    this.element = h("div", { class: `line${inner ? " inner" : ""}`, role: "listitem" }, head, h("span", { class: "track" }, this.wait, this.bar, this.took));
  }

  turned(open) {
    setAttr(this.caret, "aria-expanded", String(open));
  }

  update(state) {
    if (this.link) setAttr(this.link, "href", router.with({ step: this.position }));
    if (!state || state === this.state) return;
    this.state = state;
    const kind = this.group ? groupState(toMap(state.counts)) : state.state;
    if (this.kind !== kind) {
      this.kind = kind;
      this.icon.replaceChildren(icon(kind));
    }
    setAttr(this.element, "class", `line ${stateClass(kind)}${this.element.classList.contains("inner") ? " inner" : ""}`);
    const begin = time(this.timeline.run.run.inserted_at);
    const [start, end] = [startOf(state), time(state.settled_at ?? null)];
    this.bar.hidden = start === null;
    this.took.hidden = start === null;
    const due = this.group ? null : this.timeline.run.dueAt(this.box, state);
    this.wait.hidden = due === null || start === null || start - due < 20;
    if (start === null) return;
    const open = end === null && (kind === "executing" || this.group);
    const last = end ?? (open ? null : start);
    setBar(this.wait, due - begin, start - begin);
    setBar(this.bar, start - begin, last === null ? null : last - begin);
    setBar(this.took, start - begin, last === null ? null : last - begin);
    const attempt = !this.group && state.attempt > 1 ? `attempt ${state.attempt}` : "";
    const took = end !== null ? duration(end - start) : kind === "retryable" ? "failed" : "";
    setText(this.took, [attempt, took].filter(Boolean).join(" · "));
  }
}

/** Where a bar is, in milliseconds; without an end it grows with the axis. */
function setBar(element, start, end) {
  element.style.setProperty("--from", Math.max(0, start));
  element.style.setProperty("--to", end === null ? "var(--now)" : Math.max(0, end));
}
