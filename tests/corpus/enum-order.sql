An enum's value cannot be removed: a down SQL that leaves it is no rollback.
--! refused Rehearse RollbackNotEqual type public.mood
--! owner
CREATE TYPE mood AS ENUM ('ok'); CREATE TABLE moods (feels mood);
--! up
{up};
ALTER TYPE mood ADD VALUE 'bad';
