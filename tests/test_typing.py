"""The type checkers find exactly the mistakes that are marked in tests/typing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CASES = ROOT / "tests" / "typing" / "steps.py"
MARKED = {n for n, line in enumerate(CASES.read_text().splitlines(), 1) if line.rstrip().endswith("# E")}

pytestmark = pytest.mark.slow


def run(tool: str, *arguments: str) -> str:
    command = [str(Path(sys.executable).parent / tool), *arguments, str(CASES)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


def compare(found: dict[int, str]) -> None:
    assert {n: text for n, text in found.items() if n not in MARKED} == {}
    assert found.keys() == MARKED


def test_mypy_finds_every_mistake_and_nothing_else():
    lines = run("mypy", "--strict", "--output=json", "--no-error-summary", "--disable-error-code=empty-body")
    compare({item["line"]: item["message"] for item in errors_of_mypy(lines)})


def errors_of_mypy(lines: str) -> list[dict]:
    found = [json.loads(line) for line in lines.splitlines() if line.startswith("{")]
    return [item for item in found if item["severity"] == "error"]


def test_pyright_finds_every_mistake_and_nothing_else():
    report = json.loads(run("pyright", "--outputjson", "--pythonpath", sys.executable))
    found = [item for item in report["generalDiagnostics"] if item["severity"] == "error"]
    compare({item["range"]["start"]["line"] + 1: item["message"] for item in found})
