-- narrowed: what lists and counts of workflows leave, by what is asked of them; null for what is not. Params: name; key; name_prefix,
-- a pattern of LIKE; search, one of ILIKE, with first_id and last_id; inserted_after, inserted_before.
  (%(name)s::text IS NULL OR name = %(name)s::text)
  AND (%(key)s::text IS NULL OR key = %(key)s::text)
  AND (%(name_prefix)s::text IS NULL OR name LIKE %(name_prefix)s::text)
  AND (%(search)s::text IS NULL OR name ILIKE %(search)s::text OR key ILIKE %(search)s::text
       OR id BETWEEN %(first_id)s::uuid AND %(last_id)s::uuid)
  AND (%(inserted_after)s::timestamptz IS NULL OR inserted_at >= %(inserted_after)s::timestamptz)
  AND (%(inserted_before)s::timestamptz IS NULL OR inserted_at < %(inserted_before)s::timestamptz)
