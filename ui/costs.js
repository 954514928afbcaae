// What calls of models used and cost: of a step, by model, of a run's budgets; and what was asked and answered, for who may see it.

const MODEL_CALLS = 50;
const MOST_MODEL_CALLS = 500;
const MOST_SAID = 200;
const KIND_WORDS = new Map([["usd", "dollars"], ["tokens", "tokens"], ["calls", "calls"]]);
const shortNumber = new Intl.NumberFormat("en-US", { notation: "compact", maximumSignificantDigits: 3 });
const money = new Intl.NumberFormat("en-US", { style: "currency", currency: "USD", minimumFractionDigits: 2, maximumFractionDigits: 4 });

/** A cost in few letters; a cost that is not known is never nothing. */
const costWords = (usage) => (usage ? (usage.cost_usd === null ? "cost unknown" : usage.cost.replace("at least ", "≥ ")) : "");

const exactCost = (cost) => (cost === null ? "Its cost is not known" : `$${cost}`);

const tokensOf = (usage) => (usage.input_tokens === null && usage.output_tokens === null ? null : (usage.input_tokens ?? 0) + (usage.output_tokens ?? 0));

/** `12.3K tokens`, nothing where none are known. */
const tokenWords = (usage) => (tokensOf(usage) === null ? "" : `${shortNumber.format(tokensOf(usage))} token${tokensOf(usage) === 1 ? "" : "s"}`);

const known = (value) => (value === null ? "–" : count(value));

/** `1,000, of which 400 cached`. */
function tokenLine(all, parts) {
  const words = parts.filter(([value]) => value).map(([value, word]) => `${count(value)} ${word}`);
  return all === null ? "not known" : words.length ? `${count(all)}, of which ${words.join(", ")}` : count(all);
}

function usageFacts(usage) {
  return [
    fact("Cost", h("span", { class: "num", title: exactCost(usage.cost_usd), text: usage.cost_usd === null ? "not known" : usage.cost }),
      usage.unpriced ? h("span", { class: "muted", text: ` ${plural(usage.unpriced, "call")} of no known cost` }) : null),
    fact("Calls", h("span", { class: "num", text: count(usage.calls) })),
    fact("Input tokens", h("span", { class: "num wraps", text: tokenLine(usage.input_tokens, [[usage.cache_read_tokens, "from a cache"], [usage.cache_write_tokens, "into a cache"]]) })),
    fact("Output tokens", h("span", { class: "num wraps", text: tokenLine(usage.output_tokens, [[usage.reasoning_tokens, "reasoning"]]) })),
  ];
}

/** The calls of one step, read when they are shown and as more come. */
class ModelCalls {
  constructor(run, position) {
    this.run = run;
    this.position = position;
    this.calls = new Map();
    this.known = 0;
    this.all = false;
    this.busy = false;
    this.abort = new AbortController();
    this.list = h("div", { class: "stack tight" });
    this.foot = h("div", {});
    this.element = h("div", { class: "stack" }, this.list, this.foot);
  }

  stop() {
    this.abort.abort();
  }

  grow(count) {
    if (this.known === count) return;
    this.known = count;
    this.read();
  }

  async read({ anew = false } = {}) {
    if (this.busy) return;
    this.busy = true;
    const wanted = () => Math.min(this.known, this.all ? MOST_MODEL_CALLS : MODEL_CALLS);
    try {
      if (anew) this.calls.clear();
      for (let more = true; more && this.calls.size < wanted();) {
        const cursor = [...this.calls.keys()].at(-1);
        const found = await api.calls(this.run, this.position, { cursor, limit: MODEL_CALLS }, this.abort.signal);
        for (const call of found.calls) this.calls.set(call.id, call);
        more = found.next !== null;
      }
      this.draw();
    } catch (error) {
      shell.fail(error);
      return;
    } finally {
      this.busy = false;
    }
    // Ids are ordered by time: one that was written late comes before those that are here.
    if (!anew && this.calls.size < wanted()) this.read({ anew: true });
  }

  draw() {
    const rows = [...this.calls.values()];
    const open = new Set([...this.list.querySelectorAll("details[open]")].map((details) => details.dataset.id));
    this.list.replaceChildren(...rows.map((call) => this.row(call, open.has(call.id))));
    const more = this.known - rows.length;
    this.foot.replaceChildren(more > 0 && rows.length < MOST_MODEL_CALLS
      ? h("button", { class: "button small", text: `Show ${count(more)} more`, on: { click: () => { this.all = true; this.read(); } } }) : "");
  }

