-- resign: give up the leader's lease, if it is still the one that was taken. Params: name, node, elected_at.
DELETE FROM /* schema */oban_leaders
WHERE name = %(name)s AND node = %(node)s AND elected_at = %(elected_at)s::timestamp
