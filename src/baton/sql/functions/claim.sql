-- claim: take up to p_demand available jobs of a queue, in Oban's order, each with what its step needs to start.
-- Returns the JSON text of each job, its id and attempted_at first; those of a step carry it under "step". Results of
-- dependencies come along while they are small and asked for; others the step fetches itself. An exhausted job is passed over
-- instead of stopping the queue at its head.
CREATE OR REPLACE FUNCTION /* schema */baton_claim(p_queue text, p_demand integer, p_node text, p_producer uuid)
RETURNS text[] LANGUAGE plpgsql AS $$
DECLARE
  jobs text[];
BEGIN
  WITH locked AS (
    SELECT job.id FROM /* schema */oban_jobs AS job
    WHERE job.state = 'available' AND job.queue = p_queue AND job.attempt < job.max_attempts
    ORDER BY job.priority, job.scheduled_at, job.id LIMIT p_demand FOR UPDATE SKIP LOCKED
  ), claimed AS (
    UPDATE /* schema */oban_jobs AS job
    SET state = 'executing', attempt = job.attempt + 1, attempted_at = timezone('UTC', clock_timestamp()),
        attempted_by = ARRAY[p_node, p_producer::text],
        -- Why it was parked, or was to wait for a provider, holds no longer; it is said anew if it does.
        meta = CASE WHEN job.meta ?| ARRAY['parked', 'no_room'] THEN job.meta - ARRAY['parked', 'no_room'] ELSE job.meta END
    FROM locked WHERE job.id = locked.id
    RETURNING job.*
  )
  SELECT array_agg(json_build_object(
      'id', job.id, 'attempted_at', job.attempted_at, 'state', job.state, 'queue', job.queue, 'worker', job.worker, 'attempt', job.attempt,
      'max_attempts', job.max_attempts, 'priority', job.priority, 'args', job.args, 'meta', job.meta,
      'errors', job.errors, 'tags', job.tags, 'attempted_by', job.attempted_by, 'inserted_at', job.inserted_at,
      'scheduled_at', job.scheduled_at, 'cancelled_at', job.cancelled_at,
      'completed_at', job.completed_at, 'discarded_at', job.discarded_at,
      'step', CASE WHEN step.id IS NOT NULL THEN json_build_object(
        'id', step.id, 'workflow_id', step.workflow_id, 'name', step.name, 'state', step.state,
        'deps', step.deps, 'doomed', step.doomed, 'released_at', step.released_at,
        'debug', step.debug, 'budgeted', step.budgeted,
        -- Spans of the attempts it follows, where whoever inserted it traces.
        'spans', CASE WHEN job.meta ? 'traceparent' AND step.deps <> '{}' THEN /* schema */baton_spans(step.id) END,
        'stored', (SELECT checkpoint.value FROM /* schema */workflow_checkpoints AS checkpoint
                   WHERE checkpoint.step_id = step.id AND checkpoint.key = ''),
        'inputs', CASE WHEN cardinality(step.deps) BETWEEN 1 AND 64
                            AND (job.worker <> 'baton.StepWorker' OR job.args ? 'refs') THEN
          CASE WHEN (SELECT coalesce(sum(pg_column_size(dependency.result)), 0) FROM /* schema */workflow_edges AS edge
                     JOIN /* schema */workflow_nodes AS dependency ON dependency.id = edge.dependency_id
                     WHERE edge.dependent_id = step.id) <= 65536
               THEN (SELECT coalesce(json_object_agg(dependency.name, dependency.result), '{}')
                     FROM /* schema */workflow_edges AS edge
                     JOIN /* schema */workflow_nodes AS dependency ON dependency.id = edge.dependency_id
                     WHERE edge.dependent_id = step.id AND dependency.result IS NOT NULL) END END
      ) END
    )::text ORDER BY job.priority, job.scheduled_at, job.id)
  INTO jobs
  FROM claimed AS job LEFT JOIN /* schema */workflow_nodes AS step ON step.job_id = job.id;
  RETURN jobs;
END
$$;
