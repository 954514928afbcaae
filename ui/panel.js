// What is known of one step, or the steps of a group, beside the graph.

const LOAD_RESULT = 2_000_000;
const STREAM_ROWS = 2000;
const GROUP_PAGE = 50;
// What runs every @step says nothing about one of them.
const OWN_WORKER = "baton.StepWorker";

/** A drawer that the run view fills. */
class Panel {
  constructor(run) {
    this.run = run;
    this.element = h("aside", { class: "panel", "aria-label": "Step", hidden: true, tabindex: -1 });
    this.content = null;
    this.untick = ticker.add(() => this.content?.tick());
  }

  close() {
    this.untick();
    this.clear();
  }

  clear() {
    this.content?.stop();
    this.content = null;
    this.element.hidden = true;
    this.element.replaceChildren();
  }

  showStep(position) {
    if (this.content?.position === position) return;
    this.replace(new StepPanel(this.run, position));
  }

  showGroup(box) {
    if (this.content?.box?.id === box.id) return;
    this.replace(new GroupPanel(this.run, box));
  }

  replace(content) {
    this.content?.stop();
    this.content = content;
    this.element.hidden = false;
    this.element.replaceChildren(content.element);
    this.element.scrollTop = 0;
    content.load();
  }

  showCost() {
    if (this.content?.cost) return;
    this.replace(new CostPanel(this.run));
  }

  /** States that changed, by position and by box. */
  change(steps, boxes) {
    this.content?.change(steps, boxes);
  }
}

function panelHead(title, sub, onClose) {
  return h("header", { class: "panel-head" },
    h("div", { class: "panel-title" }, title, sub),
    h("button", { class: "ghost square", "aria-label": "Close", title: "Close (Esc)", on: { click: onClose } }, icon("close")));
}

function section(title, aside, ...children) {
  return h("section", { class: "panel-part" }, h("div", { class: "part-head" }, h("h3", { text: title }), h("span", { class: "grow" }), aside), ...children);
}

function fact(label, ...value) {
  return h("div", { class: "fact" }, h("dt", { text: label }), h("dd", {}, ...value));
}

class StepPanel {
  constructor(run, position) {
    this.run = run;
    this.position = position;
    this.step = null;
    this.shape = "";
    this.reload = throttle(300, () => this.load());
    this.lookAgain = throttle(1500, () => this.load());
    this.abort = new AbortController();
    this.stream = null;
    this.calls = null;
    this.prompts = null;
    this.element = h("div", {}, panelHead(h("h2", { text: " " }), null, () => run.select(null)), skeleton(6, "lines"));
  }

  stop() {
    this.abort.abort();
    this.reload.stop();
    this.lookAgain.stop();
    this.stream?.stop();
    this.calls?.stop();
    this.prompts?.stop();
  }

  async load() {
    try {
      this.step = await api.step(this.run.id, this.position, this.abort.signal);
      this.draw();
    } catch (error) {
      if (error.name === "AbortError" || this.step) return;
      this.element.replaceChildren(panelHead(h("h2", { text: "Step" }), null, () => this.run.select(null)), problem(error, () => this.load()));
    }
  }

  /** Progress and new chunks are shown from the stream of events; anything else is read anew. */
  change(steps) {
    const now = steps.get(this.position);
    if (!now) {
      // Steps in a folded group say nothing one by one.
      if (this.step && !SETTLED.has(this.step.state)) this.lookAgain();
      return;
    }
    if (!this.step) return;
    const same = now.state === this.step.state && now.attempt === this.step.attempt && now.cancel_requested_at === this.step.cancel_requested_at
      && now.waiting_on === this.step.waiting_on;
    Object.assign(this.step, now, { error: this.step.error });
    if (!same) this.reload();
    this.drawProgress();
    this.stream?.grow(now.attempt, now.chunks);
    if (now.usage) this.drawUsage();
  }

  allowed() {
    if (this.step) this.draw();
  }

