"""Measure the page in a headless Chromium, on a real Baton on an embedded PostgreSQL, all on one machine.

    make bench ARGS=page

- *first paint*: from the request of a run of 200 steps to the first content, and to the frame in which its boxes stand.
- *state change to pixel*: from the moment a step's function returns to the first frame after its box has changed; the ack, its
  commit, the notification, the server, the stream and the drawing are in it.
- *5,000 boxes*: the same first frame for a graph of 5,000 steps with all its groups unfolded, which the page by itself never
  shows, and the time of a frame while one drags it, near and with everything in the window.
"""

import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from string import ascii_lowercase
from urllib.parse import urlencode

from playwright.async_api import Browser
from tests.kit.browser import Served, Tab, launched
from tests.kit.wait import eventually

import baton.web
from baton import Baton, Workflow, step

LOADS = 7
returned: dict[int, float] = {}

# Milliseconds since the epoch of each box's first frame as completed, and of the first frame with boxes at all.
_WATCH = """
    window.seen = {};
    const now = () => performance.timeOrigin + performance.now();
    new MutationObserver((changes) => {
        if (!window.drawn && document.querySelector(".box, .far-box")) {
            window.drawn = -1;
            requestAnimationFrame(() => setTimeout(() => { window.drawn = performance.now(); }));
        }
        const done = changes.map(({ target }) => target).filter((one) => one.matches?.(".box.s-completed:not(.counted)"));
        if (done.length) requestAnimationFrame(() => setTimeout(() => {
            for (const one of done) seen[one.dataset.box] ??= now();
        }));
    }).observe(document, { subtree: true, childList: true, attributes: true, attributeFilter: ["class"] });
"""
_DRAG = """async () => {
    const svg = document.querySelector("svg.graph");
    const times = [];
    let last = performance.now();
    for (let n = 0; n < 60; n++) {
        svg.dispatchEvent(new WheelEvent("wheel", { deltaX: n % 20 < 10 ? 160 : -160, shiftKey: true, cancelable: true }));
        await new Promise((done) => requestAnimationFrame(done));
        times.push(performance.now() - last);
        last = performance.now();
    }
    return times;
}"""


@step(name="bench.page.work")
async def work(n: int, seconds: float) -> int:
    await asyncio.sleep(seconds)
    returned[n] = time.time() * 1000
    return n


def layered(steps: int, width: int = 20, seconds: float = 0) -> Workflow:
    """Layers of `width` steps, each of which waits for two of the layer before."""
    chance = random.Random(11)
    workflow = Workflow(f"{steps} steps")
    layer: list[str] = []
    for first in range(0, steps, width):
        names = ["".join(chance.choices(ascii_lowercase, k=12)) for _ in range(min(width, steps - first))]
        for n, name in enumerate(names, first):
            deps = chance.sample(layer, 2) if layer else []
            workflow.add(name, work.new(n, chance.uniform(0, seconds)), deps=deps)
        layer = names
    return workflow


async def first_paint(browser: Browser, root: str, run_id: str) -> tuple[float, float]:
    """Milliseconds to the first content, and to the boxes."""
    async with Tab.opened(browser, root, viewport={"width": 1440, "height": 900}) as tab:
        await tab.page.add_init_script(_WATCH)
        await tab.go(f"runs/{run_id}")
        await eventually(lambda: tab.page.evaluate("window.drawn > 0"))
        paint = await tab.page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
        return paint, await tab.page.evaluate("window.drawn")


async def to_pixel(browser: Browser, served: Served, workflows: Baton) -> list[float]:
    """Milliseconds from each step's return to its pixel."""
    returned.clear()
    async with Tab.opened(browser, served.root, viewport={"width": 1440, "height": 900}) as tab:
        await tab.page.add_init_script(_WATCH)
        run = await workflows.insert(layered(200, seconds=1.5))
        await tab.go(f"runs/{run.id}")
        await tab.page.keyboard.press("f")
        await run.wait(timeout=120)
        await tab.page.wait_for_timeout(500)
        seen: dict[str, float] = await tab.page.evaluate("window.seen")
        boxes = (await (await tab.page.request.get(f"{served.root}api/runs/{run.id}")).json())["layout"][
            "boxes"
        ]
        by_name = {box["label"]: box["id"] for box in boxes}
        names = [status.name for status in (await run.status()).steps]
        # Those that had returned before the page was there have no change to be seen.
        return [seen[by_name[name]] - returned[n] for n, name in enumerate(names) if by_name[name] in seen]


async def dragged(browser: Browser, root: str, run_id: str) -> tuple[float, list[float], list[float]]:
    """Milliseconds until 5,000 boxes stand; of frames near; of frames with everything in the window."""
    async with Tab.opened(browser, root, viewport={"width": 1440, "height": 900}) as tab:
        await tab.page.add_init_script(_WATCH)
        shown = await (await tab.page.request.get(f"{root}api/runs/{run_id}")).json()
        unfolded = ",".join(group["id"] for group in shown["groups"])
        await tab.go(f"runs/{run_id}?{urlencode({'expand': unfolded})}")
        await eventually(lambda: tab.page.evaluate("window.drawn > 0"), timeout=60)
        near = await tab.page.evaluate(_DRAG)
        await tab.page.keyboard.press("f")
        await tab.page.wait_for_selector(".far-box", state="attached")
        await tab.page.wait_for_timeout(500)
        return await tab.page.evaluate("window.drawn"), near, await tab.page.evaluate(_DRAG)


async def measure(folder: Path) -> None:
    """Measure everything and print it."""
    async with (
        launched() as browser,
        Baton.local(folder / "pg", queues={"default": 20}) as workflows,
        Served(baton.web.app(workflows, authorize=baton.web.read_only)) as served,
    ):
        small = await workflows.insert(layered(200))
        large = await workflows.insert(layered(5_000, width=200))
        await small.wait(timeout=60)
        await large.wait(timeout=300)
        loads = [await first_paint(browser, served.root, small.id) for _ in range(LOADS + 1)][1:]
        paint, drawn = (statistics.median(values) for values in zip(*loads, strict=True))
        print(f"first paint at 200 steps: {paint:.0f} ms, its boxes {drawn:.0f} ms (median of {LOADS})")
        pixels = await to_pixel(browser, served, workflows)
        print(
            f"state change to pixel: p50 {_at(pixels, 50):.0f} ms, p99 {_at(pixels, 99):.0f} ms ({len(pixels)} changes)"
        )
        first, near, far = await dragged(browser, served.root, large.id)
        print(f"5,000 boxes: drawn after {first:.0f} ms")
        print(f"  a frame while dragging: near p50 {_at(near, 50):.0f} ms, p95 {_at(near, 95):.0f} ms")
        print(f"  a frame while dragging: all of them p50 {_at(far, 50):.0f} ms, p95 {_at(far, 95):.0f} ms")


def _at(values: Sequence[float], percent: int) -> float:
    return statistics.quantiles(values, n=100)[percent - 1]


def main() -> None:
    """Run on an embedded PostgreSQL of its own."""
    with tempfile.TemporaryDirectory(prefix="baton-bench-") as folder:
        asyncio.run(measure(Path(folder)))
