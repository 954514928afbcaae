-- Broken rescue_dead: takes for dead at once whose row is gone, as all are after a crash of the server.
-- instead of
         moment, moment
-- this
         moment - interval '1 day', moment - interval '1 day'
-- instead of
      AND (heard IS NULL OR heard <= silent.since)
-- this
