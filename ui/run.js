// One run: its head, and its steps as a graph, a table and a timeline, with one stream of events for all of them.

const TABS = ["graph", "table", "timeline"];

class RunView {
  constructor(id) {
    this.id = id;
    this.run = null;
    this.layout = null;
    this.boxes = new Map();
    this.steps = new Map();
    this.counts = new Map();
    this.groups = [];
    this.usage = null;
    this.budgets = [];
    this.expand = this.expandOf(router.route);
    this.position = null;
    this.early = null;
    this.loads = 0;
    this.build();
    this.untick = ticker.add(() => this.tick());
    this.live = null;
    this.load();
  }

  close() {
    this.live?.close();
    this.untick();
    this.closed = true;
    this.abort?.abort();
    this.panel.close();
    for (const view of Object.values(this.views)) view.close();
  }

  streamPath() {
    return address(runPath(this.id, "/events"), { expand: this.expand.join(",") });
  }

  expandOf(route) {
    return (route.params.get("expand") ?? "").split(",").filter(Boolean);
  }

  // Frame

  build() {
    this.head = new RunHead(this);
    this.panel = new Panel(this);
    this.views = {
      graph: new Graph({ pick: (box) => this.pick(box), unfold: (id) => this.unfold(id) }),
      table: new Table(this),
      timeline: new Timeline(this),
    };
    this.tabs = h("div", { class: "tabs", role: "tablist", "aria-label": "View" }, TABS.map((tab, index) =>
      link("", { class: "tab", role: "tab", "data-tab": tab, title: `${capital(tab)} (${index + 1})` }, icon(tab), h("span", { text: capital(tab) }))));
    this.finder = new Finder(this);
    this.folds = h("div", { class: "folds" });
    this.stage = h("div", { class: "stage", role: "tabpanel" }, skeleton(5, "boxes"));
    this.element = h("div", { class: "run-view" }, this.head.element,
      h("div", { class: "run-tools" }, this.tabs, this.folds, h("span", { class: "grow" }), this.finder.element),
      h("div", { class: "run-body" }, this.stage, this.panel.element));
    shell.main.replaceChildren(this.element);
  }

  get tab() {
    const tab = router.route.params.get("tab");
    return TABS.includes(tab) ? tab : "graph";
  }

  get view() {
    return this.views[this.tab];
  }

  /** Read the address and show what it asks for. */
  update() {
    const { params } = router.route;
    const expand = this.expandOf(router.route);
    if (expand.join() !== this.expand.join()) this.reexpand(expand);
    [...this.tabs.children].forEach((tab) => {
      setAttr(tab, "href", router.with({ tab: tab.dataset.tab === "graph" ? null : tab.dataset.tab }));
      setAttr(tab, "aria-selected", String(tab.dataset.tab === this.tab));
    });
    this.folds.hidden = this.tab !== "graph";
    if (!this.layout) return;
    this.finder.update();
    const { element } = this.view;
    if (this.stage.firstChild !== element) this.stage.replaceChildren(element);
    this.view.update?.();
    const step = params.get("step");
    this.show(/^\d{1,9}$/.test(step ?? "") ? Number(step) : null, params.get("group"), params.has("cost"));
  }

  show(position, group, cost) {
    this.position = position;
    const box = group ? this.layout.boxes.find(({ id }) => id === group) : null;
    if (position !== null) this.panel.showStep(position);
    else if (box?.group) this.panel.showGroup(box);
    else if (cost) this.panel.showCost();
    else this.panel.clear();
    this.element.classList.toggle("with-panel", position !== null || Boolean(box) || cost);
    this.views.graph.select(position === null ? box?.id ?? null : this.boxOf(position));
    this.views.table.mark(position);
    this.views.timeline.mark(position);
  }

  boxOf(position) {
    return this.byPosition.get(position)?.id ?? null;
  }

  // Data

  async load({ from = null, keep = null } = {}) {
    this.abort?.abort();
    this.abort = new AbortController();
    this.loads += 1;
    this.early = [];
    try {
      const found = await api.run(this.id, this.expand, this.abort.signal);
      this.take(found, { from, keep });
    } catch (error) {
      if (error.name === "AbortError") return;
      this.early = null;
      if (this.run) shell.fail(error);
      else this.element.replaceChildren(h("div", { class: "page" }, problem(error, () => app.open())));
    }
  }

