// All runs: a live list, with its filters in the address.

const PAGE = 50;
const MOST = 200;
const SPANS = new Map([["1h", 3_600_000], ["24h", 86_400_000], ["7d", 7 * 86_400_000], ["30d", 30 * 86_400_000]]);
const SPAN_WORDS = new Map([["", "Any time"], ["1h", "Last hour"], ["24h", "Last 24 hours"], ["7d", "Last 7 days"], ["30d", "Last 30 days"], ["custom", "From … to …"]]);
const COUNT_LIMIT = 10_000;

const EXAMPLE = `from baton import Baton, Workflow, step

@step
async def fetch(url: str) -> str: ...

@step
async def digest(text: str) -> dict[str, int]: ...

async with Baton.local(queues={"default": 10}) as baton:
    wf = Workflow("reading")
    text = wf.add("fetch", fetch.new(url="https://example.org"))
    wf.add("digest", digest.new(text=text.result))
    run = await baton.insert(wf)`;

class RunsView {
  constructor() {
    this.runs = new Map();
    this.rows = new Map();
    this.waiting = new Map();
    this.early = null;
    this.next = null;
    this.again = false;
    this.anew = false;
    this.abort = null;
    this.untick = ticker.add(() => this.tick());
    this.recount = throttle(2000, () => this.fetchCounts());
    this.build();
    this.live = new Live("api/runs/events", { runs: (change) => this.change(change) }, () => this.load());
    this.update();
  }

  close() {
    this.live.close();
    this.untick();
    this.again = false;
    this.abort?.abort();
    this.recount.stop();
    this.search.stop();
    removeEventListener("scroll", this.onScroll);
  }

  build() {
    this.search = debounce(250, () => router.go(router.with({ q: this.input.value.trim() }), { replace: true }));
    this.input = h("input", { class: "input search", type: "search", placeholder: "Search name, key or id", "aria-label": "Search runs", autocomplete: "off", spellcheck: "false", on: { input: this.search } });
    this.tabs = h("div", { class: "tabs", role: "tablist", "aria-label": "State" });
    this.span = h("select", { class: "input", "aria-label": "Inserted", on: { change: () => this.pickSpan() } },
      [...SPAN_WORDS].map(([value, text]) => h("option", { value, text })));
    this.from = this.dateInput("From", "from");
    this.to = this.dateInput("To", "to");
    this.custom = h("span", { class: "row", hidden: true }, this.from, this.to);
    this.list = h("div", { class: "runs", role: "list", "aria-label": "Runs" });
    this.pill = h("button", { class: "pill", hidden: true, on: { click: () => this.showWaiting() } });
    this.foot = h("div", { class: "foot" });
    this.body = h("div", { class: "card" }, skeleton(8, "tall"));
    addEventListener("scroll", this.onScroll = () => scrollY < 80 && this.waiting.size && this.showWaiting(), { passive: true });
    shell.main.replaceChildren(h("div", { class: "page" },
      h("div", { class: "page-head" }, h("h1", { text: "Runs" })),
      h("div", { class: "filters" }, this.tabs, h("span", { class: "grow" }),
        h("label", { class: "searchbox" }, icon("search"), this.input, h("kbd", { text: "/" })), this.span, this.custom),
      this.pill,
      this.body,
      this.foot));
  }

  dateInput(label, param) {
    return h("input", { class: "input", type: "datetime-local", "aria-label": label, title: label, on: { change: (event) => router.go(router.with({ [param]: event.target.value }), { replace: true }) } });
  }

  pickSpan() {
    const span = this.span.value;
    router.go(router.with(span === "custom" ? { since: "custom" } : { since: span, from: null, to: null }));
  }

