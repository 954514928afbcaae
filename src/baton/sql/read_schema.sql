-- read_schema: what is there of Oban and Baton in a schema. Params: prefix. One row.
SELECT
  to_regclass(format('%%I.oban_jobs', %(prefix)s::text)) IS NOT NULL AS oban,
  to_regclass(format('%%I.workflow_migrations', %(prefix)s::text)) IS NOT NULL AS baton,
  ARRAY(SELECT name FROM unnest(ARRAY['workflows', 'workflow_nodes', 'workflow_edges', 'workflow_completions',
        'workflow_step_stats', 'workflow_debug_logs', 'workflow_checkpoints', 'workflow_repairs', 'workflow_subscribers',
        'workflow_consumers', 'workflow_deliveries', 'workflow_progress', 'workflow_streams', 'workflow_budgets',
        'workflow_budget_runs', 'workflow_reservations', 'baton_workflows',
        'baton_steps', 'baton_edges', 'baton_llm_calls']) AS name
        WHERE to_regclass(format('%%I.%%I', %(prefix)s::text, name)) IS NOT NULL) AS tables,
  ARRAY(SELECT name FROM unnest(ARRAY['baton_jobs_updated', 'baton_jobs_deleted', 'baton_jobs_truncated']) AS name
        WHERE NOT EXISTS (SELECT FROM pg_trigger AS present
                          WHERE present.tgrelid = to_regclass(format('%%I.oban_jobs', %(prefix)s::text))
                            AND present.tgname = name AND present.tgenabled IN ('O', 'A'))) AS missing_triggers
