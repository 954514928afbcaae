"""Creating, upgrading, checking and removing the schema, on databases that are empty, old, foreign or busy."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from oban.schema import install_sql
from psycopg import AsyncConnection, errors

from baton import Baton, Workflow, _store, migration, step, testing
from baton.errors import InvalidOption, SchemaConflict, SchemaMissing, SchemaOutdated, StartError
from tests.kit.wait import eventually

LATEST = _store.migrations()[-1].version


@step(name="tests.migration.one")
async def one() -> int:
    return 1


def simple() -> Workflow:
    workflow = Workflow("simple")
    first = workflow.add("a", one.new())
    workflow.add("b", one.new(), deps=[first])
    return workflow


@pytest.fixture
async def db(baton_dsn: str) -> AsyncIterator[AsyncConnection]:
    async with await AsyncConnection.connect(baton_dsn, autocommit=True) as db:
        yield db


async def rows(db: AsyncConnection, sql: str, *params: Any) -> list[Any]:
    return await (await db.execute(sql.encode(), params or None)).fetchall()


async def catalogue(db: AsyncConnection, schema: str) -> list[Any]:
    """Everything in a schema, by kind, name and definition, with the schema's name taken out."""
    found = await rows(
        db,
        """
        SELECT kind, name, replace(replace(definition, %(s)s || '.', ''), '"' || %(s)s || '".', '') FROM (
          SELECT 'column' AS kind, table_name || '.' || column_name AS name,
                 concat_ws(' ', udt_name, is_nullable, column_default, is_identity) AS definition
          FROM information_schema.columns WHERE table_schema = %(s)s
          UNION ALL SELECT 'index', indexname, indexdef FROM pg_indexes WHERE schemaname = %(s)s
          UNION ALL SELECT 'constraint', conrelid::regclass::text || '.' || conname, pg_get_constraintdef(oid)
          FROM pg_constraint WHERE connamespace = %(s)s::regnamespace
          UNION ALL SELECT 'function', proname, pg_get_functiondef(oid) || coalesce(proacl::text, '')
          FROM pg_proc WHERE pronamespace = %(s)s::regnamespace
          UNION ALL SELECT 'trigger', tgname, pg_get_triggerdef(oid) || tgenabled::text FROM pg_trigger
          WHERE NOT tgisinternal AND tgrelid = (%(s)s || '.oban_jobs')::regclass
        ) AS found ORDER BY 1, 2, 3
        """.replace("%(s)s", f"'{schema}'"),
    )
    return [tuple(row) for row in found if "workflow_migrations" not in row[1] or row[0] == "column"]


# --- up ----------------------------------------------------------------------------------------------


async def test_up_on_an_empty_database_installs_oban_and_baton_and_says_which_versions(
    baton_dsn: str, db: AsyncConnection
) -> None:
    await db.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    assert await migration.up(baton_dsn) == [m.version for m in _store.migrations()]
    state = await migration.check(baton_dsn)
    assert (state.ready, state.oban, state.version, state.wanted, state.current) == (
        True,
        True,
        LATEST,
        LATEST,
        True,
    )
    assert state.missing_triggers == ()
    recorded = await rows(db, "SELECT version, name FROM workflow_migrations WHERE version > 0 ORDER BY 1")
    assert recorded == [(m.version, m.name) for m in _store.migrations()]


async def test_up_where_oban_is_installed_leaves_its_jobs_alone(baton_dsn: str, db: AsyncConnection) -> None:
    await db.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    await db.execute(install_sql().encode())
    await db.execute("INSERT INTO oban_jobs (worker) SELECT 'W' FROM generate_series(1, 10)")
    await migration.up(baton_dsn)
    assert await rows(db, "SELECT count(*) FROM oban_jobs WHERE state = 'available'") == [(10,)]
    assert (await testing.run(simple(), dsn=baton_dsn)).outcome == "completed"


async def test_up_again_does_nothing(baton_dsn: str, db: AsyncConnection) -> None:
    run = (await testing.run(simple(), dsn=baton_dsn)).run
    before = await rows(db, "SELECT oid, xmin::text FROM pg_proc WHERE proname LIKE 'baton%%' ORDER BY 1")
    assert await migration.up(baton_dsn) == []
    assert (
        await rows(db, "SELECT oid, xmin::text FROM pg_proc WHERE proname LIKE 'baton%%' ORDER BY 1")
        == before
    )
    assert str((await rows(db, "SELECT id FROM workflows"))[0][0]) == run.id