  row(call, open) {
    const used = call.input_tokens === null && call.output_tokens === null ? "" : `${known(call.input_tokens)} → ${known(call.output_tokens)}`;
    return h("details", { class: "attempt call", "data-id": call.id, open },
      h("summary", {}, icon("chevron"), name(call.model ?? "unknown model", { class: "cut grow" }), h("span", { class: "num muted", text: used }), h("b", { class: "num", title: exactCost(call.cost_usd), text: call.cost_usd === null ? "unknown" : call.cost })),
      h("dl", { class: "facts" },
        fact("Attempt", h("span", { class: "num", text: String(call.attempt) })),
        fact("When", timeTag(call.at)),
        call.latency === null ? null : fact("Took", h("span", { class: "num", text: duration(call.latency * 1000) })),
        call.provider ? fact("Provider", h("bdi", { text: call.provider })) : null,
        call.service_tier ? fact("Tier", h("bdi", { text: call.service_tier })) : null,
        call.key ? fact("Stored as", h("code", { dir: "auto", text: call.key })) : null,
        fact("Input tokens", h("span", { class: "num", text: tokenLine(call.input_tokens, [[call.cache_read_tokens, "from a cache"], [call.cache_write_tokens, "into a cache"]]) })),
        fact("Output tokens", h("span", { class: "num", text: tokenLine(call.output_tokens, [[call.reasoning_tokens, "reasoning"]]) })),
        fact("Cost", h("span", { class: "num", text: exactCost(call.cost_usd) })),
        call.prices ? fact("Price of", h("bdi", { text: call.prices })) : null));
  }
}

/** What was captured of a step's calls. Nothing is read before somebody asks for it. */
class Prompts {
  constructor(run, position) {
    this.run = run;
    this.position = position;
    this.next = null;
    this.abort = new AbortController();
    this.list = h("div", { class: "stack" });
    this.foot = h("div", {}, h("button", { class: "button small", text: "Show what was asked and answered", on: { click: () => this.load() } }));
    this.element = h("div", { class: "stack" }, this.list, this.foot);
  }

  stop() {
    this.abort.abort();
  }

  async load(cursor = null) {
    for (const button of this.foot.children) button.disabled = true;
    try {
      const found = await api.prompts(this.run, this.position, { cursor }, this.abort.signal);
      const rows = found.prompts.map((prompt, index) => this.row(prompt, !found.next && index === found.prompts.length - 1));
      if (cursor) this.list.append(...rows);
      else this.list.replaceChildren(...rows);
      this.foot.replaceChildren(h("div", { class: "row" },
        found.next ? h("button", { class: "button small", text: "Load more", on: { click: () => this.load(found.next) } })
          : h("button", { class: "button small", text: "Look again", on: { click: () => this.load() } })));
    } catch (error) {
      for (const button of this.foot.children) button.disabled = false;
      shell.fail(error);
    }
  }

  row(prompt, open) {
    const part = (title, text) => (text === null ? null : h("div", { class: "stack tight" },
      h("div", { class: "part-head" }, h("h4", { text: title }), h("span", { class: "grow" }), copyButton(() => text, `Copy: ${title}`)), spokenView(text)));
    const body = h("div", { class: "prompt" });
    const details = h("details", { class: "attempt" },
      h("summary", {}, icon("chevron"), name(prompt.model ?? "unknown model", { class: "cut grow" }), prompt.error ? h("span", { class: "error-text", text: "failed" }) : null, h("span", { class: "num muted", text: `attempt ${prompt.attempt}` }), timeTag(prompt.at, { class: "muted" })), body);
    // Trees are built when they are looked at.
    details.addEventListener("toggle", () => {
      if (!details.open || body.children.length) return;
      const parts = [
        prompt.key ? h("p", { class: "muted" }, "Stored as ", h("code", { dir: "auto", text: prompt.key })) : null,
        prompt.error ? h("pre", { class: "raw", tabindex: 0, dir: "auto", text: prompt.error }) : null,
        part("Asked", prompt.request), part("Answered", prompt.response), part("What the step had read", prompt.context),
      ].filter(Boolean);
      body.replaceChildren(...(parts.length ? parts : [h("p", { class: "muted", text: "Nothing was kept of it." })]));
    });
    details.open = open;
    return details;
  }
}

/** What was said in a request or an answer, as people read it, above all of it; all of it alone where nothing is found. */
function spokenView(text) {
  let said = [];
  try {
    said = spoken(JSON.parse(text)).slice(0, MOST_SAID);
  } catch {
    // Cut, or no JSON: shown as it is.
  }
  if (!said.length) return jsonView(text);
  const whole = h("details", { class: "whole" }, h("summary", { class: "muted", text: "All of it, as JSON" }));
  whole.addEventListener("toggle", () => whole.children.length === 1 && whole.append(jsonView(text)));
  return h("div", { class: "stack tight" },
    said.map(([role, words]) => h("div", { class: "said" }, h("span", { class: "said-role", dir: "auto", text: role }), h("div", { class: "said-text", tabindex: 0 }, longText(words, "said-words")))), whole);
}

