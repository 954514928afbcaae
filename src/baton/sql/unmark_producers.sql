-- unmark_producers: these producers go on without Baton, at the beat of Oban's own refresher. Params: producers uuid[]. Returns nothing.
UPDATE /* schema */oban_producers AS producer
SET updated_at = timezone('UTC', clock_timestamp()), meta = producer.meta - 'baton'
WHERE producer.uuid = ANY(%(producers)s::uuid[])
