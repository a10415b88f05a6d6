Constraints that are checked at the commit, in a cycle, and constraint triggers.
--! owner
CREATE TABLE chickens (id int PRIMARY KEY, egg int NOT NULL);
CREATE TABLE eggs (id int PRIMARY KEY, chicken int NOT NULL REFERENCES chickens DEFERRABLE INITIALLY DEFERRED);
ALTER TABLE chickens ADD CONSTRAINT of_egg FOREIGN KEY (egg) REFERENCES eggs DEFERRABLE INITIALLY DEFERRED;
CREATE TABLE places (id int PRIMARY KEY, place int UNIQUE DEFERRABLE INITIALLY DEFERRED);
BEGIN; INSERT INTO chickens VALUES (1, 1), (2, 2); INSERT INTO eggs VALUES (1, 1), (2, 2);
INSERT INTO places SELECT n, n FROM generate_series(1, 9) n; COMMIT;
--! up
{up};
UPDATE places SET place = 10 - place;
INSERT INTO chickens VALUES (3, 3); INSERT INTO eggs VALUES (3, 3);
SET CONSTRAINTS ALL IMMEDIATE;
ALTER TABLE places ADD COLUMN note text;
--! down
ALTER TABLE places DROP COLUMN note;
DELETE FROM chickens WHERE id = 3; DELETE FROM eggs WHERE id = 3;
UPDATE places SET place = 10 - place;
SET CONSTRAINTS ALL IMMEDIATE;
{down}
--! wrong SqlFailed violates foreign key constraint
DELETE FROM eggs WHERE id = 1;
