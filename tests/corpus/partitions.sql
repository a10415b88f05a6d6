Partitions in depth, by range, list and hash, with a default partition, an index and a trigger on all of them.
--! owner
CREATE TABLE events (id bigint, at date NOT NULL, kind text NOT NULL, note text, PRIMARY KEY (id, at, kind))
    PARTITION BY RANGE (at);
CREATE TABLE events_2025 PARTITION OF events FOR VALUES FROM ('2025-01-01') TO ('2026-01-01') PARTITION BY LIST (kind);
CREATE TABLE events_2025_login PARTITION OF events_2025 FOR VALUES IN ('login') PARTITION BY HASH (id);
CREATE TABLE events_2025_login_0 PARTITION OF events_2025_login FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE events_2025_login_1 PARTITION OF events_2025_login FOR VALUES WITH (MODULUS 2, REMAINDER 1);
CREATE TABLE events_2025_rest PARTITION OF events_2025 DEFAULT;
CREATE TABLE events_rest PARTITION OF events DEFAULT;
CREATE INDEX events_note ON events (note);
CREATE FUNCTION noted() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
CREATE TRIGGER noted BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION noted();
INSERT INTO events SELECT n, date '2024-12-01' + n, (ARRAY['login', 'sale'])[n % 2 + 1] FROM generate_series(1, 500) n;
--! up
{up};
ALTER TABLE events DETACH PARTITION events_rest;
ALTER TABLE events ADD COLUMN weight int NOT NULL DEFAULT 1;
--! down
ALTER TABLE events DROP COLUMN weight;
ALTER TABLE events ATTACH PARTITION events_rest DEFAULT;
{down}
--! wrong RollbackNotEqual events_2025_login_1
DELETE FROM events_2025_login_1 WHERE id = (SELECT min(id) FROM events_2025_login_1);
