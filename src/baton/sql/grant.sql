-- grant: what a role needs to run workers and insert workflows, besides its rights on Oban's tables.
DO $$
DECLARE
  ours record;
BEGIN
  FOR ours IN
    SELECT format('GRANT EXECUTE ON FUNCTION %s TO /* role */', routine.oid::regprocedure) AS command FROM pg_proc AS routine
    WHERE routine.pronamespace = '/* prefix */'::regnamespace AND routine.proname IN (/* functions */)
  LOOP
    EXECUTE ours.command;
  END LOOP;
END
$$;
GRANT USAGE ON SCHEMA "/* prefix */" TO /* role */;
GRANT SELECT, INSERT, UPDATE, DELETE ON /* schema */workflows, /* schema */workflow_nodes, /* schema */workflow_edges, /* schema */workflow_completions,
  /* schema */workflow_checkpoints, /* schema */workflow_repairs, /* schema */workflow_subscribers, /* schema */workflow_consumers,
  /* schema */workflow_deliveries, /* schema */workflow_debug_logs, /* schema */workflow_progress,
  /* schema */workflow_streams, /* schema */workflow_step_stats, /* schema */workflow_budgets, /* schema */workflow_budget_runs,
  /* schema */workflow_reservations TO /* role */;
GRANT SELECT ON /* schema */workflow_migrations, /* schema */baton_workflows, /* schema */baton_steps, /* schema */baton_edges,
  /* schema */baton_llm_calls TO /* role */;
GRANT SELECT, INSERT, UPDATE, DELETE ON /* schema */oban_jobs, /* schema */oban_leaders, /* schema */oban_producers TO /* role */;
GRANT USAGE ON ALL SEQUENCES IN SCHEMA "/* prefix */" TO /* role */;
