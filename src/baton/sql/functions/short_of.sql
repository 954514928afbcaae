-- short_of: what stands in the way of a call that asks for so much of these budgets: the most decisive limit, null if there is none.
-- p_usd null asks for no dollars. p_start: no call yet, but the start of a step that will make one: it may begin while something is left.
-- Returns {status, budget, key, on_exhausted, kind, limit, spent, reserved, asked}; the status is waiting if nothing but the
-- reservations of others stands in the way, else exhausted.
CREATE OR REPLACE FUNCTION /* schema */baton_short_of(p_budgets bigint[], p_usd numeric, p_tokens bigint, p_start boolean) RETURNS jsonb
LANGUAGE plpgsql AS $$
BEGIN
  RETURN (
    SELECT jsonb_build_object(
      'status', CASE WHEN over.spent THEN 'exhausted' ELSE 'waiting' END, 'budget', budget.id, 'key', budget.key,
      'on_exhausted', budget.on_exhausted, 'kind', held.kind, 'limit', held.most::text, 'spent', held.spent::text,
      'reserved', held.reserved::text, 'asked', held.asked::text)
    FROM /* schema */workflow_budgets AS budget
    CROSS JOIN LATERAL (VALUES
      ('usd', budget.limit_usd + budget.added_usd, budget.spent_usd, budget.reserved_usd, coalesce(p_usd, 0)),
      ('tokens', budget.limit_tokens::numeric + budget.added_tokens, budget.spent_tokens::numeric, budget.reserved_tokens::numeric,
       p_tokens::numeric),
      ('calls', budget.limit_calls::numeric + budget.added_calls, budget.spent_calls::numeric, budget.reserved_calls::numeric,
       CASE WHEN p_start THEN 0 ELSE 1 END)
    ) AS held (kind, most, spent, reserved, asked)
    CROSS JOIN LATERAL (SELECT held.spent + held.asked > held.most OR (p_start AND held.spent >= held.most)) AS over (spent)
    WHERE budget.id = ANY(p_budgets) AND (over.spent OR (NOT p_start AND held.spent + held.reserved + held.asked > held.most))
    ORDER BY over.spent DESC, budget.on_exhausted = 'stop' DESC, budget.id, held.kind LIMIT 1);
END
$$;
