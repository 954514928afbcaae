-- announce_runs: tell those who follow them that something about these runs has changed, when this commits; see announce.
-- p_steps: whether any of their steps may have changed too, so that each is read anew; otherwise only the run itself has. Of more
-- than 1,000 runs none is named to those who follow all: they look at everything.
CREATE OR REPLACE FUNCTION /* schema */baton_announce_runs(p_workflows uuid[], p_steps boolean) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  everything boolean;
BEGIN
  IF NOT EXISTS (
    SELECT FROM /* schema */workflow_subscribers AS subscriber
    WHERE subscriber.topic >= 'w' AND subscriber.expires_at > clock_timestamp()
  ) OR pg_notification_queue_usage() >= 0.5 THEN
    RETURN;
  END IF;
  everything := EXISTS (
    SELECT FROM /* schema */workflow_subscribers AS subscriber
    WHERE subscriber.topic = 'workflow:all' AND subscriber.expires_at > clock_timestamp());
  IF everything AND cardinality(p_workflows) > 1000 THEN
    PERFORM pg_notify('/* prefix */.oban_workflow', '{"id": null}');
    everything := false;
  END IF;
  PERFORM pg_notify('/* prefix */.oban_workflow', CASE WHEN p_steps THEN json_build_object('id', run.id)
                                                ELSE json_build_object('id', run.id, 'steps', '[]'::json) END::text)
  FROM unnest(p_workflows) AS run (id)
  WHERE everything OR EXISTS (
    SELECT FROM /* schema */workflow_subscribers AS subscriber
    WHERE subscriber.topic = 'workflow:' || run.id AND subscriber.expires_at > clock_timestamp());
END
$$;
