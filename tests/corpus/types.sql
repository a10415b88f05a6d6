Domains, ranges, enums, composite types, arrays, jsonb, and rows that differ in their texts alone.
--! owner
CREATE DOMAIN email AS text CHECK (VALUE LIKE '%@%');
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE TYPE point3 AS (x int, y int, z numeric);
CREATE TYPE span AS RANGE (subtype = float8);
CREATE TABLE samples (id int PRIMARY KEY, mail email, feels mood DEFAULT 'ok', place point3, places point3[],
    during span, valid tstzrange, tags text[], matrix int[][], data jsonb, text json, n numeric, f float8, i interval,
    bits varbit(12), ip inet, mac macaddr, u uuid, m money, doc xml, search tsvector, box box);
CREATE INDEX ON samples USING gin (data jsonb_path_ops); CREATE INDEX ON samples USING gist (during);
INSERT INTO samples VALUES
    (1, 'a@b', 'happy', (1, 2, 3.50), ARRAY[(1, 2, NULL)::point3], '[1.5,2)', '[2024-01-01,)', '{a,NULL,"b,c"}',
     '{{1,2},{3,4}}', '{"a": [1, null, "x"]}', '{"b":  1}', 'NaN', 'Infinity', '1 mon -1 day', B'1010', '10.0.0.0/8',
     '08:00:2b:01:02:03', '00000000-0000-0000-0000-000000000001', 12.34, '<a/>', 'fat:2 cat:1', '((0,0),(1,1))'),
    (2, NULL, NULL, NULL, '{}', 'empty', NULL, '{}', NULL, 'null', 'null', 1.10, '-0', '0', B'', '::1', NULL, NULL,
     NULL, NULL, NULL, NULL);
--! up
{up};
ALTER TYPE mood RENAME VALUE 'sad' TO 'low';
ALTER TYPE point3 RENAME ATTRIBUTE z TO height;
ALTER DOMAIN email ADD CONSTRAINT short CHECK (length(VALUE) < 200);
--! down
ALTER DOMAIN email DROP CONSTRAINT short;
ALTER TYPE point3 RENAME ATTRIBUTE height TO z;
ALTER TYPE mood RENAME VALUE 'low' TO 'sad';
{down}
--! wrong RollbackNotEqual samples
UPDATE samples SET f = 1 WHERE id = 2;
