-- S19 limit: a process ran more jobs of a queue at once than it may, by what the witness saw.
SELECT NULL::uuid, attempt.queue, 'process ' || attempt.pid || ' ran ' || count(*) || ' at once'
FROM lab.attempts AS attempt
JOIN lab.attempts AS other
  ON other.pid = attempt.pid AND other.queue = attempt.queue
 AND attempt.started_at BETWEEN other.started_at AND other.ended_at
JOIN lab.limits ON limits.queue = attempt.queue
GROUP BY attempt.id, attempt.pid, attempt.queue, limits.jobs HAVING count(*) > limits.jobs