async def test_up_five_times_at_once_creates_once(baton_dsn: str, db: AsyncConnection) -> None:
    await db.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    applied = await asyncio.gather(*(migration.up(baton_dsn) for _ in range(5)))
    assert sorted(applied, key=len)[:4] == [[]] * 4
    assert (await migration.check(baton_dsn)).ready


async def test_up_that_fails_half_way_leaves_the_schema_as_it_was(
    baton_dsn: str, db: AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await db.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    complete = migration.sql
    with monkeypatch.context() as broken:
        broken.setattr(
            migration, "sql", lambda *args, **options: complete(*args, **options) + "\nSELECT 1/0;"
        )
        with pytest.raises(errors.DivisionByZero):
            await migration.up(baton_dsn)
    assert await rows(db, "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace") == []
    await migration.up(baton_dsn)
    assert (await migration.check(baton_dsn)).ready


@pytest.mark.parametrize("prefix", ["elsewhere", "_x", "a" * 40, "baton_2"])
async def test_any_schema_will_do_and_several_live_side_by_side(
    baton_dsn: str, db: AsyncConnection, prefix: str
) -> None:
    assert await migration.up(baton_dsn, prefix=prefix) == [m.version for m in _store.migrations()]
    assert await migration.up(baton_dsn, prefix=prefix) == []
    here = await testing.run(simple(), dsn=baton_dsn, prefix=prefix)
    assert here.outcome == "completed"
    assert (await testing.run(simple(), dsn=baton_dsn)).outcome == "completed"
    assert await rows(db, f'SELECT id::text FROM "{prefix}".workflows') == [(here.run.id,)]
    await migration.down(baton_dsn, prefix=prefix)
    assert (await migration.check(baton_dsn, prefix=prefix)).version == 0
    assert (await migration.check(baton_dsn)).ready, "the other one stays"


@pytest.mark.parametrize(
    "prefix", ["", "Upper", "a-b", "1a", 'a"b', "a b", "a" * 41, "public; DROP TABLE x", "é"]
)
async def test_what_is_no_plain_schema_name_is_refused(prefix: str) -> None:
    for refused in (migration.up, migration.down, migration.check):
        with pytest.raises(InvalidOption, match="is not a schema Baton can use"):
            await refused("postgresql://nowhere", prefix=prefix)
    with pytest.raises(InvalidOption):
        migration.sql(prefix)


@pytest.mark.parametrize("prefix", ["select", "user", "pg_mine"])
async def test_a_word_that_sql_keeps_for_itself_is_refused_as_a_schema(baton_dsn: str, prefix: str) -> None:
    with pytest.raises(InvalidOption):
        await migration.up(baton_dsn, prefix=prefix)


@pytest.mark.parametrize(
    "table", ["workflows", "workflow_nodes", "workflow_edges", "workflow_completions", "workflow_step_stats"]
)
async def test_tables_of_our_names_that_we_did_not_create_are_refused_and_left_alone(
    baton_dsn: str, db: AsyncConnection, table: str
) -> None:
    await db.execute(f"CREATE SCHEMA theirs; CREATE TABLE theirs.{table} AS SELECT 1 AS x".encode())
    with pytest.raises(SchemaConflict, match=rf"tables that Baton did not create: {table}") as refused:
        await migration.up(baton_dsn, prefix="theirs")
    assert "prefix=" in str(refused.value)
    with pytest.raises(SchemaConflict):
        await migration.down(baton_dsn, prefix="theirs")
    assert await rows(db, f"SELECT x FROM theirs.{table}") == [(1,)]
    assert await rows(db, "SELECT count(*) FROM pg_class WHERE relnamespace = 'theirs'::regnamespace") == [
        (1,)
    ]


# --- functions and triggers ----------------------------------------------------------------------------


async def test_functions_of_another_build_are_replaced(baton_dsn: str, db: AsyncConnection) -> None:
    await db.execute("UPDATE workflow_migrations SET name = 'another build' WHERE version = 0")
    await db.execute(
        "CREATE OR REPLACE FUNCTION baton_cancel_jobs(p_ids bigint[]) RETURNS void LANGUAGE sql AS ''"
    )
    state = await migration.check(baton_dsn)
    assert (state.ready, state.current, state.version) == (True, False, LATEST), (
        "old and new run side by side"
    )
    assert await migration.up(baton_dsn) == []
    assert (await migration.check(baton_dsn)).current
    (body,) = (await rows(db, "SELECT prosrc FROM pg_proc WHERE proname = 'baton_cancel_jobs'"))[0]
    assert "UPDATE" in body


async def test_functions_whose_result_or_parameters_changed_are_replaced_as_well(
    baton_dsn: str, db: AsyncConnection
) -> None:
    signatures = (
        "SELECT proname, pg_get_function_identity_arguments(oid), prorettype::regtype::text FROM pg_proc "
        "WHERE proname LIKE 'baton%%' ORDER BY 1, 2"
    )
    before = await rows(db, signatures)
    await db.execute("UPDATE workflow_migrations SET name = 'another build' WHERE version = 0")
    await db.execute(
        "DROP FUNCTION baton_pause(uuid); "
        "CREATE FUNCTION baton_pause(p_workflow uuid) RETURNS integer LANGUAGE sql AS 'SELECT 1'; "
        "CREATE FUNCTION baton_resume(p_workflow integer) RETURNS integer LANGUAGE sql AS 'SELECT 1'"
    )
    await migration.up(baton_dsn)
    assert await rows(db, signatures) == before


async def test_an_upgrade_leaves_what_it_replaces_where_it_is_and_grants_the_rest_to_the_same_roles(
    baton_dsn: str, db: AsyncConnection
) -> None:
    role = f"worker_{uuid4().hex[:8]}"
    await db.execute(f"CREATE ROLE {role} LOGIN".encode())
    functions = "SELECT oid, proacl::text FROM pg_proc WHERE proname LIKE 'baton%%' ORDER BY 1"
    try:
        await migration.up(baton_dsn, grant=[role])
        before = await rows(db, functions)
        await db.execute("UPDATE workflow_migrations SET name = 'another build' WHERE version = 0")
        await db.execute(f"REVOKE ALL ON workflow_deliveries FROM {role}".encode())
        await migration.up(baton_dsn)
        assert await rows(db, functions) == before
        assert (
            await testing.run(simple(), dsn=baton_dsn.replace("postgres@", f"{role}@"))
        ).outcome == "completed"
    finally:
        await db.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())