  take(found, motion) {
    if (this.closed) return;
    // The stream begins with everything, so nothing is missed between.
    this.live ??= new Live(this.streamPath(), { change: (change) => this.receive(change) }, () => this.load());
    this.run = found.run;
    this.layout = { ...found.layout, boxes: found.layout.boxes };
    this.groups = found.groups ?? [];
    this.counts = toMap(found.counts);
    this.usage = found.usage;
    this.budgets = found.budgets ?? [];
    this.boxes = toMap(found.boxes);
    this.byPosition = new Map(this.layout.boxes.filter((box) => !box.group).map((box) => [box.position, box]));
    this.steps = new Map([...this.byPosition].map(([position, box]) => [position, this.boxes.get(box.id)]));
    this.into = new Map();
    for (const { source, target } of this.layout.edges) {
      if (!this.into.has(target)) this.into.set(target, []);
      this.into.get(target).push(source);
    }
    const early = this.early;
    this.early = null;
    const first = !this.views.graph.layout;
    this.views.graph.setLayout(this.layout, this.boxes, motion);
    for (const change of early ?? []) this.change(change);
    if (first) this.views.graph.setFollow(this.run.state === "executing");
    this.drawFolds();
    this.head.update();
    this.update();
    if (first && this.views.graph.size.width) this.views.graph.start();
  }

  receive(change) {
    if (this.early) this.early.push(change);
    else if (this.layout) this.change(change);
  }

  change({ run, counts, boxes, usage, budgets }) {
    this.run = run;
    this.usage = usage;
    this.budgets = budgets ?? [];
    this.counts = toMap(counts);
    const changed = toMap(boxes);
    const steps = new Map();
    let unknown = false;
    for (const [id, state] of changed) {
      unknown ||= !this.boxes.has(id);
      this.boxes.set(id, state);
      if (state.position === undefined) continue;
      steps.set(state.position, state);
      this.steps.set(state.position, state);
    }
    this.views.graph.change(changed);
    if (this.tab !== "graph") this.view.change(steps, changed);
    this.panel.change(steps, changed);
    this.head.update();
    // A box that is not in the picture: the graph has grown.
    if (unknown) this.load();
  }

  /** When a step could have run: due, and all it waits for settled, as far as the picture tells. */
  dueAt(box, state) {
    if (state.attempt > 1) return time(state.scheduled_at);
    const settled = (this.into.get(box) ?? []).map((id) => time(this.boxes.get(id)?.settled_at ?? null)).filter((at) => at !== null);
    return Math.max(time(this.run.inserted_at), ...settled, state.scheduled_at && time(state.scheduled_at) <= time(state.started_at) ? time(state.scheduled_at) : 0);
  }

  tick() {
    this.head.tick();
  }

  allowed() {
    if (this.run) this.head.update();
    this.panel.content?.allowed?.();
  }

  // What people do

  pick(box) {
    if (!box) router.go(router.with({ step: null, group: null, cost: null }), { replace: true });
    else if (box.group) router.go(router.with({ step: null, group: box.id, cost: null }), { replace: this.panel.content !== null });
    else this.select(box.position);
  }

  select(position) {
    router.go(router.with({ step: position === null ? null : String(position), group: null, cost: null }), { replace: this.panel.content !== null });
  }

  unfold(id) {
    this.motion = { from: id };
    router.go(router.with({ expand: [...this.expand, id].join(","), group: null, tab: null }));
  }

  fold(id) {
    this.motion = { keep: null };
    router.go(router.with({ expand: this.expand.filter((each) => each !== id).join(",") || null, group: null }));
  }

  async reexpand(expand) {
    this.expand = expand;
    const { motion } = this;
    this.motion = null;
    await this.load(motion ?? {});
    this.live?.move(this.streamPath());
  }

  drawFolds() {
    this.folds.replaceChildren(...this.groups.filter(({ expanded }) => expanded).map(({ id, label, total }) =>
      h("button", { class: "chip pick", title: `Fold ${label} again`, on: { click: () => this.fold(id) } }, name(label, { class: "cut" }), h("b", { class: "num", text: count(total) }), icon("close"))));
  }

  async act(verb, body, question = null) {
    const reason = question ? await confirmAction(question) : "";
    if (reason === null) return;
    this.head.busy(true);
    try {
      const found = await api.act(this.id, verb, reason ? { ...body, reason } : body);
      shell.toast(String(found.message));
      if (verb === "rerun" && found.run && found.run !== this.id) router.go(runHref(found.run));
      else await this.load();
    } catch (error) {
      shell.fail(error);
    } finally {
      this.head.busy(false);
    }
  }

  keys(event) {
    if (/^[1-3]$/.test(event.key)) router.go(this.tabs.children[event.key - 1].getAttribute("href"), { replace: true });
    else if (event.key === "/") this.finder.input.select();
    else if (event.key === "Escape") {
      if (this.panel.content) {
        const box = this.views.graph.records.get(this.views.graph.selected);
        this.select(null);
        if (this.tab === "graph") this.views.graph.focusBox(box);
      } else router.go(address("."));
    } else return this.view.keys(event);
    return true;
  }
}

