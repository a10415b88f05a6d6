Quoted and non-ASCII names, with blanks, quotes, dots, percents and keywords, as long as they may be.
--! owner
CREATE SCHEMA "Schéma x"; CREATE SCHEMA "select";
CREATE TABLE "Schéma x"."Größe ""№1""" ("größe in %" int PRIMARY KEY, "a.b" text, "Ünïcode 日本語" text, "o'clock" int);
CREATE TABLE "select"."from" ("where" int REFERENCES "Schéma x"."Größe ""№1""");
CREATE INDEX "Índex; DROP" ON "Schéma x"."Größe ""№1""" ("a.b");
CREATE TYPE "select"."Typ" AS ENUM ('ä''b', '', 'c"d');
CREATE TABLE "ппппппппппппппппппппппппппппппп" (id serial, t "select"."Typ" DEFAULT 'ä''b');
CREATE FUNCTION "select"."Fn"("x y" int) RETURNS int LANGUAGE sql AS 'SELECT $1';
CREATE VIEW "select"."View\" AS SELECT "Ünïcode 日本語" FROM "Schéma x"."Größe ""№1""";
COMMENT ON COLUMN "Schéma x"."Größe ""№1"""."a.b" IS E'line\nline ''quoted'' — ü';
INSERT INTO "Schéma x"."Größe ""№1""" VALUES (1, 'a', E'\u00e9 \U0001f600', 2), (2, '', 'é', NULL);
INSERT INTO "ппппппппппппппппппппппппппппппп" (t) VALUES (''), ('c"d');
GRANT SELECT ON ALL TABLES IN SCHEMA "Schéma x" TO app_{n};
--! up
{up};
ALTER TABLE "Schéma x"."Größe ""№1""" RENAME COLUMN "größe in %" TO "größer";
--! down
ALTER TABLE "Schéma x"."Größe ""№1""" RENAME COLUMN "größer" TO "größe in %";
{down}
--! wrong RollbackNotEqual Größe
UPDATE "Schéma x"."Größe ""№1""" SET "Ünïcode 日本語" = E'e\u0301' WHERE "a.b" = '';
