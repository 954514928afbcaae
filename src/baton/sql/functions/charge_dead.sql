-- charge_dead: charge what attempts had reserved that died, also where no other call needs it; see charge_lost. Returns how many
-- reservations there were.
CREATE OR REPLACE FUNCTION /* schema */baton_charge_dead() RETURNS bigint LANGUAGE plpgsql /* pinned */ AS $$
DECLARE
  budgets bigint[];
BEGIN
  budgets := ARRAY(
    SELECT budget.id FROM /* schema */workflow_budgets AS budget WHERE budget.id IN (
      SELECT reservation.budget_id FROM /* schema */workflow_reservations AS reservation
      WHERE reservation.lost_at IS NULL AND NOT EXISTS (
        SELECT FROM /* schema */oban_jobs AS job
        WHERE job.id = reservation.job_id AND job.state::text = 'executing' AND job.attempted_at = reservation.attempted_at))
    ORDER BY budget.id FOR NO KEY UPDATE);
  RETURN /* schema */baton_charge_lost(budgets);
END
$$;