  draw() {
    const { step } = this;
    const open = new Set([...this.element.querySelectorAll("details[open]")].map((details) => details.dataset.part));
    const first = !this.shape;
    const results = `${step.result_size}:${step.attempt}`;
    if (!first && this.results !== results) this.resultView = null;
    this.results = results;
    this.shape = step.state;
    this.timeLine = h("dl", { class: "facts" });
    this.progress = h("div", { class: "panel-progress" });
    this.element.replaceChildren(
      panelHead(name(step.name, { class: "step-name" }), h("div", { class: "row wrap" }, stateTag(step.state),
        step.cancel_requested_at && !SETTLED.has(step.state) ? h("span", { class: "muted", text: "cancel requested" }) : null,
        h("span", { class: "muted", text: ["executing", "completed"].includes(step.state) ? "" : MEANINGS.get(step.state) ?? "" })), () => this.run.select(null)),
      ...[this.why(), this.progress, this.actions(), this.timeLine, this.errors(open, first), this.streamPart(), this.usagePart(), this.promptsPart(), this.resultPart(), this.argumentsPart(),
        this.links("Depends on", step.dependencies, step.dependencies_count), this.links("Needed by", step.dependents, step.dependents_count)].filter(Boolean));
    this.drawFacts();
    this.drawProgress();
    this.drawUsage();
  }

  why() {
    const { why, state, cancel_requested_at: cancelled } = this.step;
    // What ended well needs no reason, and of what failed the error below says more.
    if (!why?.length || state === "completed" || state === "discarded" || (state === "executing" && !cancelled)) return null;
    const title = state === "executing" ? "Why it still runs" : SETTLED.has(state) ? "Why it did not run" : "Why it is not running";
    return h("div", { class: "callout", role: "note" }, h("b", { text: title }), why.map((text) => h("p", { dir: "auto", text })));
  }

  drawProgress() {
    const { progress, state } = this.step;
    if (!this.progress) return;
    this.progress.hidden = !progress;
    if (!progress) return;
    const share = progress.total ? Math.min(1, progress.done / progress.total) : null;
    const text = progress.total ? `${count(round(progress.done))} of ${count(progress.total)}` : count(round(progress.done));
    const fill = h("i", { class: stateClass(state) });
    fill.style.width = share === null ? "100%" : `${share * 100}%`;
    this.progress.replaceChildren(
      h("div", { class: "row" }, h("span", { dir: "auto", class: "cut grow", text: progress.message ?? "Progress" }), h("span", { class: "num muted", text: share === null ? text : `${text} · ${Math.floor(share * 100)} %` })),
      h("div", { class: "bar", role: "progressbar", "aria-valuemin": 0, "aria-valuemax": progress.total, "aria-valuenow": progress.done }, fill));
  }

  drawFacts() {
    const { step } = this;
    const [scheduled, started, settled] = [step.scheduled_at, step.started_at, step.settled_at].map(time);
    this.took = h("span", { class: "num" });
    const facts = [
      fact("Attempt", h("span", { class: "num", text: `${step.attempt} of ${step.max_attempts}${step.snoozed ? `, snoozed ${plural(step.snoozed, "time")}` : ""}` })),
      started === null || !(settled || step.state === "executing") ? null : fact(settled === null ? "Running for" : "Took", this.took),
      ["available", "scheduled", "retryable"].includes(step.state) && scheduled !== null ? fact(scheduled > clock.now() ? "May run" : "Due", timeTag(step.scheduled_at)) : null,
      started === null ? null : fact(step.state === "executing" || settled ? "Started" : "Last attempt began", timeTag(step.started_at)),
      settled === null ? null : fact("Ended", timeTag(step.settled_at)),
      fact("Queue", h("bdi", { text: step.queue || "–" })),
      fact("Function", h("code", { dir: "auto", text: step.function })),
      step.worker && step.worker !== OWN_WORKER && step.worker !== step.function ? fact("Worker", h("code", { dir: "auto", text: step.worker })) : null,
      fact("Job", h("code", { text: String(step.job_id ?? "–") })),
      step.runs_on && step.runs_on !== "success" ? fact("Runs", h("span", { text: step.runs_on === "always" ? "always, whatever its dependencies did" : "only after a failure" })) : null,
      step.waiting_on ? fact("Waits for", h("span", { text: plural(step.waiting_on, "step") })) : null,
    ];
    this.timeLine.replaceChildren(...facts.filter(Boolean));
    this.tick(true);
  }

