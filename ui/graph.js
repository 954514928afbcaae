// The graph. The server lays it out; this draws what the window shows of it, and no more: with many boxes in view a
// state is one path, nearer they become elements. A change of state touches the boxes that changed, once per frame.

const NEAR = 800; // boxes in view that are elements
const READABLE = 0.4; // below this zoom text is dropped
const START = 0.9;
const ZOOM = [0.05, 2.5];
const EDGE_FADE = 260;
// Edges are few paths that span the graph: to change one paints all of them anew, so many of them change a little later.
const SOON_EDGES = 40;

class Graph {
  /** `hooks`: pick(box), unfold(id), moved(). */
  constructor(hooks) {
    this.hooks = hooks;
    this.records = new Map();
    this.view = { x: 0, y: 0, k: 1 };
    this.size = { width: 0, height: 0 };
    this.seen = null;
    this.dirty = new Set();
    this.wants = { view: false, look: false, edges: false };
    this.running = new Set();
    this.follow = false;
    this.selected = null;
    this.hovered = null;
    this.pointers = new Map();
    this.frameAsked = 0;
    this.build();
    this.observer = new ResizeObserver(([entry]) => this.resize(entry.contentRect));
    this.observer.observe(this.element);
    this.untick = ticker.add(() => this.tick());
    this.slowEdges = throttle(300, () => this.want("edges"));
  }

  close() {
    this.observer.disconnect();
    this.untick();
    this.slowEdges.stop();
    this.map.close();
    cancelAnimationFrame(this.frameAsked);
    cancelAnimationFrame(this.flight);
  }

  build() {
    this.edgesIdle = s("path", { class: "edge" });
    this.edgesDone = s("path", { class: "edge done" });
    this.edgesActive = s("path", { class: "edge active" });
    this.edgesLit = s("path", { class: "edge lit" });
    this.edgesNear = s("path", { class: "edge lit near" });
    this.edgeLayer = s("g", { class: "edges" }, this.edgesIdle, this.edgesDone, this.edgesActive, this.edgesLit, this.edgesNear);
    this.farLayer = s("g", { class: "far-boxes" });
    this.boxLayer = s("g", {});
    this.world = s("g", {}, this.edgeLayer, this.farLayer, this.boxLayer);
    this.svg = s("svg", { class: "graph", role: "group", "aria-label": "Steps and what they depend on. Arrow keys move between steps.", tabindex: 0 }, this.world);
    this.zoomText = h("output", { class: "zoom num" });
    this.followButton = this.tool("follow", "Follow what runs (w)", () => this.setFollow(!this.follow));
    this.tools = h("div", { class: "graph-tools", role: "toolbar", "aria-label": "Graph" },
      this.tool("minus", "Zoom out (-)", () => this.zoomBy(1 / 1.3)), this.zoomText, this.tool("plus", "Zoom in (+)", () => this.zoomBy(1.3)),
      this.tool("fit", "Fit everything (f)", () => this.fit()), this.followButton);
    this.map = new MiniMap(this);
    this.element = h("div", { class: "graph-box" }, this.svg, this.map.element, this.tools);
    this.listen();
  }

  tool(which, label, act) {
    return h("button", { class: "ghost square", "aria-label": label, title: label, on: { click: act } }, icon(which));
  }

  // What it shows

  setLayout(layout, states, { from = null, keep = null } = {}) {
    const before = new Map([...this.records].map(([id, { x, y }]) => [id, { x, y }]));
    const kept = keep ? this.records.get(keep) : null;
    const old = this.records;
    this.layout = layout;
    this.records = new Map();
    this.running.clear();
    for (const box of layout.boxes) {
      const state = states.get(box.id) ?? null;
      const record = { box, id: box.id, x: box.x, y: box.y, state, kind: "", parts: null, out: [], into: [], shown: new Map() };
      record.kind = this.kindOf(record);
      if (record.kind === "executing") this.running.add(box.id);
      this.records.set(box.id, record);
    }
    for (const { parts } of old.values()) parts?.g.remove();
    this.edges = [];
    for (const edge of layout.edges) {
      const [source, target] = [this.records.get(edge.source), this.records.get(edge.target)];
      if (!source || !target) continue;
      const record = { source, target, d: curve(edge.points), area: areaOf(edge.points) };
      source.out.push(record);
      target.into.push(record);
      this.edges.push(record);
    }
    if (!this.records.has(this.selected)) this.selected = null;
    this.seen = null;
    this.crowded = layout.boxes.length > NEAR;
    if (from) this.anchor(from, before);
    else if (kept && this.records.has(keep)) this.shift(kept, this.records.get(keep));
    this.map.place();
    this.want("view", "look", "edges");
    if ((from || kept) && before.size && !calm.matches) this.fly(before, from);
  }