/** `[role, text]` of each message, in the shapes of OpenAI, Anthropic and Google. What comes in another shape is left out. */
function spoken(value) {
  if (typeof value === "string") return [["text", value]];
  if (Array.isArray(value)) return value.flatMap((one) => spoken(one));
  if (value === null || typeof value !== "object") return [];
  const role = typeof value.role === "string" ? value.role : typeof value.content === "string" || Array.isArray(value.content) ? "assistant" : "";
  if (role && (value.content !== undefined || value.parts !== undefined)) {
    const words = textsOf(value.content ?? value.parts).join("\n");
    return words ? [[role, words]] : [];
  }
  const first = value.system ?? value.instructions ?? value.system_instruction;
  const said = first === undefined ? [] : textsOf(first?.parts ?? first).map((words) => ["system", words]);
  for (const key of ["messages", "input", "contents", "choices", "message", "output", "candidates", "content"]) {
    const inner = value[key];
    if (inner === null || inner === undefined) continue;
    if (typeof inner === "string") said.push([key === "input" || key === "contents" ? "user" : "assistant", inner]);
    else said.push(...spoken(inner));
  }
  return said;
}

function textsOf(content) {
  if (typeof content === "string") return [content];
  if (!Array.isArray(content)) return [];
  return content.flatMap((part) => (typeof part === "string" ? [part] : typeof part?.text === "string" ? [part.text] : []));
}

/** What a run spent, by model and by budget, beside the graph. */
class CostPanel {
  constructor(run) {
    this.run = run;
    this.cost = true;
    this.models = null;
    this.abort = new AbortController();
    this.reload = throttle(1500, () => this.load());
    this.facts = h("dl", { class: "facts" });
    this.list = h("ul", { class: "models" });
    this.budgets = h("div", { class: "stack" });
    this.budgetPart = section("Budgets", null, this.budgets);
    this.modelPart = section("By model", null, this.list);
    this.element = h("div", {}, panelHead(h("h2", { text: "Cost" }), h("span", { class: "muted", text: "What the calls of models of this run came to." }), () => run.select(null)),
      this.facts, this.budgetPart, this.modelPart);
    this.draw();
  }

  stop() {
    this.abort.abort();
    this.reload.stop();
  }

  tick() {}

  allowed() {
    this.drawn = "";
    this.draw();
  }

  change() {
    this.draw();
    if (JSON.stringify(this.run.usage) !== this.asked) this.reload();
  }

  async load() {
    this.asked = JSON.stringify(this.run.usage);
    if (!this.run.usage) return;
    try {
      this.models = (await api.models(this.run.id, this.abort.signal)).models;
      this.drawn = "";
      this.draw();
    } catch (error) {
      shell.fail(error);
    }
  }

  draw() {
    const { usage, budgets, run } = this.run;
    const shown = JSON.stringify([usage, budgets, run?.state]);
    if (shown === this.drawn) return;
    this.drawn = shown;
    this.facts.replaceChildren(...(usage ? usageFacts(usage) : [h("p", { class: "muted", text: "No call of a model was recorded." })]));
    this.budgetPart.hidden = !budgets.length;
    this.budgets.replaceChildren(...budgets.map((budget) => budgetView(this.run, budget, true)));
    this.modelPart.hidden = !this.models?.length;
    const dearest = Math.max(0, ...(this.models ?? []).map((model) => Number(model.usage.cost_usd ?? 0)));
    this.list.replaceChildren(...(this.models ?? []).map(({ provider, model, usage: used }) => {
      const fill = h("i", { class: "spent" });
      fill.style.width = dearest ? `${(Number(used.cost_usd ?? 0) / dearest) * 100}%` : "0";
      return h("li", {},
        h("div", { class: "row" }, name(model ?? "unknown model", { class: "cut" }), provider ? h("span", { class: "muted", text: provider }) : null, h("span", { class: "grow" }), h("b", { class: "num", title: exactCost(used.cost_usd), text: costWords(used) })),
        h("div", { class: "bar" }, fill),
        h("span", { class: "muted num", text: [plural(used.calls, "call"), tokenWords(used)].filter(Boolean).join(" · ") }));
    }));
  }
}

function budgetAmount(kind, value) {
  return kind === "usd" ? money.format(Number(value)) : count(value);
}

