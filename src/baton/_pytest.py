"""The pytest fixtures that come with Baton; see `baton.testing`. Imports nothing of Baton's until one is used."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def _baton_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[object, str]]:
    from baton import testing
    from baton.local import LocalServer

    with (
        LocalServer.start(tmp_path_factory.mktemp("baton") / "pg") as server,
        testing.template(server) as name,
    ):
        yield server, name


@pytest.fixture
def baton_dsn(_baton_server: tuple[object, str]) -> Iterator[str]:
    """Connection string of a migrated, empty database of this test's own, dropped afterwards.

    The embedded server behind it is started once for the session, in a temporary folder.
    """
    from baton import testing

    server, name = _baton_server
    with testing.copy(server, name) as dsn:  # type: ignore[arg-type]
        yield dsn
