-- delete_budget: forget a shared budget; runs that draw on it go on without it. Returns whether there was one.
CREATE OR REPLACE FUNCTION /* schema */baton_delete_budget(p_key text) RETURNS boolean LANGUAGE plpgsql /* pinned */ AS $$
DECLARE
  deleted bigint;
BEGIN
  DELETE FROM /* schema */workflow_budgets AS budget WHERE budget.key = p_key RETURNING budget.id INTO deleted;
  DELETE FROM /* schema */workflow_budget_runs AS drawn WHERE drawn.budget_id = deleted;
  DELETE FROM /* schema */workflow_reservations AS reservation WHERE reservation.budget_id = deleted;
  RETURN deleted IS NOT NULL;
END
$$;
