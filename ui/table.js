// All steps in rows: sorted and filtered by the server, a page at a time, patched from the stream of events.

const TABLE_PAGE = 100;
const COLUMNS = [
  { title: "Step", sort: "position" }, { title: "State" }, { title: "Attempt" }, { title: "Started", sort: "started_at" },
  { title: "Duration", sort: "duration" }, { title: "Cost" }, { title: "Note" },
];

class Table {
  constructor(run) {
    this.run = run;
    this.rows = new Map();
    this.next = null;
    this.abort = null;
    this.stale = throttle(1500, () => this.refresh());
    this.chips = h("div", { class: "chips" });
    this.headCells = COLUMNS.map(({ title, sort }) => h("th", { scope: "col", class: `c-${title.toLowerCase()}` },
      sort ? h("button", { class: "sort", on: { click: () => router.go(router.with({ sort: sort === "position" ? null : sort }), { replace: true }) } }, title) : title));
    this.body = h("tbody", {});
    this.table = h("table", { class: "steps" }, h("thead", {}, h("tr", {}, this.headCells)), this.body);
    this.foot = h("div", { class: "foot" });
    this.message = h("div", { hidden: true });
    this.scroller = h("div", { class: "scroller", tabindex: -1 }, this.table, this.message, this.foot);
    this.element = h("div", { class: "table-box" }, this.chips, this.scroller);
    this.observer = new IntersectionObserver(([entry]) => entry.isIntersecting && this.next && this.load(this.next), { root: this.scroller, rootMargin: "400px" });
    this.observer.observe(this.foot);
    this.untick = ticker.add(() => this.tick());
  }

  close() {
    this.abort?.abort();
    this.stale.stop();
    this.observer.disconnect();
    this.untick();
  }

  query() {
    const { params } = router.route;
    return { state: params.get("in"), q: params.get("q"), sort: params.get("sort") ?? "position" };
  }

  update() {
    const asked = JSON.stringify(this.query());
    this.drawChips();
    COLUMNS.forEach(({ sort }, index) => sort && setAttr(this.headCells[index], "aria-sort", this.query().sort === sort ? (sort === "duration" ? "descending" : "ascending") : "none"));
    if (asked === this.asked) return;
    this.asked = asked;
    this.load();
  }

  async load(cursor = null, limit = TABLE_PAGE) {
    if (cursor && this.loading) return;
    this.abort?.abort();
    this.abort = new AbortController();
    this.loading = true;
    try {
      const found = await api.steps(this.run.id, { ...this.query(), cursor, limit }, this.abort.signal);
      this.next = found.next;
      this.draw(found.steps, Boolean(cursor));
    } catch (error) {
      if (error.name === "AbortError") return;
      if (cursor || this.rows.size) shell.fail(error);
      else this.say(problem(error, () => this.load()));
    }
    this.loading = false;
  }

  /** The loaded rows anew, when they are few; what is further down was looked up and stands as it was. */
  refresh() {
    if (this.element.isConnected && !this.loading && this.rows.size <= 300) this.load(null, Math.max(TABLE_PAGE, this.rows.size));
  }

  draw(steps, append) {
    if (!append) {
      const keep = new Set(steps.map((step) => step.position));
      for (const [position, row] of this.rows) {
        if (keep.has(position)) continue;
        row.element.remove();
        this.rows.delete(position);
      }
    }
    let at = append ? null : this.body.firstChild;
    for (const step of steps) {
      let row = this.rows.get(step.position);
      if (!row) {
        row = new StepRow(this.run, step);
        this.rows.set(step.position, row);
      }
      row.update(step);
      if (row.element === at) at = at.nextSibling;
      else this.body.insertBefore(row.element, at);
    }
    if (this.rows.size) this.say(null);
    else this.say(emptyState("No step matches", "No step of this run has that name and state.", h("div", { class: "row" }, link(router.with({ q: null, in: null }), { class: "button", text: "Clear the filters" }))));
    setText(this.foot, this.next ? "Loading more" : this.rows.size ? plural(this.rows.size, "step") : "");
    this.mark(this.run.position);
  }

  say(element) {
    this.message.hidden = !element;
    this.table.hidden = Boolean(element);
    this.message.replaceChildren(element ?? "");
  }

