-- schema: what the lab keeps beside the tables under test, in a schema of its own.
-- effects is the witness: append-only, written by the steps over connections of their own, so no rollback takes it along.
-- moves is the other one: written by the commit that moves a step, whoever moves it.
CREATE SCHEMA lab;

CREATE TABLE lab.flows (
  tag text PRIMARY KEY,
  run uuid,
  prune_called_at timestamptz,
  pruned_at timestamptz
);

CREATE TABLE lab.actions (
  id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
  run uuid NOT NULL,
  step text,
  what text NOT NULL,
  called_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  answered_at timestamptz,
  answer text
);
CREATE INDEX ON lab.actions (run);

CREATE TABLE lab.plain (
  job_id bigint PRIMARY KEY
);

-- pid NULL: it hit everybody. jobs: those that ran there when it began.
CREATE TABLE lab.faults (
  id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
  kind text NOT NULL,
  pid integer,
  began_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  ended_at timestamptz,
  hits integer NOT NULL DEFAULT 0,
  jobs bigint[] NOT NULL DEFAULT '{}'
);

-- Hits that the workers count themselves.
CREATE TABLE lab.hits (
  kind text NOT NULL,
  pid integer NOT NULL,
  at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- One row when an attempt starts and one when it ends. phase: start; end, error, snooze, cancel; stopped, when it was cancelled from outside.
-- sees: the states of its dependencies that had been committed when it started.
CREATE TABLE lab.effects (
  id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
  run uuid,
  step text,
  job_id bigint NOT NULL,
  attempt integer NOT NULL,
  attempted_at timestamp NOT NULL,
  pid integer NOT NULL,
  queue text NOT NULL,
  phase text NOT NULL,
  value text,
  sees jsonb,
  at timestamptz NOT NULL DEFAULT clock_timestamp()
);
-- A write whose answer was lost is repeated.
CREATE UNIQUE INDEX ON lab.effects (job_id, attempted_at, (phase = 'start'));
CREATE INDEX ON lab.effects (pid, queue);

CREATE TABLE lab.moves (
  id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
  run uuid NOT NULL,
  step_id bigint NOT NULL,
  name text NOT NULL,
  job_id bigint NOT NULL,
  was text NOT NULL,
  became text NOT NULL,
  at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX ON lab.moves (step_id);

CREATE FUNCTION lab.note_move() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO lab.moves (run, step_id, name, job_id, was, became)
  VALUES (NEW.workflow_id, NEW.id, NEW.name, NEW.job_id, OLD.state, NEW.state);
  RETURN NULL;
END
$$;
CREATE TRIGGER note_move AFTER UPDATE OF state ON workflow_nodes FOR EACH ROW
WHEN (OLD.state IS DISTINCT FROM NEW.state) EXECUTE FUNCTION lab.note_move();

-- Each attempt from its start to its end, as far as the witness knows.
CREATE VIEW lab.attempts AS
SELECT began.id, began.run, began.step, began.job_id, began.attempt, began.attempted_at, began.pid, began.queue, began.sees,
       began.at AS started_at, ended.phase, ended.value, ended.at AS ended_at
FROM lab.effects AS began
LEFT JOIN lab.effects AS ended
  ON ended.job_id = began.job_id AND ended.attempted_at = began.attempted_at AND (ended.phase = 'start') = false
WHERE began.phase = 'start';

-- The workers' queues, and how many jobs each process may run at once.
CREATE TABLE lab.limits (
  queue text PRIMARY KEY,
  jobs integer NOT NULL
);
