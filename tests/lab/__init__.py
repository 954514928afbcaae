"""The crash lab: real worker processes on a real PostgreSQL, every fault we know of, and a witness that cannot be rolled back.

`python -m tests.lab` runs it, `make chaos` for three minutes. docs/crash-lab.md says what it does and what its report means.

    schedule    one seed -> the stream of graphs and the faults, all of it before anything is executed
    oracle      what may become of each step: a set of states, narrowed by each observation
    steps       what the workers run; the witness they write to
    worker      the process under test
    server, proxy, processes   the PostgreSQL, the wire to it, the workers and their end
    inserter, faults, watcher  who acts on the system: users, the monkey, the eyes
    invariants  what must never be, in sql/, and what must be at the end
    storm       deadlocks
    chaos, report   a run from its schedule to its verdict
    controls    known-bad variants of the engine, each of which must be caught
"""
