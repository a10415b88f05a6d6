timestamp and timestamptz, with infinity, leap days and years before ours, in databases with a time zone of their own.
--! root
ALTER DATABASE shop_{n} SET timezone = 'Pacific/Chatham'; ALTER DATABASE shop_{n} SET datestyle = 'SQL, DMY';
ALTER DATABASE shop_{n} SET intervalstyle = 'sql_standard'; ALTER DATABASE shop_{n} SET extra_float_digits = 0;
--! owner
CREATE TABLE moments (id int PRIMARY KEY, local timestamp, instant timestamptz, day date, time time, timetz timetz,
    takes interval, f float8);
INSERT INTO moments VALUES
    (1, '31/12/2024 23:59:59.999999', '2024-09-29 02:30:00+12:45', '29/02/2024', '24:00', '10:00+02', '1-2 3 4:05:06', 0.1),
    (2, 'infinity', '-infinity', 'infinity', '00:00', '00:00+00', '0', 1e-300),
    (3, '0044-03-15 BC', '4713-01-01 00:00+00 BC', '5874897-12-31', '12:00', NULL, '-178000000 years', 'NaN');
--! up
{up};
ALTER TABLE moments ALTER COLUMN local TYPE timestamptz USING local AT TIME ZONE 'UTC';
--! down
ALTER TABLE moments ALTER COLUMN local TYPE timestamp USING local AT TIME ZONE 'UTC';
{down}
--! wrong RollbackNotEqual moments
UPDATE moments SET instant = instant + interval '1 microsecond' WHERE id = 1;
