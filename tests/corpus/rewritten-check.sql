A check that PostgreSQL writes in another way once it was dumped and restored: a down SQL that makes it again is refused.
--! refused Rehearse RollbackNotEqual constraint short_kind changed
--! owner
CREATE TABLE kinds (kind varchar(20) CONSTRAINT short_kind CHECK (kind IN ('a', 'b')));
--! up
{up};
ALTER TABLE kinds DROP CONSTRAINT short_kind;
--! down
ALTER TABLE kinds ADD CONSTRAINT short_kind CHECK (kind IN ('a', 'b'));
{down}