  kindOf({ box, state }) {
    if (!state) return "held";
    return box.group ? groupState(toMap(state.counts)) : state.state;
  }

  /** New states by box id: only these boxes are touched. */
  change(states) {
    for (const [id, state] of states) {
      const record = this.records.get(id);
      if (!record) continue;
      record.state = state;
      const kind = this.kindOf(record);
      if (kind !== record.kind) {
        record.kind = kind;
        if (kind === "executing") this.running.add(id);
        else this.running.delete(id);
        if (this.edges.length > SOON_EDGES) this.slowEdges();
        else this.wants.edges = true;
      }
      this.dirty.add(record);
    }
    this.map.soon();
    if (this.follow) this.wants.follow = true;
    this.want();
  }

  /** Show which step is open: its box, all it waited for and all that waits for it. */
  select(id) {
    if (this.selected === id) return;
    const [before, now] = [this.records.get(this.selected), this.records.get(id)];
    before?.parts?.g.classList.remove("selected");
    this.selected = now ? id : null;
    if (now) this.setFollow(false);
    this.svg.classList.toggle("picked", Boolean(now));
    if (now) {
      now.parts?.g.classList.add("selected");
      now.parts?.g.parentNode.append(now.parts.g);
      // The panel that opens takes some of the window; what is left is known when the page has been laid out again.
      requestAnimationFrame(() => requestAnimationFrame(() => this.selected === id && this.size.width && this.reveal(id)));
    }
    this.drawLit();
  }

  /** Move until a box can be seen well. */
  reveal(id, { zoom = false } = {}) {
    const record = this.records.get(id);
    if (!record) return;
    const { box } = record;
    const k = zoom ? Math.max(this.view.k, START) : this.view.k;
    const area = this.area(-16);
    const inside = box.x >= area.x && box.y >= area.y && box.x + box.width <= area.x + area.width && box.y + box.height <= area.y + area.height;
    if (inside && k === this.view.k) return;
    this.travel(this.centred(box.x + box.width / 2, box.y + box.height / 2, k));
  }

  // Drawing, once per frame

  want(...kinds) {
    for (const kind of kinds) this.wants[kind] = true;
    this.frameAsked ||= requestAnimationFrame(() => this.frame());
  }

  frame() {
    this.frameAsked = 0;
    const { wants } = this;
    this.wants = {};
    if (!this.layout || !this.size.width) return;
    if (wants.follow && this.follow) this.chase();
    if (wants.view) {
      const { x, y, k } = this.view;
      setAttr(this.world, "transform", `translate(${x.toFixed(2)} ${y.toFixed(2)}) scale(${k.toFixed(4)})`);
      this.svg.classList.toggle("far", k < READABLE);
      setText(this.zoomText, `${Math.round(k * 100)}%`);
      this.map.drawView();
      if (!this.covers()) wants.look = true;
    }
    if (wants.look) this.look();
    for (const record of this.dirty) if (record.parts) this.paint(record);
    if (this.dirty.size && this.far) this.drawFar();
    this.dirty.clear();
    if (wants.edges || wants.look) this.drawEdges();
    this.svg.classList.toggle("still", this.running.size > 60);
  }

  /** The part of the graph in the window, `margin` pixels beyond it. */
  area(margin = 0) {
    const { x, y, k } = this.view;
    return { x: (-x - margin) / k, y: (-y - margin) / k, width: (this.size.width + 2 * margin) / k, height: (this.size.height + 2 * margin) / k };
  }

  covers() {
    const [a, b] = [this.seen, this.area()];
    return a && b.x >= a.x && b.y >= a.y && b.x + b.width <= a.x + a.width && b.y + b.height <= a.y + a.height && a.k / this.view.k < 1.6 && this.view.k / a.k < 1.6;
  }

