-- Broken ack: believes every outcome, whoever holds the job by now.
-- instead of
      WHERE job.state::text = 'executing' AND job.attempted_at = attempt.attempted_at
-- this
-- instead of
        WHERE held.id = outcome.id AND held.state::text = 'executing' AND held.attempted_at = outcome.attempted_at OFFSET 0
-- this
        WHERE held.id = outcome.id OFFSET 0
-- instead of
    WHERE job.id = outcome.id AND job.state::text = 'executing' AND job.attempted_at = outcome.attempted_at;
-- this
    WHERE job.id = outcome.id;
