-- fund: write the budgets of runs that are being inserted, and which run draws on which.
-- One element per budget of a run; a key is that of a shared budget, null makes the run's own. A shared one is made if it is not there.
-- Otherwise the limits declared last hold, and what was spent and added stays; one that is declared as it was is not locked, so that a
-- caller whose transaction stays open does not hold up the calls of others.
CREATE OR REPLACE FUNCTION /* schema */baton_fund(
  p_workflows uuid[], p_keys text[], p_usd numeric[], p_tokens bigint[], p_calls bigint[], p_on_exhausted text[], p_unpriced text[]
) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  declared integer[];
  changed bigint[];
  found bigint;
BEGIN
  INSERT INTO /* schema */workflow_budgets (workflow_id, limit_usd, limit_tokens, limit_calls, on_exhausted, unpriced)
  SELECT given.workflow, given.usd, given.tokens, given.calls, given.on_exhausted, given.unpriced
  FROM unnest(p_workflows, p_keys, p_usd, p_tokens, p_calls, p_on_exhausted, p_unpriced)
       AS given (workflow, key, usd, tokens, calls, on_exhausted, unpriced)
  WHERE given.key IS NULL;
  INSERT INTO /* schema */workflow_budget_runs (workflow_id, budget_id)
  SELECT budget.workflow_id, budget.id FROM /* schema */workflow_budgets AS budget
  WHERE budget.workflow_id IN (SELECT given.workflow FROM unnest(p_workflows, p_keys) AS given (workflow, key) WHERE given.key IS NULL);

  -- Places of the last declaration of each key, in the order of the keys: two callers with the same ones queue up.
  declared := ARRAY(
    SELECT last.place FROM (
      SELECT DISTINCT ON (given.key) given.key, given.place::integer
      FROM unnest(p_keys) WITH ORDINALITY AS given (key, place) WHERE given.key IS NOT NULL ORDER BY given.key, given.place DESC
    ) AS last ORDER BY last.key);
  IF declared = '{}' THEN
    RETURN;
  END IF;
  LOOP
    INSERT INTO /* schema */workflow_budgets (key, limit_usd, limit_tokens, limit_calls, on_exhausted, unpriced)
    SELECT p_keys[place], p_usd[place], p_tokens[place], p_calls[place], p_on_exhausted[place], p_unpriced[place]
    FROM unnest(declared) AS place
    WHERE NOT EXISTS (SELECT FROM /* schema */workflow_budgets AS budget WHERE budget.key = p_keys[place])
    ORDER BY p_keys[place]
    ON CONFLICT (key) DO NOTHING;
    -- They must not be deleted before the runs are theirs.
    SELECT count(*) INTO found FROM (
      SELECT FROM unnest(declared) AS place JOIN /* schema */workflow_budgets AS budget ON budget.key = p_keys[place]
      ORDER BY budget.id FOR KEY SHARE OF budget
    ) AS kept;
    EXIT WHEN found = cardinality(declared);
  END LOOP;

  changed := ARRAY(
    SELECT budget.id FROM unnest(declared) AS place JOIN /* schema */workflow_budgets AS budget ON budget.key = p_keys[place]
    WHERE (budget.limit_usd, budget.limit_tokens, budget.limit_calls, budget.on_exhausted, budget.unpriced)
          IS DISTINCT FROM (p_usd[place], p_tokens[place], p_calls[place], p_on_exhausted[place], p_unpriced[place])
    ORDER BY budget.id FOR NO KEY UPDATE OF budget);
  IF changed <> '{}' THEN
    UPDATE /* schema */workflow_budgets AS budget
    SET limit_usd = p_usd[place], limit_tokens = p_tokens[place], limit_calls = p_calls[place],
        on_exhausted = p_on_exhausted[place], unpriced = p_unpriced[place], raised_at = clock_timestamp()
    FROM unnest(declared) AS place WHERE budget.key = p_keys[place] AND budget.id = ANY(changed);
  END IF;

  INSERT INTO /* schema */workflow_budget_runs (workflow_id, budget_id)
  SELECT given.workflow, budget.id FROM unnest(p_workflows, p_keys) AS given (workflow, key)
  JOIN /* schema */workflow_budgets AS budget ON budget.key = given.key;
END
$$;
