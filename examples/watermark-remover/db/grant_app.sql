-- The rights of the role which the application logs in with. Run as the owner, after schema_v1.sql:
--   psql -v app_role=watermark -f grant_app.sql
\if :{?app_role} \else \set app_role watermark \endif
GRANT USAGE ON SCHEMA public TO :"app_role";
GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO :"app_role";
GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO :"app_role";