  look() {
    this.seen = { ...this.area(400), k: this.view.k };
    const visible = [...this.records.values()].filter(({ box }) => meets(box, this.seen));
    this.far = visible.length > NEAR;
    const show = new Set(this.far ? [] : visible);
    for (const record of this.records.values()) {
      if (!record.parts || show.has(record) || record.parts.g === document.activeElement) continue;
      record.parts.g.remove();
      record.parts = null;
    }
    const fresh = [];
    for (const record of show) {
      if (record.parts) continue;
      this.draw(record);
      fresh.push(record.parts.g);
    }
    this.boxLayer.append(...fresh);
    this.farVisible = visible;
    if (this.far) this.drawFar();
    else this.farLayer.replaceChildren();
  }

  drawFar() {
    const paths = new Map();
    for (const { box, kind } of this.farVisible) {
      paths.set(kind, `${paths.get(kind) ?? ""}M${box.x} ${box.y}h${box.width}v${box.height}h${-box.width}z`);
    }
    this.farLayer.replaceChildren(...[...paths].map(([kind, d]) => s("path", { class: `far-box ${stateClass(kind)}`, d })));
  }

  drawEdges() {
    const ds = { idle: "", done: "", active: "" };
    for (const { source, target, d, area } of this.edges) {
      if (!meets(area, this.seen)) continue;
      ds[target.kind === "executing" ? "active" : SETTLED.has(source.kind) && SETTLED.has(target.kind) ? "done" : "idle"] += d;
    }
    setAttr(this.edgesIdle, "d", ds.idle);
    setAttr(this.edgesDone, "d", ds.done);
    setAttr(this.edgesActive, "d", ds.active);
    this.drawLit();
  }

  drawLit() {
    const from = this.records.get(this.hovered) ?? this.records.get(this.selected);
    let [near, far] = ["", ""];
    for (const [way, end] of from ? [["out", "target"], ["into", "source"]] : []) {
      const seen = new Set([from]);
      for (const record of seen) {
        for (const edge of record[way]) {
          seen.add(edge[end]);
          if (this.seen && !meets(edge.area, this.seen)) continue;
          if (record === from) near += edge.d;
          else far += edge.d;
        }
      }
    }
    setAttr(this.edgesLit, "d", far);
    setAttr(this.edgesNear, "d", near);
  }

  draw(record) {
    const { box } = record;
    const g = s("g", { class: "box", role: "button", tabindex: -1, "data-box": record.id, transform: `translate(${record.x} ${record.y})` });
    const parts = { g, label: s("text", { class: "label", x: 38, y: box.group ? 25 : 22 }), sub: s("text", { class: "sub", x: 38, y: box.group ? 42 : 39 }), title: s("title", {}) };
    parts.icon = s("g", { class: "box-icon", transform: `translate(13 ${box.group ? 14 : 18})` });
    const frame = (inset) => ({ x: inset, y: inset, width: box.width, height: box.height, rx: 9 });
    if (box.group) g.append(s("rect", { class: "behind", ...frame(8) }), s("rect", { class: "behind", ...frame(4) }));
    g.append(parts.title, s("rect", { class: "frame", ...frame(0) }), parts.icon, parts.label, parts.sub);
    if (box.group) this.drawGroup(record, parts);
    else {
      parts.track = s("rect", { class: "track", x: 38, y: 45, width: box.width - 52, height: 3, rx: 1.5 });
      parts.fill = s("rect", { class: "fill", x: 38, y: 45, width: 0, height: 3, rx: 1.5 });
    }
    record.parts = parts;
    record.shown = new Map();
    this.paint(record);
    if (record.id === this.selected) g.classList.add("selected");
  }

  drawGroup(record, parts) {
    const { box } = record;
    parts.total = s("text", { class: "total", x: box.width - 40, y: 25, "text-anchor": "end" });
    parts.bar = s("g", { class: "segments" });
    parts.unfold = s("g", { class: "unfold", "data-unfold": record.id, transform: `translate(${box.width - 34} 6)` },
      s("rect", { width: 28, height: 28, rx: 6 }), s("path", { class: "i-line", d: "M10 11l4 4 4-4M10 16l4 4 4-4" }), s("title", { text: "Unfold" }));
    parts.g.append(parts.total, s("rect", { class: "track", x: 14, y: 50, width: box.width - 28, height: 5, rx: 2.5 }), parts.bar, parts.unfold);
  }

