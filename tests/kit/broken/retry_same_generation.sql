-- Broken retry: a finished run goes on in the generation that has ended.
-- instead of
    SET generation = workflow.generation + 1, paused_at
-- this
    SET paused_at
