-- create_views: make those of our views that are not there; a view goes with the job table, when Oban is installed anew.
DO $views$
DECLARE
  missing record;
BEGIN
  FOR missing IN
    SELECT wanted.name, wanted.definition FROM (VALUES
/* definitions */
    ) AS wanted (name, definition)
    WHERE to_regclass('/* schema */' || wanted.name) IS NULL
  LOOP
    EXECUTE missing.definition;
  END LOOP;
END
$views$;
