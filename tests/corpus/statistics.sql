Extended statistics, options of tables, replica identities, functions with settings, aggregates and operators.
--! owner
CREATE STATISTICS of_ledger (dependencies) ON user_id, type FROM credit_transactions;
ALTER TABLE credit_transactions SET (fillfactor = 70, autovacuum_enabled = off);
ALTER TABLE subscriptions REPLICA IDENTITY FULL;
CREATE FUNCTION add(int, int) RETURNS int LANGUAGE sql IMMUTABLE SET work_mem = '1MB' AS 'SELECT $1 + $2';
CREATE AGGREGATE all_of (int) (SFUNC = add, STYPE = int, INITCOND = '0');
CREATE OPERATOR @+ (LEFTARG = int, RIGHTARG = int, FUNCTION = add);
CREATE PROCEDURE nothing() LANGUAGE plpgsql AS $$ BEGIN COMMIT; END $$;
CREATE FUNCTION later(int DEFAULT 1, VARIADIC text[] DEFAULT '{}') RETURNS SETOF users LANGUAGE sql AS 'SELECT * FROM users';
--! up
{up};
DROP FUNCTION later; DROP STATISTICS of_ledger;
--! down
CREATE STATISTICS of_ledger (dependencies) ON user_id, type FROM credit_transactions;
CREATE FUNCTION later(int DEFAULT 1, VARIADIC text[] DEFAULT '{}') RETURNS SETOF users LANGUAGE sql AS 'SELECT * FROM users';
{down}
--! wrong RollbackNotEqual all_of
DROP AGGREGATE all_of(int);
