-- complete: write that runs have finished, once for each generation: the completion row, and what is to be delivered of it. Their own
-- rows say so already, in this transaction.
-- The consumer `baton.workflow.failed` is telemetry's, and takes failures alone.
-- Each is noted for the statement that called, a thousand of them, and a hundred names of each; see note.
CREATE OR REPLACE FUNCTION /* schema */baton_complete(p_ids uuid[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  told text;
BEGIN
  WITH written AS (
    INSERT INTO /* schema */workflow_completions (workflow_id, generation, outcome, failed_steps, finished_at)
    SELECT workflow.id, workflow.generation, workflow.outcome,
           CASE WHEN workflow.failed = 0 THEN '{}' ELSE ARRAY(
             SELECT step.name FROM /* schema */workflow_nodes AS step
             WHERE step.workflow_id = workflow.id AND step.state IN ('cancelled', 'discarded') ORDER BY step.position
           ) END,
           workflow.finished_at
    FROM /* schema */workflows AS workflow WHERE workflow.id = ANY(p_ids)
    RETURNING workflow_id, failed_steps
  )
  SELECT string_agg(json_build_object(
    'workflow_id', workflow.id, 'workflow_label', workflow.name, 'generation', workflow.generation, 'outcome', workflow.outcome,
    'failed_steps', written.failed_steps[1:100], 'failed_count', workflow.failed, 'total_count', workflow.steps,
    'timestamp', workflow.finished_at)::text, E'\n')
  INTO told
  FROM (SELECT * FROM written LIMIT 1000) AS written JOIN /* schema */workflows AS workflow ON workflow.id = written.workflow_id;
  PERFORM /* schema */baton_note(told);

  INSERT INTO /* schema */workflow_deliveries (workflow_id, generation, consumer)
  SELECT workflow.id, workflow.generation, consumer.name
  FROM /* schema */workflow_consumers AS consumer
  CROSS JOIN /* schema */workflows AS workflow
  WHERE workflow.id = ANY(p_ids) AND (workflow.outcome = 'failed' OR consumer.name <> 'baton.workflow.failed');
END
$$;