async def test_a_schema_that_is_newer_than_the_library_works_and_is_not_touched(
    baton_dsn: str, db: AsyncConnection
) -> None:
    await db.execute("INSERT INTO workflow_migrations (version, name) VALUES (%s, 'future')", (LATEST + 1,))
    await db.execute("UPDATE workflow_migrations SET name = 'newer build' WHERE version = 0")
    assert (await migration.check(baton_dsn)).ready
    assert await migration.up(baton_dsn) == []
    assert await rows(db, "SELECT name FROM workflow_migrations WHERE version = 0") == [("newer build",)]
    assert (await testing.run(simple(), dsn=baton_dsn)).outcome == "completed"


async def test_functions_of_a_newer_schema_are_not_replaced_by_older_ones_to_mend_a_trigger(
    baton_dsn: str, db: AsyncConnection
) -> None:
    await db.execute("INSERT INTO workflow_migrations (version, name) VALUES (%s, 'future')", (LATEST + 1,))
    await db.execute("UPDATE workflow_migrations SET name = 'newer build' WHERE version = 0")
    await db.execute("DROP TRIGGER baton_jobs_updated ON oban_jobs")
    await migration.up(baton_dsn)
    assert await rows(db, "SELECT name FROM workflow_migrations WHERE version = 0") == [("newer build",)]


@pytest.mark.parametrize("trigger", ["baton_jobs_updated", "baton_jobs_deleted", "baton_jobs_truncated"])
async def test_a_trigger_that_is_gone_is_found_and_made_again(
    baton_dsn: str, db: AsyncConnection, trigger: str
) -> None:
    await db.execute(f"DROP TRIGGER {trigger} ON oban_jobs".encode())
    assert (await migration.check(baton_dsn)).missing_triggers == (trigger,)
    with pytest.raises(SchemaOutdated, match=trigger):
        await Baton(baton_dsn).start()
    await migration.up(baton_dsn)
    assert (await migration.check(baton_dsn)).ready


async def test_triggers_and_tables_come_back_after_oban_was_reinstalled(
    baton_dsn: str, db: AsyncConnection
) -> None:
    await db.execute(
        "DROP TABLE oban_jobs, oban_producers, oban_leaders CASCADE; DROP TYPE oban_job_state CASCADE"
    )
    assert not (await migration.check(baton_dsn)).ready
    await migration.up(baton_dsn)
    assert (await migration.check(baton_dsn)).ready
    assert (await testing.run(simple(), dsn=baton_dsn)).outcome == "completed"