  /** Read the address and show what it asks for. */
  update() {
    const { params } = router.route;
    document.title = "Runs · Baton";
    const q = params.get("q") ?? "";
    if (document.activeElement !== this.input || this.input.value.trim() !== q) this.input.value = q;
    this.span.value = SPAN_WORDS.has(params.get("since") ?? "") ? params.get("since") ?? "" : "";
    this.custom.hidden = this.span.value !== "custom";
    this.from.value = params.get("from") ?? "";
    this.to.value = params.get("to") ?? "";
    this.drawTabs();
    this.load({ anew: true });
  }

  filters() {
    const { params } = router.route;
    const span = SPANS.get(params.get("since"));
    const local = (text) => (text && !Number.isNaN(Date.parse(text)) ? new Date(text).toISOString() : null);
    return {
      state: params.get("state"),
      name: params.get("name"),
      key: params.get("key"),
      q: params.get("q"),
      after: span ? new Date(clock.now() - span).toISOString() : local(params.get("from")),
      before: span ? null : local(params.get("to")),
    };
  }

  filtered() {
    return Object.values(this.filters()).some(Boolean);
  }

  /** Whether a run that changed belongs into the list. */
  matches(run) {
    const { state, name: named, key, q, after, before } = this.filters();
    const has = (text) => (text ?? "").toLowerCase().includes(q.toLowerCase());
    return (!state || run.state === state) && (!named || run.name === named) && (!key || run.key === key)
      && (!q || has(run.name) || has(run.key) || has(run.id))
      && (!after || time(run.inserted_at) >= Date.parse(after)) && (!before || time(run.inserted_at) <= Date.parse(before));
  }

  /** Read the list from its top, `anew` or into what stands. One at a time: who asks meanwhile makes it read once more. */
  async load({ anew = false } = {}) {
    this.again = true;
    if (anew) {
      this.anew = true;
      this.abort?.abort();
      this.abort = new AbortController();
      this.body.classList.add("busy");
    }
    if (this.early) return;
    while (this.again) {
      this.again = false;
      this.early = [];
      try {
        const limit = this.anew ? PAGE : Math.min(Math.max(this.runs.size, PAGE), MOST);
        this.show(await api.runs({ ...this.filters(), limit }, this.abort.signal));
      } catch (error) {
        if (error.name !== "AbortError" && this.anew) this.body.replaceChildren(problem(error, () => this.load({ anew: true })));
      }
    }
    this.early = null;
    this.body.classList.remove("busy");
  }

  show(found) {
    if (this.anew) {
      this.anew = false;
      this.runs = new Map(found.runs.map((run) => [run.id, run]));
      this.waiting.clear();
      this.next = found.next;
    } else this.merge(found);
    this.counts = toMap(found.counts);
    // What came by the stream while this was on its way is newer.
    for (const change of this.early) this.take(change);
    this.drawTabs();
    this.draw();
  }

  /** Take the newest as they are now, and leave standing what was loaded below them. */
  merge(found) {
    const oldest = found.next ? found.runs.at(-1).id : "";
    const now = new Set(found.runs.map((run) => run.id));
    for (const runs of [this.runs, this.waiting]) {
      for (const id of [...runs.keys()]) if (id >= oldest && !now.has(id)) runs.delete(id);
    }
    if (![...this.runs.keys()].some((id) => id < oldest)) this.next = found.next;
    this.take({ runs: found.runs, removed: [] });
  }

  async more() {
    const button = this.foot.querySelector("button");
    button.disabled = true;
    try {
      const found = await api.runs({ ...this.filters(), cursor: this.next, limit: PAGE }, this.abort.signal);
      for (const run of found.runs) if (!this.runs.has(run.id)) this.runs.set(run.id, run);
      this.next = found.next;
      this.draw();
    } catch (error) {
      button.disabled = false;
      shell.fail(error);
    }
  }

  async fetchCounts() {
    try {
      this.counts = toMap((await api.runs({ ...this.filters(), limit: 1 }, this.abort?.signal)).counts);
      this.drawTabs();
    } catch {
      // The next change asks again.
    }
  }

  change(change) {
    if (this.early) this.early.push(change);
    else {
      this.take(change);
      this.draw();
    }
  }

