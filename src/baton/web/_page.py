"""The page itself: one HTML file that comes with Baton, told where it is mounted and which of its scripts are its own."""

import html
import secrets
from importlib import resources
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response

_TEXT = resources.files("baton.web").joinpath("static", "ui.html").read_text(encoding="utf-8")
# Styles and scripts of the file alone; nothing from elsewhere, nothing that is written into the page later.
_POLICY = (
    "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'self'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)


def base_of(request: Request) -> str:
    """Path under which the app is mounted, with a slash at its end."""
    root = "/".join(part for part in str(request.scope.get("root_path", "")).split("/") if part)
    return f"/{quote(root)}/" if root else "/"


def page(request: Request) -> Response:
    """The HTML, with a nonce of this response's own."""
    nonce = secrets.token_urlsafe(18)
    text = _TEXT.replace("__BASE__", html.escape(base_of(request))).replace("__NONCE__", nonce)
    return Response(
        text,
        media_type="text/html",
        headers={"Content-Security-Policy": _POLICY.format(nonce=nonce)},
    )
