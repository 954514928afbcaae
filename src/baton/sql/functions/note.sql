-- note: leave word for the statement that called, to take along in its own row as current_setting('baton.notes'), because what its
-- function returns is the same for each version of the library. Gone with the transaction, and with a savepoint.
-- p_lines: JSON objects, a line each: a run that finished, or {"stopped": {job id: reason}} for steps that end cancelled whatever
-- their attempts came to. Somebody else's statement takes no notes along and may end any number of runs: beyond a million
-- characters nothing is noted.
CREATE OR REPLACE FUNCTION /* schema */baton_note(p_lines text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  noted text := coalesce(current_setting('baton.notes', true), '');
BEGIN
  IF length(noted) < 1000000 THEN
    noted := set_config('baton.notes', concat_ws(E'\n', nullif(noted, ''), p_lines), true);
  END IF;
END
$$;
