-- count_steps: how many steps of one workflow are in each state. Params: id. Returns: state, count.
SELECT found.state, count(*)
FROM (
  -- A job is looked up only for a step that has not settled.
  SELECT /* state */ AS state
  FROM /* schema */workflow_nodes AS step WHERE step.workflow_id = %(id)s
) AS found
GROUP BY found.state
