-- run: what is said of a workflow without its steps, by its row alone.
  id, name, key, generation, steps, unsettled, failed, outcome, inserted_at, finished_at,
  paused_at, cancel_requested_at, cancel_reason, deadline_at, rerun_of, paused_for IS NOT NULL AS paused_by_budget
