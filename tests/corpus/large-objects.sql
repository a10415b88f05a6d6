Large objects with owners, grants and comments.
--! root
CREATE ROLE other_{n}; SELECT lo_from_bytea(9001, decode(repeat('ab', 100000), 'hex'));
ALTER LARGE OBJECT 9001 OWNER TO other_{n}; GRANT SELECT ON LARGE OBJECT 9001 TO migrator_{n};
--! owner
SELECT lo_from_bytea(5000 + n, convert_to('content ' || n, 'UTF8')) FROM generate_series(1, 40) n;
COMMENT ON LARGE OBJECT 5001 IS 'a picture'; GRANT SELECT ON LARGE OBJECT 5002 TO app_{n};
CREATE TABLE pictures (id int PRIMARY KEY, content oid); INSERT INTO pictures SELECT n, 5000 + n FROM generate_series(1, 40) n;
--! left-out
large object 9001
--! up
{up};
SELECT lo_put(5003, 0, 'x'); SELECT lo_put(5003, 0, 'c');
--! wrong PrivilegeMissing large object 9001
ALTER LARGE OBJECT 9001 OWNER TO CURRENT_USER; GRANT SELECT ON LARGE OBJECT 9001 TO PUBLIC;