/** Name, state, counts, times and actions of the run. */
class RunHead {
  constructor(view) {
    this.view = view;
    this.title = name("", { class: "cut" });
    this.mood = h("span", {});
    this.meta = h("div", { class: "meta" });
    this.took = h("span", { class: "num" });
    this.bar = new Bar("Progress");
    this.legend = h("div", { class: "legend" });
    this.buttons = h("div", { class: "row actions" });
    this.banners = h("div", { class: "banners" });
    this.budgets = h("div", { class: "budgets" });
    this.element = h("header", { class: "run-head" },
      h("div", { class: "run-line" },
        h("nav", { class: "crumbs", "aria-label": "Where you are" }, link(address("."), { text: "Runs" }), h("span", { class: "muted", "aria-hidden": "true", text: "/" })),
        h("h1", {}, this.title), this.mood, h("span", { class: "grow" }), this.buttons),
      this.meta,
      h("div", { class: "run-line progress-line" }, this.bar.element, this.legend),
      this.budgets,
      this.banners);
  }

  update() {
    const { run, counts } = this.view;
    document.title = `${run.name} · Baton`;
    setText(this.title, run.name);
    setAttr(this.title, "title", run.name);
    const mood = runMood(run);
    if (mood !== this.moodShown) {
      this.moodShown = mood;
      this.mood.replaceChildren(stateTag(mood, mood === "executing" ? "Running" : undefined));
      this.mood.firstChild.classList.add("solid");
    }
    this.bar.update(counts, run.steps, `${run.steps - run.unsettled} of ${run.steps} steps done`);
    this.drawLegend(counts);
    this.drawMeta(run);
    this.drawBudgets(run);
    this.drawBanners(run);
    this.drawActions(run);
    this.tick(true);
  }

  once(slot, key, draw) {
    const text = JSON.stringify(key);
    if (this[`${slot}Key`] === text) return;
    this[`${slot}Key`] = text;
    draw();
  }

  drawLegend(counts) {
    const shown = STEP_STATES.filter((state) => counts.get(state));
    this.once("legend", shown.map((state) => [state, counts.get(state)]), () => {
      this.legend.replaceChildren(...shown.map((state) => link(router.with({ tab: "table", in: state }), { class: `legend-item ${stateClass(state)}`, title: `${capital(state)}: ${MEANINGS.get(state)}` },
        icon(state), h("b", { class: "num", text: count(counts.get(state)) }), h("span", { text: state }))));
    });
  }

  drawMeta(run) {
    const { usage } = this.view;
    const words = usage ? [costWords(usage), tokenWords(usage)].filter(Boolean).join(" · ") : "";
    this.once("meta", [run.id, run.key, run.generation, run.rerun_of, run.finished_at, run.steps, words, usage?.cost_usd], () => {
      const item = (label, ...value) => h("span", { class: "meta-item" }, h("span", { class: "muted", text: label }), ...value);
      this.meta.replaceChildren(...[
        item("Id", h("code", { title: run.id, class: "cut", text: run.id }), copyButton(() => run.id, "Copy the id")),
        run.key ? item("Key", name(run.key, { class: "chip", title: run.key })) : null,
        item(run.finished_at ? "Took" : "Running for", this.took),
        usage ? item("Models", link(router.with({ cost: "1", step: null, group: null }), { class: "num cost-link", title: exactCost(usage.cost_usd), text: words })) : null,
        item("Inserted", timeTag(run.inserted_at)),
        run.finished_at ? item("Ended", timeTag(run.finished_at)) : null,
        run.generation > 1 ? item("Retried", h("span", { class: "num", text: plural(run.generation - 1, "time") })) : null,
        run.rerun_of ? item("Re-run of", link(runHref(run.rerun_of), {}, h("code", { text: shortId(run.rerun_of) }))) : null,
      ].filter(Boolean));
    });
  }

  drawBudgets(run) {
    const { budgets } = this.view;
    this.once("budgets", [budgets, run.state, session.actions.has("add_budget")], () => {
      this.budgets.replaceChildren(...budgets.map((budget) => budgetView(this.view, budget, false)));
    });
  }

  drawBanners(run) {
    this.once("banners", [run.state, run.paused_at, run.paused_by_budget, run.cancel_requested_at, run.cancel_reason, run.deadline_at], () => {
      const live = run.state === "executing";
      const banner = (kind, state, ...children) => h("div", { class: `banner ${kind}` }, icon(state), h("span", { dir: "auto" }, ...children));
      this.banners.replaceChildren(...[
        live && run.paused_at && run.paused_by_budget ? banner("s-paused", "paused", "Paused ", timeTag(run.paused_at), ", as its budget is exhausted. It goes on when something is added to that.") : null,
        live && run.paused_at && !run.paused_by_budget ? banner("s-paused", "paused", "Paused ", timeTag(run.paused_at), ". What runs finishes; nothing more starts until it is resumed.") : null,
        live && run.cancel_requested_at ? banner("s-cancelled", "cancelled", "Being cancelled", run.cancel_reason ? `: ${run.cancel_reason}` : "", ". Steps that run now are asked to stop.") : null,
        !live && run.state === "cancelled" && run.cancel_reason ? banner("s-cancelled", "cancelled", `Cancelled: ${run.cancel_reason}`) : null,
        live && run.deadline_at ? banner("s-scheduled", "scheduled", "Must have finished ", timeTag(run.deadline_at), ", or it is cancelled.") : null,
      ].filter(Boolean));
    });
  }