  paint(record) {
    const { box, kind, parts, shown } = record;
    const put = (key, value, write) => {
      if (shown.get(key) === value) return;
      shown.set(key, value);
      write(value);
    };
    put("kind", kind, () => {
      setAttr(parts.g, "class", `box ${box.group ? "group " : ""}${stateClass(kind)}${record.id === this.selected ? " selected" : ""}`);
      parts.icon.replaceChildren(...iconParts(kind));
    });
    const room = box.width - 38 - (box.group ? 44 : 12);
    if (box.group) this.paintGroup(record, put, room);
    else {
      put("label", box.label, (text) => { parts.label.textContent = fitText(text, room, LABEL_FONT); });
      const sub = record.state ? stepWords(record.state) : "";
      put("sub", sub, (text) => { parts.sub.textContent = fitText(text, room, SUB_FONT); });
      put("progress", progressShare(record.state), (share) => this.paintProgress(record, share));
      put("title", `${box.label}\n${capital(kind)}${sub ? `: ${sub}` : ""}`, (text) => this.name(parts, text));
    }
  }

  paintGroup(record, put, room) {
    const { box, parts } = record;
    const counts = toMap(record.state?.counts);
    const done = [...SETTLED].reduce((sum, state) => sum + (counts.get(state) ?? 0), 0);
    const total = `${count(done)} / ${count(box.total)}`;
    put("total", total, (text) => { parts.total.textContent = text; });
    put("label", box.label, (text) => { parts.label.textContent = fitText(text, room - measure(total, SUB_FONT) - 8, LABEL_FONT); });
    const words = ["executing", "discarded", "retryable", "cancelled", "available", "scheduled", "held"].filter((state) => counts.get(state)).slice(0, 2).map((state) => `${count(counts.get(state))} ${state}`);
    const sub = [words.join(" · ") || "all completed", costWords(record.state?.usage)].filter(Boolean).join(" · ");
    put("sub", sub, (text) => { parts.sub.textContent = fitText(text, box.width - 52, SUB_FONT); });
    put("failed", Boolean(counts.get("discarded")), (yes) => parts.g.classList.toggle("has-failed", yes));
    put("bar", [...counts].flat().join(), () => this.paintSegments(parts.bar, counts, box));
    put("title", `${box.label}\n${count(box.total)} steps: ${sub}`, (text) => this.name(parts, text));
    // A class set by `kind` forgets the other.
    parts.g.classList.toggle("has-failed", Boolean(counts.get("discarded")));
  }

  paintSegments(bar, counts, box) {
    const width = box.width - 28;
    let x = 14;
    bar.replaceChildren(...["completed", "skipped", "executing", "retryable", "discarded", "cancelled"].filter((state) => counts.get(state)).map((state) => {
      // One failed step of two thousand is still to be seen.
      const wide = Math.max(2, (width * counts.get(state)) / box.total);
      const rect = s("rect", { class: stateClass(state), x, y: 50, width: Math.min(wide, 14 + width - x), height: 5, rx: 1 });
      x = Math.min(x + wide, 12 + width);
      return rect;
    }));
  }

  paintProgress({ box, parts }, share) {
    if (share === null) {
      parts.track.remove();
      parts.fill.remove();
      return;
    }
    if (!parts.track.parentNode) parts.g.append(parts.track, parts.fill);
    setAttr(parts.fill, "width", Math.max(2, (box.width - 52) * share));
  }

  name(parts, text) {
    parts.title.textContent = text;
    setAttr(parts.g, "aria-label", text);
  }

  tick() {
    for (const id of this.running) {
      const record = this.records.get(id);
      if (record?.parts && !record.box.group) this.dirty.add(record);
    }
    for (const record of this.records.values()) {
      if (record.parts && (record.kind === "scheduled" || record.kind === "retryable" || record.kind === "available") && !record.box.group) this.dirty.add(record);
    }
    if (this.dirty.size) this.want();
  }

  // Moving about

  resize({ width, height }) {
    const first = !this.size.width;
    this.size = { width, height };
    if (!width || !this.layout) return;
    if (first) this.start();
    this.seen = null;
    this.map.place();
    this.want("view");
  }

  /** Begin where it matters, at a size that can be read. */
  start() {
    const fit = this.fitted();
    if (fit.k >= 0.72) this.view = fit;
    else {
      const at = this.focus();
      const view = this.centred(at.x + at.width / 2, at.y + at.height / 2, START);
      const { width, height } = this.layout;
      // Never past an end of the graph while there is graph at the other one.
      view.x = between(this.size.width - 32 - width * START, view.x, 32, (this.size.width - width * START) / 2);
      view.y = between(this.size.height - 32 - height * START, view.y, 32, (this.size.height - height * START) / 2);
      this.view = view;
    }
    this.map.place();
    this.want("view", "look", "edges");
  }

