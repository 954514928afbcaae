-- add_consumer: have the end of every run delivered to a consumer from now on. Params: name.
INSERT INTO /* schema */workflow_consumers (name) VALUES (%(name)s) ON CONFLICT DO NOTHING
