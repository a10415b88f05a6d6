Rules: a view that can be written by them, and a table that logs its changes.
--! owner
CREATE TABLE log (at timestamptz DEFAULT now(), what text);
CREATE TABLE items (id int PRIMARY KEY, name text); INSERT INTO items VALUES (1, 'a'), (2, 'b');
CREATE RULE logged AS ON UPDATE TO items DO ALSO INSERT INTO log (what) VALUES (OLD.name || ' to ' || NEW.name);
CREATE VIEW names AS SELECT name FROM items;
CREATE RULE renamed AS ON UPDATE TO names DO INSTEAD UPDATE items SET name = NEW.name WHERE name = OLD.name;
--! up
{up};
ALTER TABLE items RENAME COLUMN name TO title;
--! down
ALTER TABLE items RENAME COLUMN title TO name;
{down}
--! wrong RollbackNotEqual items
ALTER TABLE items DISABLE RULE logged; DROP RULE logged ON items;
