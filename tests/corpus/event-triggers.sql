Event triggers of a superuser fire on the SQL, and are left out of the copy.
--! root
CREATE TABLE ddl (tag text, at timestamptz DEFAULT clock_timestamp()); GRANT SELECT, INSERT ON ddl TO PUBLIC;
CREATE FUNCTION on_ddl() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public AS
$$ BEGIN INSERT INTO ddl VALUES (tg_tag); END $$;
CREATE EVENT TRIGGER watch_{n} ON ddl_command_end WHEN TAG IN ('CREATE MATERIALIZED VIEW') EXECUTE FUNCTION on_ddl();
--! left-out
event trigger watch_{n}
function public.on_ddl()
table public.ddl
--! wrong PrivilegeMissing function public.on_ddl()
ALTER FUNCTION on_ddl() COST 7;
