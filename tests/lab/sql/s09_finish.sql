-- S9 finish: a run is finished when all of its steps are, with one completion row for each generation that ended, and none before.
SELECT workflow.id, NULL, CASE WHEN workflow.finished_at IS NULL THEN 'live' ELSE 'finished' END || ' with '
       || count(*) FILTER (WHERE step.state IN ('held', 'released')) || ' unsettled steps'
FROM workflows AS workflow JOIN workflow_nodes AS step ON step.workflow_id = workflow.id
GROUP BY workflow.id
HAVING (workflow.finished_at IS NULL) <> bool_or(step.state IN ('held', 'released'))
UNION ALL
SELECT workflow.id, NULL, 'generation ' || generation.number || ' has ' || count(completion.workflow_id) || ' completion rows'
FROM workflows AS workflow
CROSS JOIN generate_series(1, workflow.generation) AS generation (number)
LEFT JOIN workflow_completions AS completion
  ON completion.workflow_id = workflow.id AND completion.generation = generation.number
GROUP BY workflow.id, generation.number
HAVING count(completion.workflow_id) <> CASE WHEN generation.number = workflow.generation AND workflow.finished_at IS NULL THEN 0 ELSE 1 END
