-- Broken ack: takes what a cancelled attempt came to for what it is.
-- instead of
SELECT coalesce(step.state = 'released' AND step.cancel_requested_at IS NOT NULL, false) OR coalesce(
-- this
SELECT false OR coalesce(
