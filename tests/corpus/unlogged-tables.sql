Unlogged tables, with rows, an identity and a partition.
--! since 15
--! owner
CREATE UNLOGGED TABLE sessions (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, data jsonb);
INSERT INTO sessions (data) SELECT jsonb_build_object('n', n) FROM generate_series(1, 30) n;
--! up
{up};
ALTER TABLE sessions SET LOGGED;
--! down
ALTER TABLE sessions SET UNLOGGED;
{down}
--! wrong RollbackNotEqual sessions
ALTER TABLE sessions SET LOGGED;
