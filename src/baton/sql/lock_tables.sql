-- lock_tables: before they are altered, first of all and in the order in which an ack comes to them. An ack that has begun is waited
-- for and not held up half way, where it and the migration would wait for each other.
LOCK TABLE /* schema */workflow_nodes, /* schema */workflows IN ACCESS EXCLUSIVE MODE;
