-- report: write what steps tell while they run: how far they are, and the chunks they streamed, of many steps in one commit.
-- It counts only for the attempt that holds its job, as in `store`, and only while its step has not settled; a job row that somebody
-- has locked is left for the next call, so this waits for nobody while it holds others. Sent again, it writes nothing twice.
-- p_jobs, p_attempted_at, p_done, p_total, p_message, p_streamed: one each per attempt; the last is how many chunks it has streamed
-- since its claim, those of this call included. p_chunk_jobs, p_positions, p_chunks: the chunks of this call as JSON text, each with
-- its place since the claim. An attempt that is claimed again, after a snooze, goes on in its stream.
-- Returns jobs whose report was written, and those whose attempt is over.
CREATE OR REPLACE FUNCTION /* schema */baton_report(
  p_jobs bigint[], p_attempted_at timestamp[], p_done double precision[], p_total double precision[], p_message text[],
  p_streamed integer[], p_chunk_jobs bigint[], p_positions integer[], p_chunks text[],
  OUT written bigint[], OUT late bigint[]
) LANGUAGE plpgsql /* pinned */ AS $$
BEGIN
  SELECT coalesce(array_agg(held.id), '{}') INTO written FROM (
    SELECT job.id FROM unnest(p_jobs, p_attempted_at) AS attempt (id, attempted_at)
    JOIN /* schema */oban_jobs AS job ON job.id = attempt.id
    WHERE job.state::text = 'executing' AND job.attempted_at = attempt.attempted_at
      AND EXISTS (SELECT FROM /* schema */workflow_nodes AS step WHERE step.job_id = job.id AND step.state = 'released')
    ORDER BY job.id FOR SHARE OF job SKIP LOCKED
  ) AS held;
  late := ARRAY(
    SELECT attempt.id FROM unnest(p_jobs, p_attempted_at) AS attempt (id, attempted_at)
    WHERE attempt.id <> ALL(written) AND NOT EXISTS (
      SELECT FROM /* schema */oban_jobs AS job JOIN /* schema */workflow_nodes AS step ON step.job_id = job.id
      WHERE job.id = attempt.id AND job.state::text = 'executing' AND job.attempted_at = attempt.attempted_at
        AND step.state = 'released'));

  WITH told AS (
    INSERT INTO /* schema */workflow_progress AS was (
      step_id, workflow_id, attempt, attempted_at, done, total, message, chunks, updated_at)
    SELECT step.id, step.workflow_id, job.attempt, given.attempted_at, given.done, given.total, given.message, given.streamed,
           clock_timestamp()
    FROM unnest(p_jobs, p_attempted_at, p_done, p_total, p_message, p_streamed)
           AS given (job_id, attempted_at, done, total, message, streamed)
    JOIN /* schema */oban_jobs AS job ON job.id = given.job_id
    JOIN /* schema */workflow_nodes AS step ON step.job_id = job.id
    WHERE given.job_id = ANY(written)
    ORDER BY step.id
    ON CONFLICT (step_id) DO UPDATE
    SET attempt = excluded.attempt, attempted_at = excluded.attempted_at, done = excluded.done, total = excluded.total,
        message = excluded.message, updated_at = excluded.updated_at,
        first_chunk = CASE WHEN was.attempted_at = excluded.attempted_at THEN was.first_chunk
                           WHEN was.attempt = excluded.attempt THEN was.chunks ELSE 0 END,
        chunks = CASE WHEN was.attempted_at = excluded.attempted_at THEN greatest(was.chunks, was.first_chunk + excluded.chunks)
                      WHEN was.attempt = excluded.attempt THEN was.chunks + excluded.chunks ELSE excluded.chunks END
    RETURNING was.step_id, was.workflow_id, was.attempt, was.first_chunk
  )
  INSERT INTO /* schema */workflow_streams (step_id, attempt, position, workflow_id, chunk, bytes)
  SELECT told.step_id, told.attempt, told.first_chunk + given.position, told.workflow_id, given.chunk::jsonb, octet_length(given.chunk)
  FROM unnest(p_chunk_jobs, p_positions, p_chunks) AS given (job_id, position, chunk)
  JOIN /* schema */workflow_nodes AS step ON step.job_id = given.job_id
  JOIN told ON told.step_id = step.id
  ON CONFLICT (step_id, attempt, position) DO NOTHING;

  PERFORM /* schema */baton_announce(ARRAY(SELECT step.id FROM /* schema */workflow_nodes AS step WHERE step.job_id = ANY(written)));
END
$$;
