-- finish: count settled steps off their workflows; a workflow left with none is finished, with one completion row.
-- p_ids: steps that settled in this transaction, their workflows locked. Those with a live lease are notified of ids alone: on
-- 'settled:<id>' of every settle, on 'finished:<id>' of the end; followers also of the steps, and of those that wait for fewer now.
CREATE OR REPLACE FUNCTION /* schema */baton_finish(p_ids bigint[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  touched uuid[];
  finished uuid[];
BEGIN
  WITH settled AS (
    SELECT step.workflow_id,
           step.state IN ('cancelled', 'discarded') AS failed,
           step.state IN ('cancelled', 'discarded') AND (
             -- Excused: somebody waits for it, and everybody who does was told to ignore just this. Steps that run whatever
             -- happened, or after a failure, have no say in it.
             SELECT bool_and(CASE step.state WHEN 'cancelled' THEN dependent.ignore_cancelled
                                             ELSE dependent.ignore_discarded END) FILTER (WHERE dependent.runs_on = 'success')
             FROM /* schema */workflow_edges AS edge
             JOIN /* schema */workflow_nodes AS dependent ON dependent.id = edge.dependent_id
             WHERE edge.dependency_id = step.id
           ) IS TRUE AS excused
    FROM /* schema */workflow_nodes AS step WHERE step.id = ANY(p_ids)
  ), counted AS (
    SELECT workflow_id, count(*)::integer AS settled,
           count(*) FILTER (WHERE failed)::integer AS failed, count(*) FILTER (WHERE excused)::integer AS excused
    FROM settled GROUP BY workflow_id
  ), updated AS (
    UPDATE /* schema */workflows AS workflow
    SET unsettled = workflow.unsettled - counted.settled,
        failed = workflow.failed + counted.failed,
        excused = workflow.excused + counted.excused,
        finished_at = CASE WHEN workflow.unsettled = counted.settled THEN clock_timestamp() END,
        outcome = CASE WHEN workflow.unsettled > counted.settled THEN NULL
                       WHEN workflow.cancel_cause = 'request' THEN 'cancelled'
                       WHEN workflow.cancel_cause = 'deadline'
                            OR workflow.failed + counted.failed > workflow.excused + counted.excused THEN 'failed'
                       ELSE 'completed' END
    FROM counted WHERE workflow.id = counted.workflow_id
    RETURNING workflow.id, workflow.finished_at
  )
  SELECT array_agg(id), array_agg(id) FILTER (WHERE finished_at IS NOT NULL) INTO touched, finished FROM updated;

  IF finished IS NOT NULL THEN
    PERFORM /* schema */baton_complete(finished);
  END IF;

  IF EXISTS (SELECT FROM /* schema */workflow_subscribers) THEN
    PERFORM pg_notify('/* prefix */.oban_workflow', json_build_object('id', fact.workflow_id, 'fact', fact.name)::text)
    FROM (
      SELECT id AS workflow_id, 'settled' AS name FROM unnest(touched) AS id
      UNION ALL SELECT id, 'finished' FROM unnest(finished) AS id
    ) AS fact
    WHERE EXISTS (
      SELECT FROM /* schema */workflow_subscribers AS subscriber
      WHERE subscriber.topic = fact.name || ':' || fact.workflow_id AND subscriber.expires_at > clock_timestamp()
    );
    IF EXISTS (SELECT FROM /* schema */workflow_subscribers AS subscriber WHERE subscriber.topic >= 'w') THEN
      PERFORM /* schema */baton_announce(p_ids || ARRAY(
        SELECT edge.dependent_id FROM /* schema */workflow_edges AS edge WHERE edge.dependency_id = ANY(p_ids)));
    END IF;
  END IF;
END
$$;