  take({ runs, removed }) {
    for (const id of removed) {
      this.runs.delete(id);
      this.waiting.delete(id);
    }
    const oldest = this.next ? [...this.runs.keys()].at(-1) : "";
    let recount = removed.length > 0;
    for (const run of runs) {
      const known = this.runs.get(run.id) ?? this.waiting.get(run.id);
      recount ||= !known || known.state !== run.state;
      if (!this.matches(run)) {
        this.runs.delete(run.id);
        this.waiting.delete(run.id);
      } else if (this.runs.has(run.id)) this.runs.set(run.id, run);
      else if (this.waiting.has(run.id) || (scrollY > 80 && run.id > [...this.runs.keys()][0])) this.waiting.set(run.id, run);
      // Older than what is shown: it comes with its page.
      else if (!oldest || run.id > oldest) this.runs.set(run.id, run);
    }
    if (recount) this.recount();
  }

  showWaiting() {
    for (const [id, run] of this.waiting) this.runs.set(id, run);
    this.waiting.clear();
    this.draw();
    scrollTo({ top: 0, behavior: calm.matches ? "auto" : "smooth" });
  }

  drawTabs() {
    const current = router.route.params.get("state") ?? "";
    const all = this.counts ? [...this.counts.values()].reduce((sum, value) => sum + value, 0) : null;
    const tabs = [["", "All", all], ...RUN_STATES.map((state) => [state, state === "executing" ? "Running" : capital(state), this.counts ? this.counts.get(state) ?? 0 : null])];
    const label = (value) => (value === null ? "" : value >= COUNT_LIMIT ? `${count(COUNT_LIMIT)}+` : count(value));
    if (!this.tabs.children.length) {
      this.tabs.append(...tabs.map(([state, text]) => link("", { class: "tab", role: "tab", "data-state": state }, state ? icon(state, { class: `icon ${stateClass(state)}` }) : null, h("span", { text }), h("b", {}))));
    }
    tabs.forEach(([state, , value], index) => {
      const tab = this.tabs.children[index];
      setAttr(tab, "href", router.with({ state: state || null }));
      setAttr(tab, "aria-selected", String(state === current));
      setText(tab.lastChild, label(value));
    });
  }

  draw() {
    this.pill.hidden = !this.waiting.size;
    this.pill.replaceChildren(icon("up"), h("span", { text: plural(this.waiting.size, "new run") }));
    if (!this.runs.size) {
      this.rows.clear();
      this.list.replaceChildren();
      this.body.replaceChildren(this.filtered() ? this.nothingFound() : this.nothingYet());
      this.foot.replaceChildren();
      return;
    }
    // Ids are ordered by time, so newest first is by id.
    const runs = [...this.runs.values()].sort((a, b) => (a.id < b.id ? 1 : -1));
    this.runs = new Map(runs.map((run) => [run.id, run]));
    const fresh = this.rows.size > 0;
    for (const [id, row] of this.rows) {
      if (this.runs.has(id)) continue;
      row.element.remove();
      this.rows.delete(id);
    }
    let at = this.list.firstChild;
    for (const run of runs) {
      let row = this.rows.get(run.id);
      if (!row) {
        row = new RunRow(run, fresh && at === this.list.firstChild);
        this.rows.set(run.id, row);
      }
      row.update(run);
      if (row.element === at) at = at.nextSibling;
      else this.list.insertBefore(row.element, at);
    }
    if (this.list.parentNode !== this.body) this.body.replaceChildren(this.head(), this.list);
    this.drawFoot();
  }

  head() {
    return h("div", { class: "runs-head", "aria-hidden": "true" }, ["", "Run", "Progress", "Duration", "Started"].map((text) => h("span", { text })));
  }

  drawFoot() {
    this.foot.replaceChildren(
      h("span", { text: this.next ? `The newest ${count(this.runs.size)}` : plural(this.runs.size, "run") }),
      this.next ? h("button", { class: "button", text: "Load more", on: { click: () => this.more() } }) : "");
  }

