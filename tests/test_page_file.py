"""The page as a file: made of its sources, and harmless by what is not in them. In a browser: test_page.py."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_page_is_what_its_sources_make() -> None:
    subprocess.run([sys.executable, ROOT / "tools" / "build_page.py", "--check"], check=True)


def test_the_page_needs_nothing_from_elsewhere_and_makes_no_markup_of_text() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "ui").iterdir()))
    assert set(re.findall(r"https?://[\w./-]+", source)) == {
        "http://www.w3.org/2000/svg",
        "https://example.org",
    }
    assert not re.findall(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser|srcdoc"
        r"|setAttribute\(\"(?:style|on)|\sstyle=|\son\w+=\"|javascript:|@import",
        source,
    )