/** A bar for each limit of a budget: what is spent, what is set aside for calls under way, and what is left. */
function budgetView(view, budget, whole) {
  const least = budget.unpriced_calls ? "at least " : "";
  const lines = budget.lines.map(({ kind, total, spent, reserved }) => {
    const [all, used, held] = [total, spent, reserved].map(Number);
    const share = (part) => (all > 0 ? Math.min(100, (part / all) * 100) : part > 0 || used >= all ? 100 : 0);
    const text = `${kind === "usd" ? least : ""}${budgetAmount(kind, spent)} of ${budgetAmount(kind, total)}${kind === "usd" ? "" : ` ${KIND_WORDS.get(kind)}`}`;
    const aside = held > 0 ? `${budgetAmount(kind, reserved)} reserved` : "";
    const [a, b] = [h("i", { class: used >= all ? "spent over" : "spent" }), h("i", { class: "reserved" })];
    a.style.width = `${share(used)}%`;
    b.style.width = `${Math.min(100 - share(used), share(held))}%`;
    b.hidden = !(held > 0);
    return h("div", { class: "budget-line" },
      h("div", { class: "bar", role: "img", "aria-label": `${budget.name}: ${text}${aside ? `, ${aside}` : ""}` }, a, b),
      h("span", { class: "num", title: kind === "usd" ? `$${spent} of $${total}` : null, text }), aside ? h("span", { class: "num muted", text: aside }) : null);
  });
  const live = view.run?.state === "executing";
  const add = session.actions.has("add_budget") && live
    ? h("button", { class: `button small ${budget.exhausted ? "primary" : ""}`, "data-verb": "add_budget", on: { click: () => addToBudget(view, budget) } }, icon("plus"), "Add") : null;
  return h("div", { class: `budget ${budget.exhausted ? "exhausted" : ""}` },
    h("span", { class: "budget-name" }, budget.key === null ? h("span", { class: "muted", text: "Budget" }) : name(budget.key, { class: "chip", title: `Shared budget ${budget.key}` })),
    h("div", { class: "budget-lines" }, lines), budget.exhausted ? h("span", { class: "budget-state", text: "exhausted" }) : null, add,
    whole ? h("p", { class: "muted", text: [budget.on_exhausted === "pause" ? "When it is exhausted the run pauses until something is added." : "When it is exhausted, steps that want more end as cancelled.",
      budget.key === null ? "" : "It is shared: others spend of it, too.", budget.unpriced_calls ? `${plural(budget.unpriced_calls, "call")} of no known cost ${budget.unpriced_calls === 1 ? "was" : "were"} made.` : ""].filter(Boolean).join(" ") }) : null);
}

async function addToBudget(view, budget) {
  const amounts = await askAmounts(budget);
  if (amounts) await view.act("add_budget", { budget: budget.key, ...amounts });
}

/** Ask how much. Resolves to amounts by kind, or null when dismissed. */
function askAmounts(budget) {
  return new Promise((resolve) => {
    const inputs = budget.lines.map(({ kind }) => [kind, h("input", {
      class: "input", name: kind, autocomplete: "off", inputmode: kind === "usd" ? "decimal" : "numeric", maxlength: 15,
      pattern: kind === "usd" ? "[0-9]+([.][0-9]{1,6})?" : "[0-9]+", placeholder: kind === "usd" ? "2.50" : "0",
      title: kind === "usd" ? "Dollars, such as 2.50" : "A whole number", "aria-label": capital(KIND_WORDS.get(kind)),
    })]);
    const form = h("form", { method: "dialog" },
      h("h2", { id: "dialog-title", text: budget.key === null ? "Add to the run's budget" : "Add to the shared budget" }),
      budget.key === null ? null : h("p", {}, name(budget.key), ". All runs that share it may spend what is added."),
      h("p", { dir: "auto", text: `${capital(budget.text)}. Runs that it has paused go on.` }),
      inputs.map(([kind, input]) => h("label", { class: "amount" }, h("span", { text: capital(KIND_WORDS.get(kind)) }), input)),
      h("div", { class: "row end" },
        h("button", { class: "button", value: "", formnovalidate: true, text: "Keep as it is" }),
        h("button", { class: "button primary", value: "yes", text: "Add" })));
    const dialog = h("dialog", { class: "dialog", "aria-labelledby": "dialog-title" }, form);
    dialog.addEventListener("close", () => {
      dialog.remove();
      const given = inputs.map(([kind, input]) => [kind, input.value.trim()]).filter(([, value]) => Number(value) > 0);
      resolve(dialog.returnValue === "yes" && given.length ? Object.fromEntries(given.map(([kind, value]) => [kind, kind === "usd" ? value : Number(value)])) : null);
    });
    dialog.addEventListener("keydown", (event) => {
      event.stopPropagation();
      // The first button of a form is what Enter presses: here it must not be the one that changes nothing.
      if (event.key !== "Enter" || event.target.tagName !== "INPUT") return;
      event.preventDefault();
      if (form.reportValidity()) dialog.close("yes");
    });
    document.body.append(dialog);
    dialog.showModal();
    inputs[0][1].focus();
  });
}