async def test_a_role_that_was_granted_to_works_and_another_is_told_the_command(
    baton_dsn: str, db: AsyncConnection
) -> None:
    roles = [f"{what}_{uuid4().hex[:8]}" for what in ("worker", "stranger")]
    for role in roles:
        await db.execute(f"CREATE ROLE {role} LOGIN".encode())
        # Oban's tables are for Oban's users to grant.
        await db.execute(f"GRANT ALL ON oban_jobs, oban_producers, oban_leaders TO {role}".encode())
    worker, stranger = (baton_dsn.replace("postgres@", f"{role}@") for role in roles)
    try:
        await migration.up(baton_dsn, grant=[roles[0]])
        assert (await testing.run(simple(), dsn=worker)).outcome == "completed"
        with pytest.raises(StartError, match=f"baton migrate --grant {roles[1]}"):
            await Baton(stranger).start()
    finally:
        for role in roles:
            await db.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())


# --- locks -------------------------------------------------------------------------------------------


async def test_up_asks_for_the_job_table_again_and_again_while_a_transaction_holds_it(
    baton_dsn: str, db: AsyncConnection, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(migration, "_LOCK_TIMEOUT", "50ms")
    await db.execute(
        "DROP TRIGGER baton_jobs_updated ON oban_jobs; INSERT INTO oban_jobs (worker) VALUES ('W')"
    )
    with caplog.at_level(logging.WARNING, "baton.migration"):
        async with await AsyncConnection.connect(baton_dsn) as busy:
            await busy.execute("UPDATE oban_jobs SET priority = 1")
            up = asyncio.create_task(migration.up(baton_dsn))
            await eventually(lambda: "locked by a long transaction; trying again (1/20)" in caplog.text)
            # Others get through between two tries.
            await db.execute("UPDATE oban_jobs SET priority = 2 WHERE false")
            await busy.rollback()
        await up
    assert (await migration.check(baton_dsn)).ready


async def test_up_gives_up_when_the_job_table_is_never_free(
    baton_dsn: str, db: AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migration, "_LOCK_TIMEOUT", "10ms")
    monkeypatch.setattr(migration, "_LOCK_TRIES", 2)
    await db.execute("DROP TRIGGER baton_jobs_updated ON oban_jobs")
    async with await AsyncConnection.connect(baton_dsn) as busy:
        await busy.execute("LOCK TABLE oban_jobs IN ROW EXCLUSIVE MODE")
        with pytest.raises(errors.LockNotAvailable):
            await migration.up(baton_dsn)
        await busy.rollback()


async def test_up_takes_no_lock_when_all_is_there(baton_dsn: str) -> None:
    async with await AsyncConnection.connect(baton_dsn) as busy:
        await busy.execute("LOCK TABLE oban_jobs IN ACCESS EXCLUSIVE MODE")
        async with asyncio.timeout(5):
            assert await migration.up(baton_dsn) == []
        await busy.rollback()


# --- sql, down, verify ---------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["other", "public"])
async def test_the_statements_as_text_make_the_same_schema_as_up(
    baton_dsn: str, db: AsyncConnection, prefix: str
) -> None:
    by_up = await catalogue(db, "public")
    await db.execute(f"DROP SCHEMA IF EXISTS {prefix} CASCADE; CREATE SCHEMA {prefix}".encode())
    async with await AsyncConnection.connect(baton_dsn) as conn:
        await conn.execute(f"SET LOCAL search_path = {prefix}".encode())
        await conn.execute(install_sql(prefix).encode())
        await conn.execute(migration.sql(prefix).encode())
        await conn.commit()
    assert (await migration.check(baton_dsn, prefix=prefix)).ready
    assert await migration.up(baton_dsn, prefix=prefix) == []
    if prefix == "public":
        assert await catalogue(db, prefix) == by_up
    assert (await testing.run(simple(), dsn=baton_dsn, prefix=prefix)).outcome == "completed"


async def test_the_statements_as_text_may_be_run_again_for_a_version_that_is_there(baton_dsn: str) -> None:
    with psycopg.connect(baton_dsn) as conn:
        conn.execute(migration.sql(since=LATEST).encode())
    assert (await migration.check(baton_dsn)).ready


async def test_down_removes_all_of_baton_and_nothing_of_oban(baton_dsn: str, db: AsyncConnection) -> None:
    await testing.run(simple(), dsn=baton_dsn)
    async with Baton(baton_dsn) as client:
        await client.insert(simple())
    for _ in range(2):
        await migration.down(baton_dsn)
        assert (await migration.check(baton_dsn)).version == 0
        assert await rows(db, "SELECT relname FROM pg_class WHERE relname LIKE 'workflow%%'") == []
        assert await rows(db, "SELECT proname FROM pg_proc WHERE proname LIKE 'baton%%'") == []
        assert await rows(db, "SELECT tgname FROM pg_trigger WHERE tgname LIKE 'baton%%'") == []
        assert await rows(db, "SELECT state::text, count(*) FROM oban_jobs GROUP BY 1 ORDER BY 1") == [
            ("available", 1),
            ("completed", 2),
            ("suspended", 1),
        ]
    await db.execute("UPDATE oban_jobs SET priority = 1")
    assert await migration.up(baton_dsn) == [m.version for m in _store.migrations()]
    assert (await testing.run(simple(), dsn=baton_dsn)).outcome == "completed"


async def test_down_where_oban_is_gone_still_removes_baton(baton_dsn: str, db: AsyncConnection) -> None:
    await db.execute(
        "DROP TABLE oban_jobs, oban_producers, oban_leaders CASCADE; DROP TYPE oban_job_state CASCADE"
    )
    await migration.down(baton_dsn)
    assert await rows(db, "SELECT proname FROM pg_proc WHERE proname LIKE 'baton%%'") == []


async def test_down_where_nothing_is_does_nothing(baton_dsn: str) -> None:
    await migration.down(baton_dsn, prefix="nowhere")
    assert (await migration.check(baton_dsn)).ready


async def test_check_changes_nothing(baton_dsn: str, db: AsyncConnection) -> None:
    assert not (await migration.check(baton_dsn, prefix="nowhere")).ready
    assert await rows(db, "SELECT 1 FROM pg_namespace WHERE nspname = 'nowhere'") == []


@pytest.mark.parametrize(
    ("prefix", "command"), [("public", "`baton migrate`"), ("x", "`baton migrate --prefix x`")]
)
async def test_a_start_without_the_schema_names_the_command(
    baton_dsn: str, prefix: str, command: str
) -> None:
    await migration.down(baton_dsn, prefix=prefix)
    with pytest.raises(SchemaMissing) as missing:
        await Baton(baton_dsn, prefix=prefix).start()
    assert command in str(missing.value)


async def test_a_start_on_an_older_schema_names_the_command(baton_dsn: str, db: AsyncConnection) -> None:
    await db.execute("DELETE FROM workflow_migrations WHERE version = %s", (LATEST,))
    await db.execute("INSERT INTO workflow_migrations VALUES (-1, 'ancient')")
    with pytest.raises((SchemaOutdated, SchemaMissing), match="run `baton migrate`"):
        await Baton(baton_dsn).start()


def test_the_fingerprint_of_the_functions_changes_with_any_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    before = migration.checksum()
    functions = _store.functions()
    monkeypatch.setattr(_store, "functions", lambda: functions[1:])
    assert migration.checksum() != before


def test_a_change_of_what_views_have_in_common_changes_the_fingerprint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = migration.checksum()
    monkeypatch.setattr(_store, "_parts", lambda: {"state": "step.state"})
    assert migration.checksum() != before


def test_migrations_are_numbered_without_gaps() -> None:
    assert [m.version for m in _store.migrations()] == list(range(1, LATEST + 1))


async def test_a_role_that_owns_nothing_runs_workflows_once_it_is_granted_to(
    baton_dsn: str, db: AsyncConnection
) -> None:
    @step
    def answer() -> int:
        return 42

    role = f"app_{uuid4().hex[:8]}"
    await db.execute(f'CREATE ROLE "{role}" LOGIN'.encode())
    theirs = baton_dsn.replace("postgres@", f"{role}@")
    try:
        with pytest.raises(StartError, match=f"baton migrate --grant {role}"):
            async with Baton(theirs):
                pass
        assert await migration.up(baton_dsn, grant=[role]) == []
        assert await migration.up(baton_dsn, grant=[role]) == []
        workflow = Workflow()
        workflow.add("answer", answer.new())
        async with Baton(theirs, queues={"default": 1}) as granted:
            run = await granted.insert(workflow)
            assert await run.result("answer", timeout=10) == 42
            assert await run.wait(timeout=10) == "completed"
        with pytest.raises(InvalidOption, match="cannot be granted to"):
            await migration.up(baton_dsn, grant=['x" TO public; --'])
    finally:
        await db.execute(f'DROP OWNED BY "{role}"'.encode())
        await db.execute(f'DROP ROLE "{role}"'.encode())
