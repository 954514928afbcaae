"""Put the page together: `ui/` becomes `src/baton/web/static/ui.html`, one file that needs nothing from anywhere.

    python tools/build_page.py            write it
    python tools/build_page.py --check    fail if it is not what the sources make

The parts of the script share one scope and come in this order; `class` and `const` know only what came before when they
are evaluated, functions know everything. The server fills in `__BASE__` and `__NONCE__`.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "ui"
TARGET = ROOT / "src" / "baton" / "web" / "static" / "ui.html"
SCRIPTS = (
    "dom", "format", "states", "api", "live", "router", "shell", "json", "graph", "panel", "costs", "table", "timeline",
    "runs", "run", "keyboard", "main",
)  # fmt: skip


def build() -> str:
    """The page as text. An inline script ends at the first `</script`, so none may be in it."""
    parts = [f"// {name}\n{_read(f'{name}.js')}" for name in SCRIPTS]
    script = '(() => {\n"use strict";\n\n' + "\n".join(parts) + "})();\n"
    css = _read("page.css")
    for text, end in ((script, "</script"), (css, "</style"), (script, "<!--")):
        if end in text.lower():
            raise SystemExit(f"ui/: {end!r} would end its element early; write it in two pieces")
    return _read("page.html").replace("{{ page.css }}", css).replace("{{ script }}", script)


def _read(name: str) -> str:
    return (SOURCES / name).read_text(encoding="utf-8")


def main() -> int:
    page = build().encode()
    if "--check" in sys.argv[1:]:
        if TARGET.is_file() and TARGET.read_bytes() == page:
            return 0
        print(
            f"{TARGET.relative_to(ROOT)} is not what ui/ makes; run python tools/build_page.py",
            file=sys.stderr,
        )
        return 1
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_bytes(page)
    print(f"{TARGET.relative_to(ROOT)}: {len(page):,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
