-- Broken doom: dooms those as well that were told to ignore the failure.
-- instead of
        AND NOT CASE cause.state WHEN 'cancelled' THEN step.ignore_cancelled
-- this
        AND NOT CASE cause.state WHEN 'cancelled' THEN false
-- instead of
                                 WHEN 'discarded' THEN step.ignore_discarded
-- this
                                 WHEN 'discarded' THEN false
