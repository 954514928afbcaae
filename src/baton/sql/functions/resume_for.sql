-- resume_for: let a run go on that a budget paused and that was raised since, or deleted. Returns whether it goes on now.
CREATE OR REPLACE FUNCTION /* schema */baton_resume_for(p_workflow uuid) RETURNS boolean LANGUAGE plpgsql /* pinned */ AS $$
BEGIN
  IF NOT /* schema */baton_lock_jobs(p_workflow, false) THEN
    RETURN false;
  END IF;
  PERFORM 1 FROM /* schema */workflows AS workflow LEFT JOIN /* schema */workflow_budgets AS budget ON budget.id = workflow.paused_for
  WHERE workflow.id = p_workflow AND workflow.paused_for IS NOT NULL AND (budget.id IS NULL OR budget.raised_at >= workflow.paused_at);
  IF NOT FOUND THEN
    RETURN false;
  END IF;
  PERFORM /* schema */baton_resume(p_workflow);
  RETURN true;
END
$$;
