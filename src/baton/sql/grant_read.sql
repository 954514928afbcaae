-- grant_read: what a role needs to read runs and steps, and nothing else: our views.
GRANT USAGE ON SCHEMA "/* prefix */" TO /* role */;
GRANT SELECT ON /* schema */baton_workflows, /* schema */baton_steps, /* schema */baton_edges, /* schema */baton_llm_calls TO /* role */;
