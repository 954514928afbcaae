-- spent: which rows of workflow_step_stats a report is about. Params: from and to, or null; name_prefix, a pattern of LIKE, or null.
  (%(from)s::timestamptz IS NULL OR stat.inserted_at >= %(from)s::timestamptz)
  AND (%(to)s::timestamptz IS NULL OR stat.inserted_at < %(to)s::timestamptz)
  AND (%(name_prefix)s::text IS NULL OR stat.workflow_label LIKE %(name_prefix)s::text)
