-- deliver: take deliveries that are due, for p_lease seconds: whoever does not settle them by then has died or failed, and they are
-- due again. p_consumer: that consumer's finished runs; p_functions: steps with this code that a dependency doomed.
-- Returns JSON text of each, oldest first.
CREATE OR REPLACE FUNCTION /* schema */baton_deliver(p_consumer text, p_functions text[], p_limit integer, p_lease double precision)
RETURNS text[] LANGUAGE plpgsql /* pinned */ AS $$
DECLARE
  deliveries text[];
BEGIN
  WITH due AS (
    SELECT delivery.id FROM /* schema */workflow_deliveries AS delivery
    LEFT JOIN /* schema */workflow_nodes AS step ON step.id = delivery.step_id
    WHERE delivery.due_at <= clock_timestamp()
      AND (delivery.consumer = p_consumer OR step.function = ANY(p_functions))
    ORDER BY delivery.due_at, delivery.id LIMIT p_limit FOR UPDATE OF delivery SKIP LOCKED
  ), taken AS (
    UPDATE /* schema */workflow_deliveries AS delivery
    SET due_at = clock_timestamp() + make_interval(secs => p_lease), tries = delivery.tries + 1
    FROM due WHERE delivery.id = due.id RETURNING delivery.*
  )
  SELECT array_agg(json_build_object(
    'id', taken.id, 'consumer', taken.consumer, 'cause', taken.cause, 'reason', taken.reason, 'tries', taken.tries,
    'workflow_id', taken.workflow_id, 'workflow_label', workflow.name, 'generation', taken.generation,
    'event_id', completion.event_id, 'outcome', completion.outcome, 'failed_steps', completion.failed_steps,
    'timestamp', completion.finished_at, 'total_count', workflow.steps, 'function', step.function, 'job_id', step.job_id)::text ORDER BY taken.id)
  INTO deliveries
  FROM taken
  JOIN /* schema */workflows AS workflow ON workflow.id = taken.workflow_id
  LEFT JOIN /* schema */workflow_completions AS completion
    ON completion.workflow_id = taken.workflow_id AND completion.generation = taken.generation
  LEFT JOIN /* schema */workflow_nodes AS step ON step.id = taken.step_id;
  RETURN coalesce(deliveries, '{}');
END
$$;
