bytea of 200 MB in one table, made in the server, and texts that are stored out of line.
--! whole
--! owner
CREATE TABLE files (id int PRIMARY KEY, name text NOT NULL, content bytea NOT NULL);
ALTER TABLE files ALTER COLUMN content SET STORAGE EXTERNAL;
INSERT INTO files SELECT n, 'file ' || n, decode(repeat(md5(n::text), 655360), 'hex') FROM generate_series(1, 20) n;
--! up
{up};
ALTER TABLE files ADD COLUMN size bigint;
UPDATE files SET size = length(content);
--! down
ALTER TABLE files DROP COLUMN size;
{down}
--! wrong RollbackNotEqual table public.files: rows changed
UPDATE files SET content = set_byte(content, 10000000, 0) WHERE id = 20;