  drawActions(run) {
    const allowed = (verb) => session.actions.has(verb);
    this.once("actions", [run.state, run.paused_at, run.paused_by_budget, run.cancel_requested_at, run.failed, [...session.actions]], () => {
      const live = run.state === "executing";
      const { view } = this;
      const button = (verb, label, question = null, kind = "") => h("button", { class: `button ${kind}`, "data-verb": verb, on: { click: () => view.act(verb, {}, question) } }, icon(verb), label);
      this.buttons.replaceChildren(...[
        live && !run.paused_at && allowed("pause") ? button("pause", "Pause") : null,
        live && run.paused_at && allowed("resume") ? button("resume", "Resume", null, run.paused_by_budget ? "" : "primary") : null,
        !live && run.failed && allowed("retry") ? button("retry", "Retry failed", null, "primary") : null,
        !live && allowed("rerun") ? button("rerun", "Re-run", { title: "Run all of it again?", text: "A new run begins, from the first step. This one stays as it is.", verb: "Re-run" }) : null,
        live && !run.cancel_requested_at && allowed("cancel") ? button("cancel", "Cancel", { title: "Cancel this run?", text: "What runs is asked to stop, what waits never starts. Results of completed steps are kept.", verb: "Cancel run", danger: true, reason: true }) : null,
      ].filter(Boolean));
    });
  }

  busy(yes) {
    for (const button of this.buttons.children) button.disabled = yes;
  }

  tick(always) {
    const { run } = this.view;
    if (!run || (run.finished_at && !always)) return;
    const ended = time(run.finished_at);
    const took = (ended ?? clock.now()) - time(run.inserted_at);
    setText(this.took, ended === null ? ticking(took) : duration(took));
  }
}

/** The field that finds a step: filters the table, and offers steps elsewhere. */
class Finder {
  constructor(view) {
    this.view = view;
    this.input = h("input", { class: "input search", type: "search", placeholder: "Find a step", "aria-label": "Find a step", autocomplete: "off", spellcheck: "false" });
    this.list = h("ul", { class: "links found", hidden: true });
    this.element = h("label", { class: "searchbox" }, icon("search"), this.input, h("kbd", { text: "/" }), this.list);
    this.ask = debounce(200, () => this.look());
    this.input.addEventListener("input", this.ask);
    this.input.addEventListener("keydown", (event) => this.key(event));
    this.element.addEventListener("focusout", (event) => {
      if (!this.element.contains(event.relatedTarget)) this.list.hidden = true;
    });
  }

  update() {
    const q = this.view.tab === "table" ? router.route.params.get("q") ?? "" : "";
    if (document.activeElement !== this.input) this.input.value = q;
  }

  async look() {
    const q = this.input.value.trim();
    if (this.view.tab === "table") {
      router.go(router.with({ q }), { replace: true });
      return;
    }
    if (!q) {
      this.list.hidden = true;
      return;
    }
    try {
      const found = await api.steps(this.view.id, { q, limit: 8 });
      if (this.input.value.trim() !== q) return;
      this.list.replaceChildren(...(found.steps.length ? found.steps.map((step) => h("li", {},
        h("button", { class: `step-link ${stateClass(step.state)}`, on: { click: () => this.choose(step) } }, icon(step.state), name(step.name, { class: "cut" })))) : [h("li", { class: "muted none", text: "No step of that name" })]));
      this.list.hidden = false;
    } catch (error) {
      shell.fail(error);
    }
  }

  choose(step) {
    this.list.hidden = true;
    this.input.value = "";
    this.input.blur();
    this.view.select(step.position);
    const box = this.view.boxOf(step.position);
    if (box) this.view.views.graph.reveal(box, { zoom: true });
  }

  key(event) {
    const choices = [...this.list.querySelectorAll("button")];
    if (event.key === "Enter" && !this.list.hidden) choices[0]?.click();
    else if (event.key === "ArrowDown" && !this.list.hidden) choices[0]?.focus();
    else if (event.key === "Escape") {
      event.stopPropagation();
      this.list.hidden = true;
      this.input.blur();
    } else return;
    event.preventDefault();
  }
}
