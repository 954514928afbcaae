-- S18 overlap: a job was started again although its attempt before had neither ended so nor lost its process: no kill, freeze or
-- stop of it, no retry by a user. That it also overlaps with it, or only repeats what had been done, is a matter of luck.
SELECT again.run, coalesce(again.step, 'job ' || again.job_id), 'attempt ' || again.attempt || ' by ' || again.pid || ' after '
       || coalesce(before.phase, 'no end') || ' of attempt ' || before.attempt || ' by ' || before.pid
FROM lab.attempts AS again
JOIN LATERAL (
  SELECT * FROM lab.attempts AS other
  WHERE other.job_id = again.job_id AND other.attempted_at < again.attempted_at ORDER BY other.attempted_at DESC LIMIT 1
) AS before ON true
WHERE NOT (coalesce(before.phase, '') IN ('error', 'snooze', 'stopped') AND before.ended_at <= again.started_at)
  AND NOT EXISTS (
    SELECT FROM lab.faults AS fault
    WHERE fault.pid = before.pid AND fault.kind IN ('kill', 'freeze', 'term')
      AND fault.began_at <= again.attempted_at AT TIME ZONE 'UTC'
      AND coalesce(fault.ended_at, 'infinity') >= before.attempted_at AT TIME ZONE 'UTC')
  AND NOT EXISTS (
    SELECT FROM lab.actions AS action
    WHERE action.run = again.run AND action.what IN ('retry', 'oban_retry')
      AND action.called_at <= again.started_at
      AND coalesce(action.answered_at, 'infinity') >= before.attempted_at AT TIME ZONE 'UTC')
