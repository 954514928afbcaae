import asyncio
from tests.test_engine_properties import *
async def test_tmp(meeting):
    width, batch = 10_000, 500
    dag = (Vertex(), *[Vertex(deps=(0,))] * width, Vertex(deps=tuple(range(1, width + 1))))
    root, *middle, join = await meeting.insert(dag)
    main = meeting.db.main
    t=time.monotonic(); await main.ack(await main.start(root)); print("root", time.monotonic()-t)
    try:
        await main.run("LOAD 'auto_explain'"); print("auto_explain ok")
    except Exception as e: print(e)
    for start in range(0, width, batch):
        outcomes = await main.start(*middle[start : start + batch])
        await main.begin()
        t=time.monotonic(); await main.ack(outcomes)
        if start in (0, 4500, 9500):
            print(start, time.monotonic()-t)
            for r in await main.rows("SELECT relname, seq_scan, seq_tup_read, idx_scan, idx_tup_fetch, n_tup_upd, n_tup_hot_upd from pg_stat_xact_user_tables where coalesce(idx_scan,0)+seq_scan+n_tup_upd>0"): print(r)
            for r in await main.rows("SELECT relname, indexrelname, idx_scan, idx_tup_read, idx_tup_fetch from pg_stat_user_indexes where idx_scan>0 and relname='workflow_nodes'"): print(r)
        await main.commit()
