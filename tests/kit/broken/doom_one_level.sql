-- Broken doom: cancels the steps next to the failure and forgets those behind them.
-- instead of
    EXIT WHEN level IS NULL;
-- this
    EXIT WHEN level IS NULL OR doomed <> '{}';