  /** The box to look at first: what is open, what runs, what failed, what is next, the beginning. */
  focus() {
    if (this.records.has(this.selected)) return this.records.get(this.selected).box;
    const boxes = [...this.records.values()];
    for (const kinds of [["executing"], ["discarded"], ["retryable", "available"], ["cancelled"]]) {
      const found = boxes.filter(({ kind, state, box }) => kinds.includes(kind) || (box.group && kinds.includes("discarded") && toMap(state?.counts).get("discarded")));
      if (found.length) return found.sort((a, b) => a.x - b.x || a.y - b.y)[Math.floor((found.length - 1) / 2)].box;
    }
    return boxes.sort((a, b) => a.x - b.x || a.y - b.y)[0]?.box ?? { x: 0, y: 0, width: 0, height: 0 };
  }

  fitted() {
    const { width, height } = this.layout;
    const k = Math.min(1.1, Math.max(0.0005, Math.min((this.size.width - 64) / width, (this.size.height - 96) / height)));
    return this.centred(width / 2, height / 2, k);
  }

  centred(x, y, k) {
    return { x: this.size.width / 2 - x * k, y: this.size.height / 2 - y * k, k };
  }

  fit() {
    this.setFollow(false);
    this.travel(this.fitted());
  }

  zoomBy(factor, at = { x: this.size.width / 2, y: this.size.height / 2 }) {
    cancelAnimationFrame(this.flight);
    const k = Math.min(ZOOM[1], Math.max(Math.min(ZOOM[0], this.fitted().k), this.view.k * factor));
    const ratio = k / this.view.k;
    this.view = { x: at.x - (at.x - this.view.x) * ratio, y: at.y - (at.y - this.view.y) * ratio, k };
    this.want("view");
  }

  pan(dx, dy) {
    cancelAnimationFrame(this.flight);
    this.view = { ...this.view, x: this.view.x + dx, y: this.view.y + dy };
    this.setFollow(false);
    this.want("view");
  }

  setFollow(yes) {
    this.follow = yes;
    setAttr(this.followButton, "aria-pressed", String(yes));
    if (yes) this.want("follow");
  }

  /** Keep something that runs in the window. */
  chase() {
    const running = [...this.running].map((id) => this.records.get(id).box);
    if (!running.length) return;
    const area = this.area(-60);
    if (running.some((box) => meets(box, area) && box.x + box.width < area.x + area.width)) return;
    const box = running.sort((a, b) => a.x - b.x || a.y - b.y)[Math.floor(running.length / 2)];
    this.travel(this.centred(box.x + box.width / 2, box.y + box.height / 2, Math.max(this.view.k, START * 0.8)));
  }

  travel(to) {
    cancelAnimationFrame(this.flight);
    if (calm.matches || !this.size.width) {
      this.view = to;
      this.want("view");
      return;
    }
    const from = this.view;
    const begun = performance.now();
    const move = (now) => {
      const t = Math.min(1, Math.max(0, (now - begun) / EDGE_FADE));
      const e = 1 - (1 - t) ** 3;
      this.view = { x: from.x + (to.x - from.x) * e, y: from.y + (to.y - from.y) * e, k: from.k * (to.k / from.k) ** e };
      this.want("view");
      if (t < 1) this.flight = requestAnimationFrame(move);
    };
    this.flight = requestAnimationFrame(move);
  }

  /** What came out of a group begins where the group was. */
  anchor(id, before) {
    const at = before.get(id);
    const fresh = [...this.records.values()].filter((record) => !before.has(record.id)).sort((a, b) => a.y - b.y || a.x - b.x)[0];
    if (at && fresh) this.shift(at, fresh);
  }

  shift(from, to) {
    const { x, y, k } = this.view;
    this.view = { x: x + (from.x - to.x) * k, y: y + (from.y - to.y) * k, k };
  }

  /** Boxes glide from where they were; edges come back when they have arrived. */
  fly(before, from) {
    this.look();
    const moving = [...this.records.values()].filter((record) => record.parts);
    if (moving.length > 300) return;
    const begun = performance.now();
    const home = before.get(from);
    this.edgeLayer.classList.add("gone");
    const move = (now) => {
      const t = Math.min(1, Math.max(0, (now - begun) / EDGE_FADE));
      const e = 1 - (1 - t) ** 3;
      for (const { id, x, y, parts } of moving) {
        const start = before.get(id) ?? home;
        if (!start || !parts) continue;
        setAttr(parts.g, "transform", `translate(${start.x + (x - start.x) * e} ${start.y + (y - start.y) * e})`);
      }
      if (t < 1) requestAnimationFrame(move);
      else this.edgeLayer.classList.remove("gone");
    };
    move(begun);
  }

