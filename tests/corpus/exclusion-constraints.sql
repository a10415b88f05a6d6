Exclusion constraints, and types and operators of trusted extensions.
--! root
CREATE EXTENSION btree_gist; CREATE EXTENSION citext; CREATE EXTENSION hstore; CREATE EXTENSION pg_trgm;
CREATE EXTENSION unaccent; CREATE EXTENSION ltree; CREATE EXTENSION "uuid-ossp";
--! owner
CREATE TABLE bookings (room int, during tstzrange, guest citext, more hstore, path ltree,
    id uuid DEFAULT uuid_generate_v4(), EXCLUDE USING gist (room WITH =, during WITH &&));
CREATE UNIQUE INDEX bookings_guest ON bookings (guest, room, lower(during));
CREATE INDEX bookings_similar ON bookings USING gin ((guest::text) gin_trgm_ops);
INSERT INTO bookings SELECT n % 5, tstzrange(date '2024-01-01' + n, date '2024-01-02' + n), 'Guest ' || n, 'a=>1, b=>NULL',
    'top.a' FROM generate_series(1, 40) n;
--! up
{up};
ALTER TABLE bookings DROP CONSTRAINT bookings_room_during_excl;
--! down
ALTER TABLE bookings ADD EXCLUDE USING gist (room WITH =, during WITH &&);
{down}
--! wrong RollbackNotEqual bookings
UPDATE bookings SET guest = upper(guest::text)::citext WHERE room = 1;
