-- Broken ack: believes every outcome, whoever holds the job by now.
-- instead of
      WHERE job.state::text = 'executing' AND job.attempted_at = attempt.attempted_at
-- this
-- instead of
    WHERE job.state::text = 'executing' AND job.attempted_at = outcome.attempted_at
      AND outcome.state IN
-- this
    WHERE outcome.state IN
-- instead of
    WHERE job.id = outcome.id AND job.state::text = 'executing' AND job.attempted_at = outcome.attempted_at;
-- this
    WHERE job.id = outcome.id;
