-- announce: tell those who follow a run that something about these steps has changed, by ids alone, when this commits.
-- Nothing is sent, and nothing but the leases read, where nobody holds one on 'workflow:<id>' or 'workflow:all'. A payload must stay
-- under 8,000 bytes, so many steps make several; beyond 10,000 each run is told to be read anew. When half of the server's queue of
-- notifications is taken none is sent, for a full one would fail whoever commits: followers also look by themselves.
-- p_steps: ids, in any order. The same change told twice in a transaction is sent once.
CREATE OR REPLACE FUNCTION /* schema */baton_announce(p_steps bigint[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  everything boolean;
BEGIN
  -- 'w': after 'finished:...' and 'settled:...' in any collation, so waiting for an end makes nobody read more than this.
  IF p_steps = '{}' OR NOT EXISTS (
    SELECT FROM /* schema */workflow_subscribers AS subscriber
    WHERE subscriber.topic >= 'w' AND subscriber.expires_at > clock_timestamp()
  ) THEN
    RETURN;
  END IF;
  IF cardinality(p_steps) > 10000 THEN
    PERFORM /* schema */baton_announce_runs(ARRAY(
      SELECT DISTINCT step.workflow_id FROM /* schema */workflow_nodes AS step WHERE step.id = ANY(p_steps)), true);
    RETURN;
  END IF;
  everything := EXISTS (
    SELECT FROM /* schema */workflow_subscribers AS subscriber
    WHERE subscriber.topic = 'workflow:all' AND subscriber.expires_at > clock_timestamp());
  PERFORM pg_notify('/* prefix */.oban_workflow', json_build_object('id', part.workflow_id, 'steps', part.ids)::text)
  FROM (
    SELECT numbered.workflow_id, json_agg(numbered.id ORDER BY numbered.id) AS ids
    FROM (
      SELECT step.workflow_id, step.id, (row_number() OVER (PARTITION BY step.workflow_id ORDER BY step.id) - 1) / 300 AS part
      FROM (SELECT DISTINCT unnest(p_steps) AS id) AS told JOIN /* schema */workflow_nodes AS step ON step.id = told.id
    ) AS numbered
    GROUP BY numbered.workflow_id, numbered.part
  ) AS part
  WHERE pg_notification_queue_usage() < 0.5 AND (everything OR EXISTS (
    SELECT FROM /* schema */workflow_subscribers AS subscriber
    WHERE subscriber.topic = 'workflow:' || part.workflow_id AND subscriber.expires_at > clock_timestamp()));
END
$$;
