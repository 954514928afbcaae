-- baton_edges: one row per dependency: a step that another waits for. Public: columns are only ever added, at the end.
-- Whoever may read the view needs no rights on the tables. It leaves no row out, so it need not be a barrier.
CREATE OR REPLACE VIEW /* schema */baton_edges AS
SELECT
  dependent.workflow_id,
  edge.dependency_id,
  dependency.name AS dependency,
  edge.dependent_id,
  dependent.name AS dependent
FROM /* schema */workflow_edges AS edge
JOIN /* schema */workflow_nodes AS dependent ON dependent.id = edge.dependent_id
JOIN /* schema */workflow_nodes AS dependency ON dependency.id = edge.dependency_id
