"""Take the pictures of the page that the documentation shows: docs/images/*.png.

    python tools/screenshot.py

A research run of 47 steps on an embedded PostgreSQL, stopped half-way, in a real Chromium. Needs one, the extras `local` and
`web`, and the development packages. The pictures look best where the font Inter is installed (Debian: fonts-inter).
"""

import asyncio
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.kit.browser import Served, Tab, launched  # noqa: E402
from tests.kit.wait import eventually  # noqa: E402

import baton.web  # noqa: E402
from baton import Baton, Budget, Run, Workflow, llm_step, once, step  # noqa: E402
from baton.pricing import ModelPrice, PriceTable  # noqa: E402

IMAGES = ROOT / "docs" / "images"
SIZE = {"width": 1280, "height": 720}
STILL = asyncio.Event()
CLAIMS = [
    "A commit is durable once its write-ahead log is on disk.",
    "An asynchronous commit may lose the last transactions, and never corrupts the others.",
    "A disk that lies about fsync breaks any promise of durability.",
    "SQLite trusts that a write of one sector does not damage its neighbours.",
    "Full-page writes protect against pages that are torn by a power failure.",
]
PRICES = PriceTable(
    {
        "gpt-6.1-sol": ModelPrice(input="2.50", output="15", cache_read="0.25"),
        "claude-opus-5-5": ModelPrice(input="5", output="25", cache_read="0.50"),
    },
    source="our contract",
    version="2026-11",
)
OUTLINE = "What had reached the disk is what survives. A commit is a promise, and fsync is how it is kept"


@step(name="research.search", max_attempts=3)
async def search(topic: str) -> list[str]:
    await asyncio.sleep(0.8)
    return [f"https://example.org/{topic.replace(' ', '-')}/{n}" for n in range(40)]


@step(name="research.fetch", max_attempts=3)
async def fetch(n: int, links: list[str]) -> dict[str, Any]:
    await asyncio.sleep(0.2 + (n * 37 % 11) / 12)
    if n == 20:
        raise TimeoutError(f"no answer from {links[n]} within 10 s")
    if n > 33:
        await STILL.wait()
    return {"url": links[n], "words": 400 + n * 93 % 700}


@step(name="research.keywords")
async def keywords(topic: str, links: list[str]) -> list[str]:
    await asyncio.sleep(1.7)
    return [*topic.split(), "fsync", "write-ahead log", f"{len(links)} links"]


@step(name="research.outline")
async def outline(topic: str, links: list[str]) -> str:
    for done, word in enumerate(OUTLINE.split(), 1):
        baton.stream.write(f"{word} ")
        baton.progress(done, 32, "second paragraph")
        await asyncio.sleep(0.03)
    await STILL.wait()
    return f"{topic}, {len(links)} links: {OUTLINE}"