  tick(always) {
    const { step } = this;
    if (!step?.started_at || !this.took || (step.settled_at && !always)) return;
    const ended = time(step.settled_at);
    const took = (ended ?? clock.now()) - time(step.started_at);
    setText(this.took, ended === null && step.state === "executing" ? ticking(took) : duration(took));
  }

  actions() {
    const { step, run } = this;
    const buttons = [];
    if (session.actions.has("cancel") && !SETTLED.has(step.state)) {
      buttons.push(h("button", { class: "button small", on: { click: () => run.act("cancel", { position: step.position }, {
        title: "Cancel this step?", text: `${step.name} ends as cancelled, and so does what needs it.`, verb: "Cancel step", danger: true, reason: true }) } }, icon("cancel"), "Cancel step"));
    }
    if (session.actions.has("rerun") && run.run?.state !== "executing") {
      buttons.push(h("button", { class: "button small", on: { click: () => run.act("rerun", { position: step.position }, {
        title: "Re-run from here?", text: `A new run begins. It runs ${step.name} and what needs it, and takes over the results of all other steps.`, verb: "Re-run from here" }) } }, icon("rerun"), "Re-run from here"));
    }
    return buttons.length ? h("div", { class: "row wrap actions" }, buttons) : null;
  }

  errors(open, first) {
    const { step } = this;
    const attempts = step.attempts ?? [];
    const hidden = step.errors_hidden ? h("p", { class: "muted", text: `${plural(step.errors_hidden, "earlier error")} not shown.` }) : null;
    if (!attempts.length) {
      return step.error && SETTLED.has(step.state) ? section("Reason", null, h("pre", { class: "raw", tabindex: 0, dir: "auto", text: step.error })) : null;
    }
    const latest = attempts.reduce((last, attempt) => (attempt.attempt >= last.attempt ? attempt : last));
    return section(attempts.length === 1 ? "Error" : "Errors", h("span", { class: "muted", text: plural(attempts.length, "failed attempt") }),
      [...attempts].sort((a, b) => b.attempt - a.attempt).map((attempt) => {
        const part = `attempt ${attempt.attempt}`;
        const isOpen = first ? attempt === latest && step.state !== "completed" : open.has(part);
        return h("details", { class: "attempt", open: isOpen, "data-part": part },
          h("summary", {}, icon("chevron"), h("b", { text: `Attempt ${attempt.attempt}` }), h("span", { class: "cut grow", dir: "auto", text: lastLine(attempt.error) }), timeTag(attempt.at, { class: "muted" })),
          h("div", { class: "raw-box" }, h("pre", { class: "raw", tabindex: 0, dir: "auto", text: attempt.error ?? "" }), copyButton(() => attempt.error ?? "", "Copy the error")));
      }), hidden);
  }

  streamPart() {
    const { step } = this;
    if (!step.chunks && !this.stream) return null;
    this.stream ??= new StreamBox(this.run.id, step.position);
    this.stream.grow(step.attempt, step.chunks);
    return section("Stream", this.stream.count, this.stream.element);
  }

  usagePart() {
    this.usage = h("div", { class: "panel-part", hidden: true });
    return this.usage;
  }

  drawUsage() {
    const { usage } = this.step;
    if (!this.usage || !usage) return;
    this.calls ??= new ModelCalls(this.run.id, this.position);
    this.calls.grow(usage.calls);
    const shown = JSON.stringify(usage);
    if (this.usage.dataset.shown === shown) return;
    this.usage.dataset.shown = shown;
    this.usage.hidden = false;
    this.usage.replaceChildren(h("div", { class: "part-head" }, h("h3", { text: "Calls of models" })),
      h("dl", { class: "facts inner" }, usageFacts(usage)), this.calls.element);
  }

  promptsPart() {
    if (!this.step.captured) return null;
    this.prompts ??= new Prompts(this.run.id, this.position);
    return section("Prompts", h("span", { class: "muted", text: "captured, without secrets" }), this.prompts.element);
  }

