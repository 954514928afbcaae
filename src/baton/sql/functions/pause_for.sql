-- pause_for: pause the run of a step that found a budget exhausted, unless that was raised meanwhile: it is looked at again under its lock,
-- and whoever adds to it commits before looking for runs to resume. What was asked for is given as to reserve.
-- Returns paused; room, if there is some now; ended, for a run that has finished or is being cancelled, which nothing would resume.
CREATE OR REPLACE FUNCTION /* schema */baton_pause_for(
  p_workflow uuid, p_budget bigint, p_usd numeric, p_tokens bigint, p_start boolean
) RETURNS text LANGUAGE plpgsql /* pinned */ AS $$
DECLARE
  run record;
BEGIN
  IF NOT /* schema */baton_lock_jobs(p_workflow, false) THEN
    RETURN 'ended';
  END IF;
  SELECT workflow.finished_at, workflow.cancel_cause, workflow.paused_at INTO run
  FROM /* schema */workflows AS workflow WHERE workflow.id = p_workflow;
  IF run.finished_at IS NOT NULL OR run.cancel_cause IS NOT NULL THEN
    RETURN 'ended';
  END IF;
  PERFORM 1 FROM /* schema */workflow_budgets AS budget WHERE budget.id = p_budget FOR NO KEY UPDATE;
  IF coalesce(/* schema */baton_short_of(ARRAY[p_budget], p_usd, p_tokens, p_start) ->> 'status', '') <> 'exhausted' THEN
    RETURN 'room';
  END IF;
  IF run.paused_at IS NULL THEN
    PERFORM /* schema */baton_pause(p_workflow);
    UPDATE /* schema */workflows AS workflow SET paused_for = p_budget
    WHERE workflow.id = p_workflow AND workflow.paused_at IS NOT NULL AND workflow.paused_for IS NULL;
  END IF;
  RETURN 'paused';
END
$$;
