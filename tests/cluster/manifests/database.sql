-- (Re)creates a database and its two roles as managed PostgreSQL would hand them out: no superuser anywhere.
-- Run as superuser with psql variables name, migrator, app, migrator_password, app_password.
\set QUIET on
SET client_min_messages = warning;
-- also what the last test has left: copies for rehearsals belong to the migrator
SELECT format('DROP DATABASE %I WITH (FORCE)', datname) FROM pg_database
WHERE datname = :'name' OR datdba = (SELECT oid FROM pg_roles WHERE rolname = :'migrator') \gexec
SELECT format('CREATE ROLE %I', name) FROM unnest(ARRAY[:'app', :'migrator']) AS name
WHERE name NOT IN (SELECT rolname FROM pg_roles) \gexec
-- a role outlives the database, and so would its settings
ALTER ROLE :"app" RESET ALL;
ALTER ROLE :"migrator" RESET ALL;
ALTER ROLE :"app" LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD :'app_password';
ALTER ROLE :"migrator" LOGIN NOSUPERUSER CREATEDB NOCREATEROLE PASSWORD :'migrator_password';
-- pg_read_all_stats: else pg_stat_statements hides the texts of the application's statements
GRANT pg_signal_backend, pg_read_all_stats, :"app" TO :"migrator";
CREATE DATABASE :"name" OWNER :"migrator";