  // Hands

  listen() {
    const { svg } = this;
    svg.addEventListener("wheel", (event) => {
      event.preventDefault();
      const unit = event.deltaMode ? 20 : 1;
      if (event.shiftKey) this.pan(-(event.deltaX || event.deltaY) * unit, 0);
      else this.zoomBy(Math.exp(-Math.max(-60, Math.min(60, event.deltaY * unit)) * (event.ctrlKey ? 0.012 : 0.004)), this.point(event));
    }, { passive: false });
    svg.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      this.pointers.set(event.pointerId, this.point(event));
      this.dragged = this.pointers.size > 1;
    });
    svg.addEventListener("pointermove", (event) => this.drag(event));
    for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
      svg.addEventListener(end, (event) => this.pointers.delete(event.pointerId));
    }
    svg.addEventListener("click", (event) => this.click(event));
    svg.addEventListener("dblclick", (event) => {
      const record = this.hit(event);
      if (record?.box.group) this.hooks.unfold(record.id);
    });
    svg.addEventListener("pointerover", (event) => this.hover(event.target.closest?.("[data-box]")?.dataset.box ?? null));
    svg.addEventListener("pointerleave", () => this.hover(null));
    svg.addEventListener("keydown", (event) => this.key(event));
  }

  point(event) {
    const box = this.svg.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  }

  drag(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before) return;
    const now = this.point(event);
    if (this.pointers.size === 1) {
      if (!this.dragged && Math.hypot(now.x - before.x, now.y - before.y) < 4) return;
      if (!this.dragged) this.svg.setPointerCapture(event.pointerId);
      this.dragged = true;
      this.pan(now.x - before.x, now.y - before.y);
    } else {
      const other = [...this.pointers].find(([id]) => id !== event.pointerId)[1];
      const ratio = Math.hypot(now.x - other.x, now.y - other.y) / Math.max(1, Math.hypot(before.x - other.x, before.y - other.y));
      this.zoomBy(ratio, { x: (now.x + other.x) / 2, y: (now.y + other.y) / 2 });
      this.pan((now.x - before.x) / 2, (now.y - before.y) / 2);
    }
    this.pointers.set(event.pointerId, now);
  }

  hit(event) {
    const id = event.target.closest?.("[data-box]")?.dataset.box;
    if (id !== undefined) return this.records.get(id);
    if (!this.far) return null;
    const { x, y } = this.point(event);
    const at = { x: (x - this.view.x) / this.view.k, y: (y - this.view.y) / this.view.k, width: 0, height: 0 };
    return this.farVisible.find(({ box }) => meets(box, at)) ?? null;
  }

  click(event) {
    if (this.dragged) {
      this.dragged = false;
      return;
    }
    const record = this.hit(event);
    if (event.target.closest?.("[data-unfold]")) this.hooks.unfold(record.id);
    else if (record) {
      if (this.far) this.reveal(record.id, { zoom: true });
      this.hooks.pick(record.box);
    } else this.hooks.pick(null);
  }

  hover(id) {
    if (id === this.hovered) return;
    this.hovered = id;
    this.drawLit();
  }

  key(event) {
    const at = this.records.get(event.target.closest?.("[data-box]")?.dataset.box);
    if (event.key === "Enter" || event.key === " ") {
      if (!at) return;
      event.preventDefault();
      if (event.key === "Enter" && event.shiftKey && at.box.group) this.hooks.unfold(at.id);
      else this.hooks.pick(at.box);
      return;
    }
    if (event.key === "e" && at?.box.group) {
      this.hooks.unfold(at.id);
      event.stopPropagation();
      return;
    }
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!way || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    event.stopPropagation();
    this.focusBox(at ? this.neighbour(at, way) : this.records.get(this.selected) ?? this.records.get(this.nearestId()));
  }

  nearestId() {
    const area = this.area();
    const [x, y] = [area.x + area.width / 2, area.y + area.height / 2];
    let best = null;
    let least = Infinity;
    for (const { id, box } of this.records.values()) {
      const far = Math.hypot(box.x + box.width / 2 - x, box.y + box.height / 2 - y);
      if (far < least) [best, least] = [id, far];
    }
    return best;
  }

  /** The next box in a direction, the straight way before the short one. */
  neighbour(from, [dx, dy]) {
    let best = null;
    let least = Infinity;
    for (const record of this.records.values()) {
      const [x, y] = [record.x - from.x, record.y - from.y];
      const along = x * dx + y * dy;
      if (along < 20) continue;
      const aside = Math.abs(x * dy) + Math.abs(y * dx);
      const cost = along + aside * (dx ? 1.2 : 4);
      if (cost < least) [best, least] = [record, cost];
    }
    return best;
  }

  focusBox(record) {
    if (!record) return;
    if (!record.parts) {
      this.draw(record);
      this.boxLayer.append(record.parts.g);
    }
    record.parts.g.focus({ preventScroll: true });
    this.setFollow(false);
    this.reveal(record.id);
  }

  keys(event) {
    if (event.key.startsWith("Arrow")) this.focusBox(this.records.get(this.selected) ?? this.records.get(this.nearestId()));
    else if (event.key === "f") this.fit();
    else if (event.key === "+" || event.key === "=") this.zoomBy(1.3);
    else if (event.key === "-") this.zoomBy(1 / 1.3);
    else if (event.key === "w") this.setFollow(!this.follow);
    else return false;
    return true;
  }
}

