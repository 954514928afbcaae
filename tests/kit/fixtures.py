"""Fixtures of test modules that share one database, emptied before each test. A module takes those it needs by name:

database = fixtures.database
baton_dsn = fixtures.baton_dsn
"""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest
from tests.kit.reused import Reused

from baton._engine import Engine


@pytest.fixture(scope="module")
def database(_baton_server: Any) -> Iterator[Reused]:
    with Reused(*_baton_server) as database:
        yield database


@pytest.fixture
def baton_dsn(database: Reused) -> str:
    return database.clean()


@pytest.fixture
async def db(baton_dsn: str) -> AsyncIterator[psycopg.AsyncConnection]:
    """A connection beside those of what is tested."""
    async with await psycopg.AsyncConnection.connect(baton_dsn, autocommit=True) as conn:
        yield conn


@pytest.fixture
async def engine(baton_dsn: str) -> AsyncIterator[Engine]:
    async def conninfo() -> str:
        return baton_dsn

    engine = Engine(conninfo, kwargs={}, prefix="public", origin="test", pool_size=3)
    yield engine
    await engine.close()
