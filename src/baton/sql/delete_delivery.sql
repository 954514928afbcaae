-- delete_delivery: it was delivered, by whoever took it at this try. Params: id, tries.
DELETE FROM /* schema */workflow_deliveries WHERE id = %(id)s AND tries = %(tries)s
