-- lock_tables: before they are altered, first of all and in the order in which an ack comes to them. So no function that settles a
-- step is half way when what it calls next is replaced by another version's: who has read a step holds this up, and who has not
-- begins after it.
LOCK TABLE /* schema */workflow_nodes, /* schema */workflows IN ACCESS EXCLUSIVE MODE;
