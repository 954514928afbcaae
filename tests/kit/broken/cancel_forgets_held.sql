-- Broken cancel: ends what could start now and forgets what waits.
-- instead of
    WHERE step.workflow_id = p_workflow AND step.state IN ('held', 'released')
-- this
    WHERE step.workflow_id = p_workflow AND step.state = 'released'
