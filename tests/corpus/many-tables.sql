10,000 tables in 20 schemas, each with a key and a row.
--! whole
--! owner
DO $$ BEGIN
    FOR s IN 1..20 LOOP
        EXECUTE format('CREATE SCHEMA s%s', s);
        FOR t IN 1..500 LOOP
            EXECUTE format('CREATE TABLE s%s.t%s (id int PRIMARY KEY, note text)', s, t);
            EXECUTE format('INSERT INTO s%s.t%s VALUES (%s, %L)', s, t, t, t);
        END LOOP;
        COMMIT;
    END LOOP;
END $$;
--! up
{up};
ALTER TABLE s7.t77 ADD COLUMN more int;
--! down
ALTER TABLE s7.t77 DROP COLUMN more;
{down}
--! wrong RollbackNotEqual table s20.t500: rows changed
UPDATE s20.t500 SET note = 'x';