async def answered(text: str, model: str, tokens: tuple[int, int]) -> dict[str, Any]:
    """What a provider would have answered: no model is asked for the pictures."""
    await asyncio.sleep(0.4)
    usage = {
        "prompt_tokens": tokens[0],
        "completion_tokens": tokens[1],
        "prompt_tokens_details": {"cached_tokens": tokens[0] // 3},
    }
    message = {"role": "assistant", "content": text}
    return {"model": model, "choices": [{"index": 0, "message": message}], "usage": usage}


@llm_step(name="research.judge", queue="default")
async def judge(words: list[str]) -> dict[str, float]:
    for done, claim in enumerate(CLAIMS, 1):
        baton.progress(done, 8, f"{done} of 8 claims")
        model = "gpt-6.1-sol" if done % 2 else "claude-opus-5-5"
        request = {
            "model": model,
            "messages": [
                {"role": "system", "content": "You judge whether a claim holds. Answer in one sentence."},
                {"role": "user", "content": claim},
            ],
            "max_completion_tokens": 600,
        }
        text = "It holds: both sources say so, and none says otherwise."
        tokens = (2_140 + 310 * done, 48 + 9 * done)
        await once(f"claim {done}", partial(answered, text, model, tokens), request=request)
    await STILL.wait()
    return dict.fromkeys(words, 0.5)


@step(name="research.write")
async def write(pages: list[dict[str, Any]], plan: str, scores: dict[str, float]) -> str:
    return f"{plan}: {len(pages)} pages, {len(scores)} scores"


@step(name="research.check")
async def check(text: str) -> bool:
    return bool(text)


def research(topic: str) -> Workflow:
    """Search, fetch forty pages, look for what matters, write and check."""
    budgets = [
        Budget(usd="0.25", on_exhausted="pause"),
        Budget(key="team:research", usd=40, tokens=5_000_000),
    ]
    workflow = Workflow(f"research: {topic}", key="brief-0148", budget=budgets, debug=True)
    links = workflow.add("search", search.new(topic))
    words = workflow.add("keywords", keywords.new(topic, links.result))
    plan = workflow.add("outline", outline.new(topic, links.result))
    scores = workflow.add("judge_sources", judge.new(words.result))
    pages = [workflow.add(f"fetch_{n}", fetch.new(n, links.result)) for n in range(40)]
    text = workflow.add("write_brief", write.new([page.result for page in pages], plan.result, scores.result))
    for what in ("facts", "style"):
        workflow.add(f"check_{what}", check.new(text.result))
    return workflow


@step(name="shop.step", max_attempts=1)
async def simple(seconds: float, fails: bool = False) -> None:
    await asyncio.sleep(seconds)
    if fails:
        raise RuntimeError("the bank's gateway answered 503")


def earlier(name: str, key: str, steps: int, failing: int | None = None) -> Workflow:
    """A chain that was there before."""
    workflow = Workflow(name, key=key)
    previous: list[Any] = []
    for n in range(steps):
        previous = [workflow.add(f"step_{n}", simple.new(0.05 + n % 3 / 20, n == failing), deps=previous)]
    return workflow


async def history(workflows: Baton) -> None:
    """Runs that have ended, well and otherwise."""
    made = [
        earlier("orders: nightly import", "2026-11-24", 12),
        earlier("invoices: export", "customer-4711", 6, failing=4),
        earlier("orders: nightly import", "2026-11-25", 12),
        earlier("search index: rebuild", "eu-west", 9),
        earlier("invoices: export", "customer-4712", 6),
    ]
    for workflow in made:
        run = await workflows.insert(workflow)
        await run.wait(timeout=60)
    cancelled = await workflows.insert(earlier("thumbnails", "album-93", 30))
    await cancelled.cancel(reason="the album was deleted")
    await cancelled.wait(timeout=60)
    paused = await workflows.insert(earlier("reports: weekly", "week-47", 14))
    await asyncio.sleep(0.5)
    await paused.pause()


async def half_way(run: Run) -> bool:
    """Whether the run stands where the picture wants it."""
    states = (await run.status()).states()
    spent = (await run.status()).usage
    if spent is None or spent.calls < len(CLAIMS):
        return False
    return states["keywords"] == "completed" and sum(state == "completed" for state in states.values()) > 34


async def take(root: str, run_id: str) -> None:
    """The pictures, in light and in dark."""
    async with launched() as browser:
        for name, path, scheme in (
            ("run", f"runs/{run_id}", "light"),
            ("run-dark", f"runs/{run_id}", "dark"),
            ("step", f"runs/{run_id}?step=3", "light"),
            ("timeline", f"runs/{run_id}?tab=timeline", "light"),
            ("cost", f"runs/{run_id}?cost=1", "light"),
            ("prompts", f"runs/{run_id}?step=4", "light"),
            ("runs", "", "light"),
        ):
            async with Tab.opened(browser, root, viewport=SIZE, color_scheme=scheme) as tab:
                await tab.go(path)
                await tab.page.wait_for_timeout(2_500)
                if name == "prompts":
                    await tab.page.get_by_text("Show what was asked").click()
                    await tab.page.locator(".prompt").last.scroll_into_view_if_needed()
                    await tab.page.wait_for_timeout(500)
                file = IMAGES / f"{name}.png"
                await tab.page.screenshot(path=file)
                print(f"{file.relative_to(ROOT)}: {file.stat().st_size:,} bytes")


async def main() -> None:
    """Bring a run half-way, and look at it."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="baton-screenshot-") as folder:
        async with Baton.local(
            Path(folder) / "pg", queues={"default": 8}, shutdown_grace_period=0, pricing=PRICES
        ) as workflows:
            await history(workflows)
            run = await workflows.insert(research("surviving a power failure"))
            await eventually(lambda: half_way(run), timeout=60)
            access = baton.web.Access("ada", baton.web.ACTIONS, prompts=True)
            async with Served(baton.web.app(workflows, authorize=lambda _: access)) as served:
                await take(served.root, run.id)
            STILL.set()


if __name__ == "__main__":
    asyncio.run(main())