/** The whole graph in a corner, when the window shows a part of it. */
class MiniMap {
  constructor(graph) {
    this.graph = graph;
    this.canvas = h("canvas", {});
    this.frame = h("i", {});
    this.element = h("div", { class: "minimap", "aria-hidden": "true", hidden: true }, this.canvas, this.frame);
    this.soon = throttle(400, () => this.draw());
    this.onTheme = () => this.draw();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", this.onTheme);
    const go = (event) => {
      if (!event.buttons) return;
      const box = this.canvas.getBoundingClientRect();
      const [x, y] = [(event.clientX - box.left) / this.kx, (event.clientY - box.top) / this.ky];
      graph.setFollow(false);
      graph.view = graph.centred(x, y, graph.view.k);
      graph.want("view");
    };
    this.element.addEventListener("pointerdown", (event) => { this.element.setPointerCapture(event.pointerId); go(event); });
    this.element.addEventListener("pointermove", go);
  }

  close() {
    this.soon.stop();
    matchMedia("(prefers-color-scheme: dark)").removeEventListener("change", this.onTheme);
  }

  place() {
    const { layout, size } = this.graph;
    if (!layout) return;
    const k = Math.min(176 / layout.width, 112 / layout.height);
    this.width = Math.max(28, layout.width * k);
    this.height = Math.max(20, layout.height * k);
    this.kx = this.width / layout.width;
    this.ky = this.height / layout.height;
    const scale = devicePixelRatio || 1;
    this.canvas.width = this.width * scale;
    this.canvas.height = this.height * scale;
    this.canvas.style.width = `${this.width}px`;
    this.canvas.style.height = `${this.height}px`;
    this.small = size.width < 560;
    this.draw();
    this.drawView();
  }

  draw() {
    const { layout, records } = this.graph;
    if (!layout || this.element.hidden) return;
    const colors = this.colors();
    const pen = this.canvas.getContext("2d");
    const scale = devicePixelRatio || 1;
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.clearRect(0, 0, this.width, this.height);
    for (const { box, kind } of records.values()) {
      pen.fillStyle = colors.get(kind) ?? colors.get("held");
      pen.fillRect(box.x * this.kx, box.y * this.ky, Math.max(1.5, box.width * this.kx), Math.max(1, box.height * this.ky));
    }
  }

  /** Colours of the states as this theme has them; only what is in the page has them computed. */
  colors() {
    const samples = STEP_STATES.map((state) => h("b", { class: stateClass(state) }));
    this.element.append(...samples);
    const colors = new Map(samples.map((sample, index) => [STEP_STATES[index], getComputedStyle(sample).backgroundColor]));
    for (const sample of samples) sample.remove();
    return colors;
  }

  drawView() {
    const { graph } = this;
    const area = graph.area();
    const whole = area.x <= 0 && area.y <= 0 && area.x + area.width >= graph.layout.width && area.y + area.height >= graph.layout.height;
    const hide = whole || this.small || graph.records.size < 8;
    if (this.element.hidden !== hide) {
      this.element.hidden = hide;
      this.draw();
    }
    const left = Math.max(0, Math.min(this.width - 4, area.x * this.kx));
    const top = Math.max(0, Math.min(this.height - 4, area.y * this.ky));
    this.frame.style.transform = `translate(${left}px, ${top}px)`;
    this.frame.style.width = `${Math.max(4, Math.min(this.width, (area.x + area.width) * this.kx) - left)}px`;
    this.frame.style.height = `${Math.max(4, Math.min(this.height, (area.y + area.height) * this.ky) - top)}px`;
  }
}

