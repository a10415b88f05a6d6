Policies, forced ones as well, on tables whose owner is the migration role.
--! root
ALTER ROLE migrator_{n} BYPASSRLS;
--! owner
CREATE TABLE notes (id serial PRIMARY KEY, owner name NOT NULL DEFAULT current_user, note text);
ALTER TABLE notes ENABLE ROW LEVEL SECURITY; ALTER TABLE notes FORCE ROW LEVEL SECURITY;
CREATE POLICY mine ON notes USING (owner = current_user) WITH CHECK (owner = current_user);
CREATE POLICY readers ON notes AS RESTRICTIVE FOR SELECT TO app_{n} USING (note IS NOT NULL);
INSERT INTO notes (owner, note) VALUES ('app_{n}', 'a'), ('another', 'b'), ('another', NULL);
GRANT SELECT, INSERT ON notes TO app_{n};
ALTER TABLE user_credits ENABLE ROW LEVEL SECURITY; CREATE POLICY all_rows ON user_credits USING (true);
--! up
{up};
DROP POLICY readers ON notes;
--! down
CREATE POLICY readers ON notes AS RESTRICTIVE FOR SELECT TO app_{n} USING (note IS NOT NULL);
{down}
--! wrong RollbackNotEqual notes
ALTER POLICY mine ON notes USING (true);
