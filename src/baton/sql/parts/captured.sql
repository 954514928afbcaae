-- captured: what is said of a captured call, between the list and WHERE.
      SELECT log.id, log.step_id, log.attempt, log.model, log.call_id, log.call_key, log.request::text AS request,
             log.response::text AS response, log.context::text AS context, log.error, log.inserted_at,
             coalesce(octet_length(log.request::text), 0) + coalesce(octet_length(log.response::text), 0)
               + coalesce(octet_length(log.context::text), 0) + coalesce(octet_length(log.error), 0) AS size
      FROM /* schema */workflow_debug_logs AS log