  nothingFound() {
    return emptyState("No run matches", "Nothing here has this name, key, state and time. Runs that match will appear by themselves.",
      h("div", { class: "row" }, link(address("."), { class: "button", text: "Clear the filters" })));
  }

  nothingYet() {
    return emptyState("No runs yet", "A run appears here as soon as it is inserted. The shortest one that does something:",
      h("div", { class: "code" }, h("pre", { tabindex: 0 }, h("code", { text: EXAMPLE })), copyButton(() => EXAMPLE, "Copy the example")),
      h("p", { class: "hint" }, "Or run ", h("code", { text: "baton demo" }), " in a terminal and watch it here."));
  }

  tick() {
    for (const row of this.rows.values()) row.tick();
  }

  keys(event) {
    const rows = [...this.list.querySelectorAll("a.run")];
    const at = rows.indexOf(document.activeElement);
    if (event.key === "j" || event.key === "ArrowDown") rows[Math.min(at + 1, rows.length - 1)]?.focus();
    else if (event.key === "k" || event.key === "ArrowUp") rows[Math.max(at - 1, 0)]?.focus();
    else if (event.key === "/") this.input.select();
    else if (/^[1-5]$/.test(event.key)) router.go(this.tabs.children[event.key - 1].getAttribute("href"));
    else return false;
    return true;
  }
}

class RunRow {
  constructor(run, slide) {
    this.icon = h("span", { class: "run-icon" });
    this.name = name("", { class: "run-name" });
    this.key = name("", { class: "chip" });
    this.tags = h("span", { class: "run-tags" });
    this.bar = new Bar("");
    this.steps = h("span", { class: "run-steps" });
    this.time = h("span", { class: "run-time" });
    this.link = link(runHref(run.id), { class: "run" },
      this.icon,
      h("span", { class: "run-title" }, this.name, h("span", { class: "run-sub" }, h("code", { title: run.id, text: shortId(run.id) }), this.key, this.tags)),
      h("span", { class: "run-progress" }, this.bar.element, this.steps),
      this.time,
      timeTag(run.inserted_at, { class: "run-when" }));
    this.element = h("div", { role: "listitem", class: slide && !calm.matches ? "slide" : null }, this.link);
  }

  update(run) {
    if (this.run === run) return;
    const mood = runMood(run);
    if (this.mood !== mood) {
      this.mood = mood;
      this.icon.className = `run-icon ${stateClass(mood)}`;
      this.icon.replaceChildren(icon(mood));
      setAttr(this.icon, "title", capital(mood));
    }
    this.run = run;
    setText(this.name, run.name);
    setAttr(this.name, "title", run.name);
    setText(this.key, run.key ?? "");
    setAttr(this.key, "title", `Key: ${run.key}`);
    this.key.hidden = !run.key;
    const tags = [
      run.generation > 1 && `retry ${run.generation - 1}`,
      run.rerun_of && "re-run",
      run.state === "executing" && run.cancel_requested_at && "cancelling",
      mood === "paused" && "paused",
    ].filter(Boolean);
    setText(this.tags, tags.join(" · "));
    const done = run.steps - run.unsettled;
    this.bar.update(runCounts(run), run.steps, `${done} of ${run.steps} steps done`);
    setText(this.steps, run.unsettled ? `${count(done)} / ${count(run.steps)}` : run.failed ? `${count(run.failed)} of ${count(run.steps)} ${run.state}` : plural(run.steps, "step"));
    setAttr(this.link, "aria-label", `${run.name}, ${mood}, ${done} of ${run.steps} steps`);
    this.tick(true);
  }

  tick(changed) {
    const ended = time(this.run.finished_at);
    if (ended !== null && !changed) return;
    const took = (ended ?? clock.now()) - time(this.run.inserted_at);
    setText(this.time, ended === null ? ticking(took) : duration(took));
  }
}
