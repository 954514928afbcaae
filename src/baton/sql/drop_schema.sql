-- drop_schema: remove what Baton created in a schema, and nothing of Oban's.
DO $$
DECLARE
  ours record;
BEGIN
  FOR ours IN
    SELECT format('DROP TRIGGER %I ON /* schema */oban_jobs', trigger.tgname) AS command
    FROM pg_trigger AS trigger
    WHERE trigger.tgrelid = to_regclass('/* schema */oban_jobs') AND trigger.tgname IN ('baton_jobs_updated', 'baton_jobs_deleted', 'baton_jobs_truncated')
    UNION ALL
    SELECT format('DROP FUNCTION %s', routine.oid::regprocedure) FROM pg_proc AS routine
    WHERE routine.pronamespace = '/* prefix */'::regnamespace AND routine.proname IN (/* functions */)
  LOOP
    EXECUTE ours.command;
  END LOOP;
END
$$;
DROP VIEW IF EXISTS /* schema */baton_workflows, /* schema */baton_steps, /* schema */baton_edges,
  /* schema */baton_llm_calls;
DROP TABLE IF EXISTS /* schema */workflows, /* schema */workflow_nodes, /* schema */workflow_edges,
  /* schema */workflow_completions, /* schema */workflow_checkpoints, /* schema */workflow_repairs,
  /* schema */workflow_subscribers, /* schema */workflow_consumers, /* schema */workflow_deliveries,
  /* schema */workflow_debug_logs, /* schema */workflow_progress, /* schema */workflow_streams,
  /* schema */workflow_step_stats, /* schema */workflow_budgets, /* schema */workflow_budget_runs, /* schema */workflow_reservations,
  /* schema */workflow_migrations;
