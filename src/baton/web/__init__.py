"""The live page: a plain ASGI app to mount beside your own, `pip install "oban-baton[web]"`.

    import baton.web

    async def authorize(request):
        user = await session_user(request)                     # yours
        return baton.web.Access(user.email, actions=baton.web.ACTIONS) if user else None

    app.mount("/baton", baton.web.app(workflows, authorize=authorize))

Everything that it serves passes `authorize`, at each request. It shows what the caller's `Access` reaches and lets them do what
that names; without more, nothing. See docs/securing-the-page.md.
"""

from baton.errors import MissingExtra

try:
    import sse_starlette as _sse_starlette  # noqa: F401
    import starlette as _starlette  # noqa: F401
except ModuleNotFoundError as error:
    raise MissingExtra(
        f'the page needs {error.name}; install it with: pip install "oban-baton[web]"'
    ) from error

from baton.web._access import ACTIONS, Access, Authorize, read_only
from baton.web._app import app

__all__ = ["ACTIONS", "Access", "Authorize", "app", "read_only"]