  resultPart() {
    const { step } = this;
    if (step.result === null || step.result === undefined) return null;
    const path = api.resultPath(this.run.id, step.position);
    const tools = h("span", { class: "row" }, h("span", { class: "muted num", text: bytes(step.result_size) }),
      copyButton(() => (step.result_cut ? api.result(this.run.id, step.position) : step.result), "Copy the result"),
      h("a", { class: "ghost square small", href: path, download: "", "aria-label": "Download the result", title: "Download" }, icon("download")));
    this.resultView ??= h("div", {}, step.result_cut ? this.cutResult() : jsonView(step.result));
    return section("Result", tools, this.resultView);
  }

  cutResult() {
    const { step } = this;
    const load = h("button", { class: "button small", text: `Show all ${bytes(step.result_size)}` });
    load.addEventListener("click", async () => {
      load.disabled = true;
      try {
        this.resultView.replaceChildren(jsonView(await api.result(this.run.id, step.position)));
      } catch (error) {
        load.disabled = false;
        shell.fail(error);
      }
    });
    return h("div", {},
      h("p", { class: "row wrap" }, h("span", { class: "muted", text: `The first ${count(step.result.length)} characters.` }), step.result_size <= LOAD_RESULT ? load : h("span", { class: "muted", text: "Too large for the page: download it." })),
      h("pre", { class: "raw", tabindex: 0, dir: "auto", text: step.result }));
  }

  argumentsPart() {
    const { step } = this;
    const filled = Object.entries(step.references ?? {});
    if (!step.arguments && !filled.length) return null;
    this.argumentsView ??= h("div", { class: "stack" },
      step.arguments ? jsonView(step.arguments) : null,
      filled.length ? h("dl", { class: "filled" }, filled.map(([key, source]) => h("div", {}, h("dt", { dir: "auto", text: key }), h("dd", { dir: "auto", text: `← ${source}` })))) : null);
    const cut = step.arguments_size > (step.arguments ?? "").length;
    return section("Arguments", h("span", { class: "row" }, cut ? h("span", { class: "muted", text: `cut, ${bytes(step.arguments_size)} in all` }) : null, copyButton(() => step.arguments ?? "", "Copy the arguments")), this.argumentsView);
  }

  links(title, steps, all = steps.length) {
    if (!steps.length) return null;
    return section(title, h("span", { class: "muted num", text: all > steps.length ? `the first ${count(steps.length)} of ${count(all)}` : count(all) }),
      h("ul", { class: "links" }, steps.map((step) => h("li", {},
        link(router.with({ step: step.position }), { class: `step-link ${stateClass(step.state)}` }, icon(step.state), name(step.name, { class: "cut" }), h("span", { class: "muted", text: capital(step.state) }))))));
  }
}

const round = (value) => Math.round(value * 10) / 10;

function lastLine(text) {
  return (text ?? "").trimEnd().split("\n").at(-1) ?? "";
}

/** What a step streams: text flows on, other values are a line each. The newest part is kept. */
class StreamBox {
  constructor(run, position) {
    this.run = run;
    this.position = position;
    this.attempt = null;
    this.next = 0;
    this.known = 0;
    this.busy = false;
    this.abort = new AbortController();
    this.count = h("span", { class: "muted num" });
    this.text = h("div", { class: "stream", tabindex: 0, role: "log", "aria-label": "Stream", dir: "auto" });
    this.more = h("p", { class: "muted", hidden: true, text: "Earlier chunks are not shown." });
    this.element = h("div", {}, this.more, this.text);
  }

  stop() {
    this.abort.abort();
  }

  grow(attempt, chunks) {
    if (attempt !== this.attempt) {
      this.attempt = attempt;
      this.next = 0;
      this.text.replaceChildren();
      this.more.hidden = true;
    }
    this.known = chunks;
    setText(this.count, plural(chunks, "chunk"));
    this.read();
  }

  async read() {
    if (this.busy) return;
    this.busy = true;
    try {
      // `attempt` may become another one while this waits; then what came is of the past.
      while (this.next < this.known && !this.abort.signal.aborted) {
        const attempt = this.attempt;
        const found = await api.stream(this.run, this.position, { after: this.next, attempt }, this.abort.signal);
        if (attempt !== this.attempt) continue;
        if (!found.chunks.length) break;
        this.append(found.chunks.map((chunk) => chunk.value));
        this.next = found.next;
      }
    } catch (error) {
      if (error.name !== "AbortError") shell.fail(error);
    } finally {
      this.busy = false;
    }
  }

