"""What the documentation shows is run, and what it says it prints is compared.

A page is read from top to bottom, in one module and one event loop:

- ```python runs, with `await` at the top level. A block that begins with a file's name (`# brief.py`) is saved under it:
  then a module is imported, a test run by pytest, a script (with `if __name__ == "__main__"`) by a Python of its own.
- ```sql runs in the page's database.
- ```console: each `baton` command must exist and take its options; `migrate`, `list`, `doctor` and `start` are run, the last
  one in the background until the page ends. Targets of `make` must be in the Makefile.
- ```text is what the block before it printed; `...` in it stands for anything.

The environment is the reader's: DATABASE_URL is an empty migrated database, BATON_DATA a folder that is not there yet, and the
clients of OpenAI, Anthropic and Google find keys, and a server that answers each question alike.
"""

import ast
import asyncio
import contextlib
import importlib
import inspect
import io
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import click
import psycopg
import pytest

import baton
from baton import (
    cli,
    debug,
    doctor,
    local,
    migration,
    multi_model,
    otel,
    pricing,
    pydantic_ai,
    stats,
    telemetry,
    testing,
    web,
)
from baton._step import Results
from tests.kit.providers import Providers, Reply

ROOT = Path(__file__).parent.parent
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", *DOCS]
ALL_PAGES = [*PAGES, *(ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"))]
REFERENCE = ROOT / "docs" / "reference.md"

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# ([\w/]+\.py)\n")
_PROMPT = "$ "
# The script itself: it does not have the current folder on its path, as `python -m` has.
_BATON = Path(sys.executable).with_name("baton")
_ANSWER = Reply("The moon pulls at the sea.")
_RUN = {"migrate", "list", "doctor"}


def _name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


# --- running a page -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    line: int


def _blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(found[1], found[2], text.count("\n", 0, found.start(2)) + 1) for found in _FENCE.finditer(text)
    ]


class Reader:
    """Does what a page says, in a folder of its own."""

    def __init__(self, page: Path, folder: Path, dsn: str) -> None:
        self._page = page
        self._folder = folder
        self._dsn = dsn
        self._module = ModuleType(re.sub(r"\W", "_", page.stem).lower() + "_page")
        self._runner = asyncio.Runner()
        self._workers: list[subprocess.Popen[str]] = []

    def __enter__(self) -> "Reader":
        sys.modules[self._module.__name__] = self._module
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.send_signal(signal.SIGTERM)
        self._runner.close()
        for name, module in list(sys.modules.items()):
            if (
                module is self._module
                or Path(getattr(module, "__file__", None) or "/").parent == self._folder
            ):
                del sys.modules[name]
        for worker in self._workers:
            try:
                said = worker.communicate(timeout=30)[0]
            except subprocess.TimeoutExpired:
                worker.kill()
                raise
            assert worker.returncode == 0, said

    def read(self) -> None:
        printed = ""
        for block in _blocks(self._page):
            match block.language:
                case "python":
                    printed = self._python(block)
                case "console":
                    printed = "".join(self._command(shlex.split(line)) for line in _commands(block))
                case "sql":
                    printed = self._sql(block)
                case "text":
                    assert _matches(printed, block.text), (
                        f"{_name(self._page)}:{block.line} says\n{block.text}\nand this was printed:\n{printed}"
                    )

    def _python(self, block: Block) -> str:
        file = _FILE.match(block.text)
        is_script = 'if __name__ == "__main__":' in block.text
        path = self._folder / (file[1] if file else "script.py")
        if file or is_script:
            path.write_text(block.text, encoding="utf-8")
        if is_script:
            return self._subprocess(sys.executable, str(path))
        if path.name.startswith("test_"):
            return self._subprocess(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(path))
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            if file:
                importlib.invalidate_caches()
                importlib.import_module(path.stem)
            else:
                self._run(self._compiled(block))
        return printed.getvalue()

    def _compiled(self, block: Block) -> CodeType:
        # Empty lines in front, so that a traceback names the line of the page.
        text = "\n" * (block.line - 1) + block.text
        code = compile(text, str(self._page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        assert isinstance(code, CodeType)
        return code

    def _run(self, code: CodeType) -> None:
        value = eval(code, self._module.__dict__)
        if code.co_flags & inspect.CO_COROUTINE:
            self._runner.run(value)

    def _command(self, words: list[str]) -> str:
        if words[0] != "baton":
            return ""
        if words[1] == "start":
            command = [str(_BATON), *words[1:]]
            self._workers.append(
                subprocess.Popen(
                    command, cwd=self._folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
                )
            )
            return ""
        return self._subprocess(str(_BATON), *words[1:]) if words[1] in _RUN else ""

    def _sql(self, block: Block) -> str:
        lines = []
        with psycopg.connect(self._dsn) as conn:
            cursor = conn.execute(block.text)  # type: ignore[call-overload]
            if cursor.description:
                lines = [" ".join(map(str, row)) for row in cursor]
        return "".join(f"{line}\n" for line in lines)

    def _subprocess(self, *command: str) -> str:
        done = subprocess.run(
            command, cwd=self._folder, capture_output=True, text=True, timeout=90, check=False
        )
        assert done.returncode == 0, f"{_name(self._page)}: {shlex.join(command)}\n{done.stdout}{done.stderr}"
        return done.stdout


def _commands(block: Block) -> list[str]:
    return [
        line.removeprefix(_PROMPT).split("  #")[0]
        for line in block.text.splitlines()
        if line.startswith(_PROMPT)
    ]


def _matches(printed: str, shown: str) -> bool:
    pattern = ".*".join(map(re.escape, shown.strip().split("...")))
    return re.fullmatch(pattern, printed.strip(), re.DOTALL) is not None


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_a_page_does_what_it_says(
    page: Path, baton_dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith(("BATON_", "OBAN_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DATABASE_URL", baton_dsn)
    monkeypatch.setenv("BATON_DATA", str(tmp_path / "data"))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with Providers(_ANSWER) as providers, Reader(page, tmp_path, baton_dsn) as reader:
        for name, url in (
            ("OPENAI", providers.openai_url),
            ("ANTHROPIC", providers.url),
            ("GOOGLE_GEMINI", providers.url),
        ):
            monkeypatch.setenv(f"{name}_BASE_URL", url)
        for name in ("OPENAI", "ANTHROPIC", "GOOGLE", "GEMINI"):
            monkeypatch.setenv(f"{name}_API_KEY", "sk-of-the-docs")
        reader.read()


# --- commands -------------------------------------------------------------------------------------

COMMANDS = sorted(
    {
        command
        for page in ALL_PAGES
        for block in _blocks(page)
        if block.language == "console"
        for command in _commands(block)
    }
)


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("baton ")])
def test_a_command_exists_and_takes_these_options(command: str) -> None:
    group = cli.cli
    assert isinstance(group, click.Group)
    _, name, *arguments = shlex.split(command)
    if name == "--version":
        return
    assert name in group.commands, f"`baton {name}` is shown, and there is no such command"
    with contextlib.suppress(click.exceptions.Exit), contextlib.redirect_stdout(io.StringIO()):
        group.commands[name].make_context(name, arguments, parent=click.Context(group))


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("make ")])
def test_a_make_target_exists(command: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{re.escape(command.split()[1])}:", makefile, re.MULTILINE)


# --- the reference --------------------------------------------------------------------------------


def _sections() -> dict[str, str]:
    """Text of the reference under each heading."""
    parts = re.split(r"^#{2,3} (.+)$", REFERENCE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _heading(name: str) -> str:
    """The heading in code that documents `name`: the name, or its signature."""
    found = [
        heading for heading in _sections() if heading.strip("`").split("(")[0] == name and heading[0] == "`"
    ]
    assert len(found) == 1, f"docs/reference.md has {len(found) or 'no'} headings for `{name}`"
    return found[0]


def _public_methods(owner: str, kind: type) -> Iterator[tuple[str, Any]]:
    for name, member in vars(kind).items():
        if not name.startswith("_"):
            function = member.__func__ if isinstance(member, classmethod) else member
            if inspect.isfunction(function):
                yield f"{owner}.{name}", function
            elif isinstance(member, property):
                yield f"{owner}.{name}", None


def _public_functions(module: ModuleType) -> Iterator[tuple[str, Any]]:
    short = module.__name__.removeprefix("baton.")
    for name, member in vars(module).items():
        if not name.startswith("_") and getattr(member, "__module__", None) == module.__name__:
            yield f"{short}.{name}", member if inspect.isfunction(member) else None


PUBLIC: list[tuple[str, Callable[..., Any] | None]] = [
    *_public_methods("Baton", baton.Baton),
    *_public_methods("Run", baton.Run),
    *_public_methods("Query", baton.Query),
    *_public_methods("Workflow", baton.Workflow),
    *_public_methods("Budgets", baton.Budgets),
    *_public_methods("BudgetStatus", baton.BudgetStatus),
    *_public_methods("BudgetLine", baton.BudgetLine),
    ("Budget", baton.Budget.__init__),
    ("Reserve", baton.Reserve.__init__),
    *((f"Step.{name}", vars(baton.Step)[name]) for name in ("new", "with_options")),
    *_public_methods("results", Results),
    *_public_methods("StepContext", baton.StepContext),
    *_public_methods("Graph", baton.Graph),
    *_public_methods("RunStatus", baton.RunStatus),
    *_public_methods("StepStatus", baton.StepStatus),
    *_public_methods("Explanation", baton.Explanation),
    *_public_functions(debug),
    *_public_methods("Stats", baton.Stats),
    *_public_functions(testing),
    *_public_functions(migration),
    *_public_functions(doctor),
    *_public_functions(telemetry),
    *_public_functions(otel),
    ("pydantic_ai.StepModel", pydantic_ai.StepModel.__init__),
    ("stats.record", stats.record),
    ("pricing.given", pricing.given),
    ("pricing.price_of", pricing.price_of),
    ("Pricing", None),
    ("PriceTable", None),
    *_public_functions(multi_model),
    *_public_methods("FanOut", multi_model.FanOut),
    ("doctor.Finding", None),
    ("doctor.Level", None),
    *_public_methods("LocalServer", local.LocalServer),
    ("local.default_data_dir", local.default_data_dir),
    ("web.app", web.app),
    ("web.Access", None),
    ("web.ACTIONS", None),
    ("web.Authorize", None),
    ("web.read_only", web.read_only),
    ("Baton", baton.Baton.__init__),
    ("Workflow", baton.Workflow.__init__),
    ("Snooze", baton.Snooze.__init__),
    ("Cancel", baton.Cancel.__init__),
    ("step", None),
    ("llm_step", None),
    *_public_methods("LLMWorker", baton.LLMWorker),
    ("record_usage", baton.record_usage),
    ("call_llm", baton.call_llm),
    ("once", baton.once),
]


@pytest.mark.parametrize(("name", "function"), PUBLIC, ids=[name for name, _ in PUBLIC])
def test_the_reference_has_each_signature(name: str, function: Callable[..., Any] | None) -> None:
    heading = _heading(name)
    if function is None:
        return
    shown = ast.parse(f"def f({heading.partition('(')[2].rpartition(')')[0]}): ...").body[0]
    assert isinstance(shown, ast.FunctionDef)
    real = [
        parameter
        for parameter in inspect.signature(inspect.unwrap(function)).parameters.values()
        if parameter.name not in ("self", "cls")
    ]
    assert _parameters(shown.args) == [
        (
            parameter.name,
            parameter.kind is parameter.KEYWORD_ONLY,
            "" if parameter.default is parameter.empty else _literal(parameter.default),
        )
        for parameter in real
    ]


def _parameters(shown: ast.arguments) -> list[tuple[str, bool, str]]:
    positional = [*shown.posonlyargs, *shown.args]
    defaults = [None] * (len(positional) - len(shown.defaults)) + list(shown.defaults)
    found = [(arg.arg, False, _written(default)) for arg, default in zip(positional, defaults, strict=True)]
    found += [(shown.vararg.arg, False, "")] if shown.vararg else []
    found += [
        (arg.arg, True, _written(one)) for arg, one in zip(shown.kwonlyargs, shown.kw_defaults, strict=True)
    ]
    return found + ([(shown.kwarg.arg, False, "")] if shown.kwarg else [])


def _written(default: ast.expr | None) -> str:
    return "" if default is None else _literal(ast.literal_eval(default))


def _literal(value: object) -> str:
    return repr(value)


def _errors(base: type[Exception]) -> set[Any]:
    return {base}.union(*map(_errors, base.__subclasses__()))


@pytest.mark.parametrize("name", sorted(baton.__all__))
def test_the_reference_names_each_public_name(name: str) -> None:
    assert re.search(rf"`(baton\.)?{name}\b", REFERENCE.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "name",
    sorted(error.__name__ for error in _errors(baton.BatonError) if error.__module__ == "baton.errors"),
)
def test_the_reference_names_each_error(name: str) -> None:
    assert f"`{name}`" in _sections()["Errors"]


@pytest.mark.parametrize("name", sorted(cli.cli.commands))  # type: ignore[attr-defined]
def test_the_reference_has_each_command_with_its_options(name: str) -> None:
    command = cli.cli.commands[name]  # type: ignore[attr-defined]
    text = _sections()[_heading(f"baton {name}")]
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert any(f"`{option}" in text for option in parameter.opts), (
                f"`baton {name}` has {parameter.opts}"
            )


# --- links and placeholders -----------------------------------------------------------------------


def _anchors(page: Path) -> set[str]:
    without_code = _FENCE.sub("", page.read_text(encoding="utf-8"))
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", without_code, re.MULTILINE)
    }


@pytest.mark.parametrize("page", ALL_PAGES, ids=_name)
def test_each_link_leads_somewhere(page: Path) -> None:
    without_code = _FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)]+)\)", without_code):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{_name(page)} links to {target}"
        assert not anchor or anchor in _anchors(found), f"{_name(page)} links to {target}"


def test_the_benchmark_has_its_place_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(re.findall(r"<!-- bench:begin -->\n.*?<!-- bench:end -->", text, re.DOTALL)) == 1