  change(steps, boxes) {
    for (const [position, step] of steps) this.rows.get(position)?.update(step);
    this.drawChips();
    const { state, sort } = this.query();
    if (boxes.size > steps.size || state || sort !== "position") this.stale();
  }

  drawChips() {
    const { state } = this.query();
    this.table.classList.toggle("free", !this.run.usage);
    const counts = this.run.counts;
    const total = [...counts.values()].reduce((sum, value) => sum + value, 0);
    const shown = ["", ...STEP_STATES].filter((each) => !each || counts.get(each) || each === state);
    const asked = JSON.stringify([state, shown]);
    if (asked !== this.chipsAsked) {
      this.chipsAsked = asked;
      this.chips.replaceChildren(...shown.map((each) => link(router.with({ in: each || null }), { class: `chip pick ${each ? stateClass(each) : ""}`, "aria-current": (state ?? "") === each ? "true" : null, "data-state": each },
        each ? icon(each) : null, h("span", { text: each ? capital(each) : "All" }), h("b", { class: "num" }))));
    }
    shown.forEach((each, index) => setText(this.chips.children[index].lastChild, count(each ? counts.get(each) ?? 0 : total)));
  }

  mark(position) {
    for (const [at, row] of this.rows) setAttr(row.element, "aria-selected", String(at === position));
  }

  tick() {
    for (const row of this.rows.values()) row.tick();
  }

  keys(event) {
    return walkRows(event, [...this.body.querySelectorAll("a.row-link")]);
  }
}

/** j and k over links in rows. */
function walkRows(event, rows) {
  const at = rows.indexOf(document.activeElement);
  if (event.key === "j" || event.key === "ArrowDown") rows[Math.min(at + 1, rows.length - 1)]?.focus();
  else if (event.key === "k" || event.key === "ArrowUp") rows[Math.max(at - 1, 0)]?.focus();
  else return false;
  return true;
}

class StepRow {
  constructor(run, step) {
    this.name = name("", { class: "cut" });
    this.link = link("", { class: "row-link" }, this.name);
    this.function = h("code", { class: "cut muted", dir: "auto" });
    this.state = h("td", { class: "c-state" });
    this.attempt = h("td", { class: "c-attempt num" });
    this.started = h("td", { class: "c-started muted" });
    this.took = h("td", { class: "c-duration num" });
    this.cost = h("td", { class: "c-cost num" });
    this.note = h("td", { class: "c-note" });
    this.element = h("tr", {}, h("td", { class: "c-step" }, this.link, this.function), this.state, this.attempt, this.started, this.took, this.cost, this.note);
    this.element.addEventListener("click", (event) => {
      if (!event.target.closest("a") && getSelection().isCollapsed) run.select(step.position);
    });
  }

  update(step) {
    const before = this.step;
    this.step = step;
    setAttr(this.link, "href", router.with({ step: step.position }));
    setText(this.name, step.name);
    setAttr(this.name, "title", step.name);
    setText(this.function, step.function);
    if (before?.state !== step.state) this.state.replaceChildren(stateTag(step.state));
    setText(this.attempt, step.attempt ? `${step.attempt}/${step.max_attempts}` : "–");
    if (before?.started_at !== step.started_at || !before) this.started.replaceChildren(timeTag(step.started_at));
    setText(this.cost, costWords(step.usage));
    setAttr(this.cost, "title", step.usage ? exactCost(step.usage.cost_usd) : null);
    this.drawNote();
    this.tick(true);
  }

  drawNote() {
    const { step } = this;
    const share = progressShare(step);
    const text = step.error ?? (step.state === "held" ? stepWords(step) : step.progress?.message ?? "");
    const key = `${share}|${text}|${step.error !== null}`;
    if (key === this.noteKey) return;
    this.noteKey = key;
    if (share === null) this.note.replaceChildren(h("span", { class: step.error ? "cut error-text" : "cut muted", dir: "auto", title: text, text }));
    else {
      const fill = h("i", { class: stateClass(step.state) });
      fill.style.width = `${share * 100}%`;
      this.note.replaceChildren(h("span", { class: "row" }, h("span", { class: "bar thin" }, fill), h("span", { class: "cut muted", dir: "auto", text: `${Math.floor(share * 100)} % ${text}` })));
    }
  }

  tick(always) {
    if (!always && (this.step.settled_at || !this.step.started_at)) return;
    setText(this.took, stepTime(this.step) || "–");
  }
}
