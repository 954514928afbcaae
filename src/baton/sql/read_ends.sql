-- read_ends: ends of these workflows, of the generations after the one given for each. Params: ids uuid[], after integer[].
-- Returns: a row for each, by workflow and generation.
SELECT completion.event_id, completion.workflow_id, workflow.name AS workflow_label, completion.generation,
       completion.outcome, completion.failed_steps, completion.finished_at AS timestamp
FROM unnest(%(ids)s::uuid[], %(after)s::integer[]) AS known (id, generation)
JOIN /* schema */workflow_completions AS completion
  ON completion.workflow_id = known.id AND completion.generation > known.generation
JOIN /* schema */workflows AS workflow ON workflow.id = completion.workflow_id
ORDER BY completion.workflow_id, completion.generation
