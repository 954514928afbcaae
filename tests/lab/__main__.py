"""`python -m tests.lab`: a run of the crash lab. Exit status: 0 green, 1 a violation, 2 inconclusive."""

import argparse
import asyncio
import json
import logging
import random
import signal
import sys
import tempfile
from pathlib import Path

from tests.lab import chaos, schedule


def main() -> int:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument(
        "--seed", type=int, help="one that was run before runs the same again; by default any"
    )
    parser.add_argument(
        "--seconds", type=float, default=180.0, help="of the whole run; a third of it is the deadlock storm"
    )
    parser.add_argument("--json", type=Path, help="write the report to this file as well")
    parser.add_argument(
        "--keep", type=Path, help="folder for the schedule, the server's data and the logs, kept afterwards"
    )
    parser.add_argument("--plan", action="store_true", help="print the schedule of the seed and run nothing")
    parser.add_argument(
        "--faults",
        default=",".join(schedule.FAULTS),
        help="kinds of faults to make, to find out which one it takes; by default: %(default)s",
    )
    options = parser.parse_args()
    if options.keep and options.keep.exists() and any(options.keep.iterdir()):
        parser.error(f"{options.keep} is not empty; name a new folder")
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    plan = schedule.make(
        seed, options.seconds * 2 / 3, kinds=[kind for kind in options.faults.split(",") if kind]
    )
    if options.plan:
        print(json.dumps(plan.as_json(), indent=1))
        return 0
    # So that everything is ended in order.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="baton-lab-") as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        logging.basicConfig(
            filename=folder / "lab.log", format="%(asctime)s %(name)s %(levelname)s %(message)s"
        )
        print(f"seed {seed}, {options.seconds:g} s; everything is in {folder}", flush=True)
        report = asyncio.run(chaos.run(plan, folder, storm_seconds=options.seconds / 3))
    if options.json:
        options.json.write_text(report.as_json())
    print(report)
    if report.verdict == 1:
        print("\n".join(f"{at:9.3f} {text}" for at, text in report.timeline))
    return report.verdict


if __name__ == "__main__":
    sys.exit(main())