function meets(a, b) {
  return a.x < b.x + b.width && a.x + a.width > b.x && a.y < b.y + b.height && a.y + a.height > b.y;
}

/** `value` between the ends where they leave room, else `centre`. */
function between(low, value, high, centre) {
  return low > high ? centre : Math.min(high, Math.max(low, value));
}

/** A line through the points, flat where it leaves and where it arrives. */
function curve(points) {
  let d = "";
  points.forEach(([x, y], index) => {
    if (!index) d = `M${x} ${y}`;
    else {
      const [px, py] = points[index - 1];
      const half = (px + x) / 2;
      d += py === y ? `L${x} ${y}` : `C${half} ${py} ${half} ${y} ${x} ${y}`;
    }
  });
  return d;
}

function areaOf(points) {
  const xs = points.map(([x]) => x);
  const ys = points.map(([, y]) => y);
  const [x, y] = [Math.min(...xs), Math.min(...ys)];
  return { x: x - 1, y: y - 1, width: Math.max(...xs) - x + 2, height: Math.max(...ys) - y + 2 };
}

function progressShare(step) {
  const progress = step?.progress;
  if (!progress?.total || SETTLED.has(step.state)) return null;
  return Math.min(1, Math.max(0, progress.done / progress.total));
}

/** The second line of a box: the one thing to know about the step now. */
function stepWords(step) {
  const attempt = step.attempt > 1 ? `attempt ${step.attempt}` : "";
  const join = (...words) => words.filter(Boolean).join(" · ");
  switch (step.state) {
    case "executing": {
      if (step.cancel_requested_at) return "cancelling";
      const share = progressShare(step);
      return join(ticking(clock.now() - time(step.started_at)), share === null ? step.progress && count(round(step.progress.done)) : `${Math.floor(share * 100)} %`, attempt, costWords(step.usage), step.progress?.message);
    }
    case "retryable": return join(`tries again ${ago(time(step.scheduled_at))}`, `attempt ${step.attempt} of ${step.max_attempts} failed`);
    case "scheduled": return step.snoozed ? `snoozed, runs ${ago(time(step.scheduled_at))}` : `runs ${ago(time(step.scheduled_at))}`;
    case "available": return join("waits for a worker", attempt);
    case "held": return step.waiting_on ? `waits for ${plural(step.waiting_on, "step")}` : "held";
    case "completed": return join(stepTime(step), costWords(step.usage), attempt);
    case "discarded": return join(step.attempt > 1 ? `failed ${step.attempt} times` : "failed", stepTime(step), costWords(step.usage));
    case "cancelled": return step.started_at ? join("cancelled", stepTime(step)) : "cancelled, never ran";
    default: return step.state;
  }
}

function stepTime(step) {
  if (!step.started_at) return "";
  const ended = time(step.settled_at);
  if (ended === null && step.state !== "executing") return "";
  return ended === null ? ticking(clock.now() - time(step.started_at)) : duration(ended - time(step.started_at));
}

const pen = document.createElement("canvas").getContext("2d");
const widths = new Map();
let FAMILY = "sans-serif";
const LABEL_FONT = { size: 13, weight: 550 };
const SUB_FONT = { size: 11.5, weight: 400 };

/** Width of a text as it will be drawn, measured without touching the layout of the page. */
function measure(text, { size, weight }) {
  const key = `${size} ${text}`;
  let width = widths.get(key);
  if (width === undefined) {
    if (widths.size > 20_000) widths.clear();
    pen.font = `${weight} ${size}px ${FAMILY}`;
    width = pen.measureText(text).width;
    widths.set(key, width);
  }
  return width;
}

/** The text, cut with an ellipsis where it has no room. Whole characters are cut, never halves. */
function fitText(text, room, font) {
  if (text.length < 8 || (text.length < 1000 && measure(text, font) <= room)) return text;
  const letters = [...text.slice(0, 200)];
  let [low, high] = [0, letters.length];
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (measure(`${letters.slice(0, middle).join("")}…`, font) <= room) low = middle;
    else high = middle - 1;
  }
  return `${letters.slice(0, low).join("")}…`;
}
