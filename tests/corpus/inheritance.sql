Tables that inherit from two parents, with rows in each, and a check that the children do not inherit.
--! owner
CREATE TABLE things (id serial PRIMARY KEY, name text NOT NULL, CONSTRAINT named CHECK (name <> '') NO INHERIT);
CREATE TABLE priced (price numeric(12, 2) NOT NULL DEFAULT 0);
CREATE TABLE goods (colour text) INHERITS (things, priced);
CREATE TABLE rare_goods (found date) INHERITS (goods);
INSERT INTO things (name) SELECT 'thing ' || n FROM generate_series(1, 50) n;
INSERT INTO goods (name, price) VALUES ('', 1.50), ('b', 2);
INSERT INTO rare_goods (name, price, found) VALUES ('c', 3, '2024-02-29');
--! up
{up};
ALTER TABLE things ADD COLUMN note text;
ALTER TABLE rare_goods NO INHERIT goods;
--! down
ALTER TABLE rare_goods INHERIT goods;
ALTER TABLE things DROP COLUMN note;
ALTER TABLE rare_goods DROP COLUMN IF EXISTS note;
{down}
--! wrong RollbackNotEqual goods
UPDATE ONLY goods SET price = price + 1;
