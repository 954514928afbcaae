-- delete_producers: a process takes its leave, for these producers. Params: producers uuid[]. Returns nothing.
DELETE FROM /* schema */oban_producers AS producer WHERE producer.uuid = ANY(%(producers)s::uuid[])
