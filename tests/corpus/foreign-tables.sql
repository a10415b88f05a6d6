Foreign tables of a server and of a file: what needs an extension that only a superuser may create is left out.
--! root
CREATE EXTENSION postgres_fdw; CREATE EXTENSION file_fdw;
CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1', port '1');
CREATE USER MAPPING FOR migrator_{n} SERVER far; GRANT USAGE ON FOREIGN SERVER far TO migrator_{n};
CREATE SERVER files FOREIGN DATA WRAPPER file_fdw;
CREATE FOREIGN TABLE hosts (line text) SERVER files OPTIONS (filename '/etc/hostname');
--! owner
CREATE FOREIGN TABLE distant (id int, name text) SERVER far;
CREATE VIEW near AS SELECT id FROM distant;
--! left-out
extension file_fdw
extension postgres_fdw
foreign server far
foreign server files
foreign table public.distant
foreign table public.hosts
user mapping migrator_{n} on server far
view public.near
