-- reset: forget every workflow, as Oban's reset forgets every job.
TRUNCATE /* schema */workflows, /* schema */workflow_nodes, /* schema */workflow_edges, /* schema */workflow_completions,
  /* schema */workflow_checkpoints, /* schema */workflow_repairs, /* schema */workflow_subscribers,
  /* schema */workflow_deliveries, /* schema */workflow_debug_logs,
  /* schema */workflow_progress, /* schema */workflow_streams,
  /* schema */workflow_step_stats, /* schema */workflow_budgets, /* schema */workflow_budget_runs, /* schema */workflow_reservations