  append(values) {
    const atEnd = this.text.scrollHeight - this.text.scrollTop - this.text.clientHeight < 24;
    for (const value of values) {
      this.text.append(typeof value === "string" ? document.createTextNode(value) : h("div", { class: "stream-row", text: JSON.stringify(value) }));
    }
    while (this.text.childNodes.length > STREAM_ROWS) {
      this.text.firstChild.remove();
      this.more.hidden = false;
    }
    if (atEnd) this.text.scrollTop = this.text.scrollHeight;
  }
}

/** A folded group: its counts, and its steps, the failed ones first. */
class GroupPanel {
  constructor(run, box) {
    this.run = run;
    this.box = box;
    this.state = "";
    this.next = null;
    this.steps = [];
    this.abort = new AbortController();
    this.reload = throttle(1500, () => this.load());
    this.bar = new Bar(box.label);
    this.chips = h("div", { class: "chips" });
    this.list = h("ul", { class: "links" });
    this.foot = h("div", {});
    this.element = h("div", {},
      panelHead(name(box.label, { class: "step-name" }), h("div", { class: "row wrap" }, h("span", { class: "muted", text: `${plural(box.total, "step")} that are alike` })), () => run.select(null)),
      h("div", { class: "panel-progress" }, this.bar.element),
      h("div", { class: "row wrap actions" }, h("button", { class: "button small primary", on: { click: () => run.unfold(box.id) } }, icon("graph"), "Unfold in the graph")),
      this.facts = h("dl", { class: "facts" }),
      section("Steps", null, this.chips, this.list, this.foot));
  }

  stop() {
    this.abort.abort();
    this.reload.stop();
  }

  tick() {}

  change(_steps, boxes) {
    if (!boxes.has(this.box.id)) return;
    this.drawCounts();
    this.reload();
  }

  drawCounts() {
    const counts = toMap(this.run.boxes.get(this.box.id)?.counts);
    if (!this.picked && counts.get("discarded")) this.state = "discarded";
    this.bar.update(counts, this.box.total, `${this.box.label}: ${count(this.box.total)} steps`);
    const usage = this.run.boxes.get(this.box.id)?.usage;
    this.facts.replaceChildren(fact("Function", h("code", { dir: "auto", text: this.box.function ?? "–" })), ...(usage ? usageFacts(usage) : []));
    this.chips.replaceChildren(...["", ...STEP_STATES].filter((state) => !state || counts.get(state)).map((state) =>
      h("button", { class: `chip pick ${state ? stateClass(state) : ""}`, "aria-pressed": String(state === this.state), on: { click: () => this.pick(state) } },
        state ? icon(state) : null, h("span", { text: state ? capital(state) : "All" }), h("b", { class: "num", text: count(state ? counts.get(state) : this.box.total) }))));
  }

  pick(state) {
    this.picked = true;
    this.state = state;
    this.drawCounts();
    this.load();
  }

  async load(cursor = null) {
    if (!this.chips.children.length) this.drawCounts();
    const { state } = this;
    const limit = cursor ? GROUP_PAGE : Math.min(200, Math.max(GROUP_PAGE, this.steps.length));
    try {
      const found = await api.steps(this.run.id, { box: this.box.id, expand: this.run.expand.join(","), state, cursor, limit }, this.abort.signal);
      if (state !== this.state) return;
      this.steps = cursor ? [...this.steps, ...found.steps] : found.steps;
      this.next = found.next;
      this.draw();
    } catch (error) {
      shell.fail(error);
    }
  }

  draw() {
    this.list.replaceChildren(...this.steps.map((step) => h("li", {},
      link(router.with({ step: step.position }), { class: `step-link ${stateClass(step.state)}` }, icon(step.state), name(step.name, { class: "cut" }),
        h("span", { class: "muted num", text: step.started_at ? stepTime(step) : "" })))));
    this.foot.replaceChildren(this.next ? h("button", { class: "button small", text: "Load more", on: { click: () => this.load(this.next) } }) : "");
  }
}
