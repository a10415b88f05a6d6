//! What a copy of the database goes without: predicted by Preflight, found by both rehearsals.

use credit_migration::api::{Finding, LeftOut, LeftOutKind, Reason, Task};
use serde_json::{Value, json};

use crate::{
    harness::{DOWN, Outcome, UP, World},
    programs::MAJOR,
};

/// What a database has that belongs to superusers and to other roles.
const OTHERS: &str = "
    CREATE ROLE other_{n}; CREATE ROLE team_{n}; GRANT team_{n} TO migrator_{n};
    ALTER SCHEMA public OWNER TO postgres; GRANT CREATE, USAGE ON SCHEMA public TO migrator_{n}, team_{n};
    CREATE FUNCTION on_ddl() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN END $$;
    CREATE EVENT TRIGGER watch_{n} ON ddl_command_end EXECUTE FUNCTION on_ddl();
    COMMENT ON EVENT TRIGGER watch_{n} IS 'audited';
    ALTER DEFAULT PRIVILEGES FOR ROLE postgres IN SCHEMA public GRANT SELECT ON TABLES TO other_{n};
    CREATE EXTENSION pg_stat_statements;
    GRANT EXECUTE ON FUNCTION pg_stat_statements_reset TO other_{n};
    CREATE VIEW slow AS SELECT query FROM pg_stat_statements; GRANT SELECT ON slow TO migrator_{n};
    -- As an extension with a configuration table has it.
    CREATE TABLE settings (id serial, value text); INSERT INTO settings (value) VALUES ('on');
    ALTER TABLE settings ENABLE ROW LEVEL SECURITY; CREATE POLICY all_rows ON settings USING (true);
    ALTER EXTENSION pg_stat_statements ADD TABLE settings;
    ALTER EXTENSION pg_stat_statements ADD SEQUENCE settings_id_seq;
    UPDATE pg_extension SET extcondition = ARRAY['', ''],
        extconfig = ARRAY['settings'::regclass::oid, 'settings_id_seq'::regclass::oid]
        WHERE extname = 'pg_stat_statements';
    GRANT SELECT ON settings, settings_id_seq TO migrator_{n};
    CREATE TABLE audit (id int GENERATED ALWAYS AS IDENTITY, what text); INSERT INTO audit (what) VALUES ('login');
    ALTER TABLE audit ENABLE ROW LEVEL SECURITY; CREATE POLICY readers ON audit USING (true);
    GRANT SELECT ON audit, audit_id_seq TO migrator_{n}; ALTER ROLE migrator_{n} BYPASSRLS;
    CREATE TABLE teams (id serial); ALTER TABLE teams OWNER TO team_{n};
    SELECT lo_create(4242); ALTER LARGE OBJECT 4242 OWNER TO other_{n};
    GRANT SELECT ON LARGE OBJECT 4242 TO migrator_{n};
    CREATE EXTENSION postgres_fdw; CREATE SERVER \"far away\" FOREIGN DATA WRAPPER postgres_fdw;
    CREATE USER MAPPING FOR migrator_{n} SERVER \"far away\";
    CREATE FOREIGN TABLE distant (id int) SERVER \"far away\"; GRANT SELECT ON distant TO migrator_{n};
    CREATE CAST (bigint AS timestamp) WITHOUT FUNCTION;
    GRANT EXECUTE ON FUNCTION pg_ls_dir(text) TO other_{n};
    CREATE EXTENSION pgcrypto; GRANT EXECUTE ON FUNCTION digest(text, text) TO other_{n};
    CREATE PUBLICATION outbound FOR TABLE audit; COMMENT ON PUBLICATION outbound IS 'to the warehouse'";

/// Kind and name of each object but the schema `public`, sorted.
const LEFT_OUT: &[(LeftOutKind, &str)] = &[
    (LeftOutKind::Extension, "extension pg_stat_statements"),
    (LeftOutKind::Extension, "extension postgres_fdw"),
    (LeftOutKind::Superuser, "cast (bigint AS timestamp without time zone)"),
    (LeftOutKind::Superuser, "event trigger watch_{n}"),
    (LeftOutKind::Dependent, "foreign server \"far away\""),
    (LeftOutKind::Dependent, "foreign table public.distant"),
    (LeftOutKind::Dependent, "user mapping migrator_{n} on server far away"),
    (LeftOutKind::Dependent, "view public.slow"),
    (LeftOutKind::DefaultPrivileges, "default privileges for role postgres in schema public on tables"),
    (LeftOutKind::Grant, "function pg_catalog.pg_ls_dir(pg_catalog.text)"),
    (LeftOutKind::Grant, "function public.digest(pg_catalog.text,pg_catalog.text)"),
    (LeftOutKind::Publication, "publication outbound"),
    (LeftOutKind::Owner, "function public.on_ddl()"),
    (LeftOutKind::Owner, "large object 4242"),
    (LeftOutKind::Owner, "table public.audit"),
];

/// Since 15 the owner of a database has its schema `public`, and may give it away. Before, a superuser has it in each
/// database, and who may use it is not the migration role's to say.
fn has_owned_public() -> bool {
    *MAJOR >= 15
}

fn left_out(evidence: &Value) -> Vec<LeftOut> {
    serde_json::from_value(evidence["leftOut"].clone()).unwrap_or_default()
}

/// Preflight's finding about the copy.
fn predicted(outcome: &Outcome) -> Finding {
    outcome.findings().into_iter().find(|finding| finding.name == Finding::COPY).unwrap()
}

#[tokio::test]
async fn what_a_copy_goes_without_is_predicted_and_said() {
    let mut world = World::new().await;
    world.alter(OTHERS).await;
    let preflight = world.run(Task::Preflight).await;
    let finding = predicted(&preflight);
    let names: Vec<(LeftOutKind, String)> =
        finding.left_out.left_out.iter().map(|object| (object.kind, object.name.clone())).collect();
    let number = world.number.to_string();
    let public = if has_owned_public() { LeftOutKind::Owner } else { LeftOutKind::Grant };
    let mut want: Vec<(LeftOutKind, String)> =
        LEFT_OUT.iter().map(|(kind, name)| (*kind, name.replace("{n}", &number))).collect();
    want.push((public, "schema public".to_owned()));
    want.sort();
    assert_eq!(names, want);
    assert_eq!(finding.reason, None, "{}", finding.message);

    // The copy itself: what is not there, and whose the rest is.
    let one = |name: &str, query: &str| json!({"name": name, "sql": {"query": query}, "min": "1", "max": "1"});
    let none = |name: &str, query: &str| json!({"name": name, "sql": {"query": query}, "max": "0"});
    let checks = json!([
        none("triggers", "SELECT count(*) FROM pg_event_trigger"),
        none("extensions", "SELECT count(*) FROM pg_extension WHERE extname NOT IN ('plpgsql', 'pgcrypto')"),
        none("defaults", "SELECT count(*) FROM pg_default_acl"),
        none("servers", "SELECT count(*) FROM pg_foreign_server"),
        none("publications", "SELECT count(*) FROM pg_publication"),
        none("relations", "SELECT count(*) FROM pg_class WHERE relname IN ('slow', 'settings', 'distant')"),
        none("casts", "SELECT count(*) FROM pg_cast WHERE oid >= 16384"),
        one("policies", "SELECT count(*) FROM pg_policy"),
        one("audit", "SELECT count(*) FROM audit"),
        one("owner", "SELECT count(*) FROM pg_tables WHERE tablename = 'audit' AND tableowner = current_user"),
        one(
            "teams",
            &format!(
                "SELECT count(*) FROM pg_class WHERE relname = 'teams_id_seq' AND relowner = 'team_{number}'::regrole"
            )
        ),
        one("objects", "SELECT count(*) FROM pg_largeobject_metadata WHERE pg_has_role(lomowner, 'USAGE')"),
    ]);
    world.spec.plan.validation.checks = serde_json::from_value(checks).unwrap();
    world.backed_up().await;
    let rehearsed = world.run(Task::Rehearse).await;
    assert!(rehearsed.result.is_ok(), "{:?}", rehearsed.result);
    let evidence = &rehearsed.noted["rehearsal"];
    assert_eq!(evidence["checksNotPassing"], Value::Null);
    assert_eq!(left_out(evidence), finding.left_out.left_out);
    assert!(rehearsed.result.unwrap().contains("the copy goes without 16 objects: "));
}

#[tokio::test]
async fn a_copy_of_the_live_database_goes_without_the_same() {
    let mut world = World::new().await;
    world.alter(OTHERS).await;
    world.cutover(UP).await;
    world.sql(UP, DOWN);
    let rehearsed = world.run(Task::RehearseRollback).await;
    assert!(rehearsed.result.is_ok(), "{:?}", rehearsed.result);
    assert_eq!(left_out(&rehearsed.noted["rollbackRehearsal"]).len(), LEFT_OUT.len() + 1);
}

/// As its own user made it: nothing is left out.
#[tokio::test]
async fn an_ordinary_database_is_copied_whole() {
    let mut world = World::new().await;
    world
        .alter(
            "CREATE EXTENSION pgcrypto; CREATE SCHEMA shop AUTHORIZATION migrator_{n}; SET ROLE migrator_{n};
             CREATE TYPE shop.mood AS ENUM ('ok'); CREATE DOMAIN shop.name AS text NOT NULL;
             CREATE TABLE shop.orders (id serial PRIMARY KEY, mood shop.mood DEFAULT 'ok', name shop.name);
             CREATE VIEW shop.moods AS SELECT mood FROM shop.orders; GRANT USAGE ON SCHEMA shop TO app_{n};
             GRANT SELECT ON shop.orders, shop.moods TO app_{n}; SELECT lo_create(7);
             GRANT SELECT ON LARGE OBJECT 7 TO app_{n};
             ALTER DEFAULT PRIVILEGES IN SCHEMA shop GRANT SELECT ON TABLES TO app_{n}; RESET ROLE",
        )
        .await;
    copied_without(&mut world, &[]).await;
}

/// As on most servers before 15.
#[tokio::test]
async fn a_schema_public_in_which_not_everyone_may_create_is_copied() {
    let mut world = World::new().await;
    world.alter("REVOKE CREATE ON SCHEMA public FROM PUBLIC; GRANT CREATE ON SCHEMA public TO migrator_{n}").await;
    let grants = [(LeftOutKind::Grant, "schema public")];
    copied_without(&mut world, if has_owned_public() { &[] } else { &grants }).await;
}

/// Client programs of 17 and later keep large objects of one owner with the same grants together.
#[tokio::test]
async fn grants_on_large_objects_by_others_are_left_out() {
    let mut world = World::new().await;
    world
        .alter(
            "CREATE ROLE other_{n}; SELECT lo_create(5001), lo_create(5002), lo_create(6000), lo_create(7000);
             ALTER LARGE OBJECT 6000 OWNER TO migrator_{n}; ALTER LARGE OBJECT 7000 OWNER TO migrator_{n};
             ALTER LARGE OBJECT 5001 OWNER TO migrator_{n}; ALTER LARGE OBJECT 5002 OWNER TO migrator_{n};
             COMMENT ON LARGE OBJECT 5002 IS 'a picture'; GRANT SELECT ON LARGE OBJECT 7000 TO app_{n};
             GRANT SELECT ON LARGE OBJECT 5001, 5002 TO other_{n} WITH GRANT OPTION;
             GRANT SELECT, UPDATE ON LARGE OBJECT 6000 TO other_{n} WITH GRANT OPTION; SET ROLE other_{n};
             GRANT SELECT ON LARGE OBJECT 5001, 5002, 6000 TO app_{n}; RESET ROLE",
        )
        .await;
    let granted =
        ["large object 5001", "large object 5002", "large object 6000"].map(|name| (LeftOutKind::Grant, name));
    copied_without(&mut world, &granted).await;
}

/// Predicted, and rehearsed.
async fn copied_without(world: &mut World, want: &[(LeftOutKind, &str)]) {
    let finding = predicted(&world.run(Task::Preflight).await);
    let names: Vec<(LeftOutKind, &str)> =
        finding.left_out.left_out.iter().map(|object| (object.kind, object.name.as_str())).collect();
    assert_eq!((names.as_slice(), finding.reason), (want, None), "{}", finding.message);
    world.backed_up().await;
    let rehearsed = world.run(Task::Rehearse).await;
    assert!(rehearsed.result.is_ok(), "{:?}", rehearsed.result);
    assert_eq!(left_out(&rehearsed.noted["rehearsal"]), finding.left_out.left_out);
}

/// Found before the dump, and with the command.
#[tokio::test]
async fn what_the_migration_needs_is_never_left_out() {
    for (sql, words) in [
        (
            "CREATE FUNCTION absolute(int) RETURNS int LANGUAGE internal IMMUTABLE AS 'int4abs';
             ALTER TABLE user_credits ADD CONSTRAINT sane CHECK (absolute(user_id::int) > 0)",
            "needs table public.user_credits, which needs function public.absolute(integer)",
        ),
        (
            "CREATE EXTENSION pg_stat_statements; CREATE TYPE mood AS ENUM ('ok');
             ALTER EXTENSION pg_stat_statements ADD TYPE mood;
             ALTER TABLE credit_transactions ADD feels mood",
            "needs table public.credit_transactions, which needs extension pg_stat_statements",
        ),
    ] {
        let mut world = World::new().await;
        world.alter(sql).await;
        let finding = predicted(&world.run(Task::Preflight).await);
        assert_eq!(finding.reason, Some(Reason::PrivilegeMissing), "{}", finding.message);
        assert!(finding.message.contains(words) && finding.message.contains("; next: "), "{}", finding.message);
        world.backed_up().await;
        let refused = world.run(Task::Rehearse).await;
        assert_eq!(refused.failure().reason, Reason::PrivilegeMissing, "{}", refused.failure());
        assert!(refused.failure().message.contains(words), "{}", refused.failure());
        assert!(!world.has_scratch().await);
    }
}

/// The copy's owner makes them in place of the role that did.
#[tokio::test]
async fn grants_on_tables_by_others_are_in_the_copy() {
    let mut world = World::new().await;
    world
        .alter(
            "CREATE ROLE other_{n}; REVOKE ALL ON subscriptions FROM app_{n};
             GRANT SELECT, UPDATE ON subscriptions, user_credits TO other_{n} WITH GRANT OPTION;
             GRANT INSERT ON subscriptions TO PUBLIC; SET ROLE other_{n};
             GRANT SELECT ON subscriptions, user_credits TO app_{n}; GRANT UPDATE (plan) ON subscriptions TO app_{n};
             RESET ROLE",
        )
        .await;
    let up =
        format!("ALTER TABLE subscriptions RENAME TO kept; CREATE TABLE subscriptions (LIKE kept INCLUDING ALL); {UP}");
    world.sql(&up, &format!("{DOWN}; DROP TABLE subscriptions; ALTER TABLE kept RENAME TO subscriptions;"));
    copied_without(&mut world, &[]).await;
    let rehearsed = world.run(Task::Rehearse).await;
    let lost = &rehearsed.noted["rehearsal"]["rightsLost"];
    assert_eq!(lost[0]["privileges"], json!(["INSERT", "SELECT", "UPDATE (plan)"]), "{lost}");
}

/// As that of a scheduler's jobs.
#[tokio::test]
async fn an_extension_that_only_one_database_may_have_is_left_out() {
    let mut world = World::new().await;
    let (name, database) = (format!("only_{}", world.number), format!("shop_{}", world.number));
    World::add_extension(
        &name,
        &format!(
            "DO $$ BEGIN IF current_database() <> '{database}' THEN
                 RAISE EXCEPTION 'can only create extension in database {database}'; END IF; END $$;
             CREATE TABLE jobs (id int);"
        ),
    );
    world.alter(&format!("CREATE EXTENSION {name}; GRANT SELECT ON jobs TO migrator_{{n}}")).await;
    world.backed_up().await;
    let rehearsed = world.run(Task::Rehearse).await;
    assert!(rehearsed.result.is_ok(), "{:?}", rehearsed.result);
    let left_out = left_out(&rehearsed.noted["rehearsal"]);
    assert_eq!(left_out[0].name, format!("extension {name}"), "{left_out:?}");
}

/// `pg_dump` reads it, or ends.
#[tokio::test]
async fn what_cannot_be_dumped_for_its_rows_is_found() {
    let world = World::new().await;
    world
        .alter(
            "CREATE TABLE audit (id int); ALTER TABLE audit ENABLE ROW LEVEL SECURITY;
             GRANT SELECT ON audit TO migrator_{n}; SELECT lo_create(77)",
        )
        .await;
    let outcome = world.run(Task::Preflight).await;
    let finding = outcome.findings().into_iter().find(|finding| finding.name == "rights to dump").unwrap();
    assert_eq!(finding.reason, Some(Reason::PrivilegeMissing));
    for words in [
        "may not dump table public.audit with its row-level security, large object 77; next: ",
        "BYPASSRLS;",
        "GRANT SELECT ON LARGE OBJECT 77 TO ",
    ] {
        assert!(finding.message.contains(words), "{}", finding.message);
    }
}

/// What belongs to a role whose rights the migration role lacks, and what the migration role may do with some of it.
const FOREIGN: &str = "
    CREATE ROLE other_{n}; GRANT USAGE, CREATE ON SCHEMA public TO other_{n};
    CREATE TABLE audit (id int PRIMARY KEY, what text); CREATE INDEX by_what ON audit (what);
    CREATE FUNCTION noted() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
    CREATE TRIGGER noted AFTER INSERT ON audit EXECUTE FUNCTION noted();
    CREATE TABLE regions (id int PRIMARY KEY); INSERT INTO regions VALUES (1);
    CREATE TYPE mood AS ENUM ('ok'); CREATE SEQUENCE tickets; CREATE EXTENSION hstore;
    CREATE VIEW sold AS SELECT name FROM credit_packages; CREATE MATERIALIZED VIEW totals AS SELECT 1 AS one;
    ALTER TABLE audit OWNER TO other_{n}; ALTER TABLE regions OWNER TO other_{n}; ALTER TYPE mood OWNER TO other_{n};
    ALTER SEQUENCE tickets OWNER TO other_{n}; ALTER VIEW sold OWNER TO other_{n};
    ALTER MATERIALIZED VIEW totals OWNER TO other_{n}; ALTER FUNCTION noted() OWNER TO other_{n};
    CREATE SCHEMA reports AUTHORIZATION other_{n}; GRANT USAGE ON SCHEMA reports TO migrator_{n};
    CREATE TABLE reports.daily (id int); ALTER TABLE reports.daily OWNER TO migrator_{n};
    CREATE TABLE reports.weekly (id int); ALTER TABLE reports.weekly OWNER TO other_{n};
    GRANT SELECT ON audit, reports.weekly, tickets, totals TO migrator_{n};
    GRANT SELECT, INSERT, TRUNCATE, TRIGGER, REFERENCES ON regions TO migrator_{n}";

async fn with_foreign(up: &str, down: &str) -> World {
    let mut world = World::new().await;
    world.alter(FOREIGN).await;
    world.sql(up, down);
    world.backed_up().await;
    world
}

/// It would fail in the window, or in the rollback with writes blocked.
#[tokio::test]
async fn sql_that_only_the_copy_allows_is_refused() {
    let world = with_foreign(UP, DOWN).await;
    let (number, mut world) = (world.number, world);
    for (statement, words) in [
        ("ALTER TABLE audit ADD at timestamptz", "alters table public.audit of role"),
        (
            "ALTER TABLE audit DISABLE TRIGGER noted; ALTER TABLE audit ENABLE TRIGGER noted",
            "alters table public.audit",
        ),
        ("CREATE INDEX more ON audit (id)", "alters table public.audit"),
        ("COMMENT ON COLUMN audit.what IS 'x'", "alters table public.audit"),
        ("CREATE TABLE refers (id int REFERENCES audit)", "alters table public.audit"),
        ("CREATE OR REPLACE FUNCTION noted() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'", "noted()"),
        ("ALTER TYPE mood ADD VALUE 'bad'", "alters type public.mood"),
        ("ALTER SEQUENCE tickets INCREMENT BY 2", "alters sequence public.tickets"),
        ("REFRESH MATERIALIZED VIEW totals", "alters materialized view public.totals"),
        ("COMMENT ON EXTENSION hstore IS 'x'", "alters extension hstore of role postgres"),
        ("DROP TABLE reports.weekly", "drops table reports.weekly of role"),
        ("ALTER TABLE reports.daily ADD PRIMARY KEY (id)", "creates index reports.daily_pkey in schema reports"),
        ("CREATE VIEW reports.more AS SELECT 1", "creates view reports.more in schema reports"),
    ] {
        for (up, down, which) in [
            (format!("{UP};\n{statement};"), DOWN.to_owned(), "rehearsal: the up SQL "),
            (UP.to_owned(), format!("{DOWN};\n{statement};"), "rehearsal: the down SQL "),
        ] {
            world.sql(&up, &down);
            let refused = world.run(Task::Rehearse).await;
            let failure = refused.failure();
            assert_eq!(failure.reason, Reason::PrivilegeMissing, "{statement}: {failure}");
            let fix = match words {
                words if words.contains("extension") => "next: take that out of the SQL".to_owned(),
                words if words.contains(" in schema ") => {
                    format!("GRANT CREATE ON SCHEMA reports TO \"migrator_{number}\";")
                }
                _ => format!("GRANT \"other_{number}\" TO \"migrator_{number}\";"),
            };
            let message = &failure.message;
            assert!(message.starts_with(which) && message.contains(words), "{statement}: {failure}");
            assert!(message.ends_with(&fix), "{statement}: {failure}");
            // The server says the same where it matters.
            let owner = world.owner().await;
            let refused = owner.batch_execute(&format!("BEGIN; {statement}; ROLLBACK")).await.unwrap_err();
            assert_eq!(refused.code().map(|code| code.code()), Some("42501"), "{statement}: {refused}");
        }
    }
}

/// No owner is asked for it, so it is no difference.
#[tokio::test]
async fn sql_that_the_database_allows_passes_along_with_what_others_own() {
    // Before 15 the schema public is no one's but the superuser's.
    let (drop_view, view) = match *MAJOR {
        15.. => ("DROP VIEW sold;", "CREATE VIEW sold AS SELECT name FROM credit_packages;"),
        _ => ("", ""),
    };
    let up = format!(
        "CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
         CREATE TABLE branches (id int PRIMARY KEY, region int REFERENCES regions);
         CREATE TRIGGER mine AFTER INSERT ON regions EXECUTE FUNCTION nothing();
         INSERT INTO regions VALUES (2); INSERT INTO branches VALUES (1, 2); DROP TABLE branches;
         DROP FUNCTION nothing() CASCADE; TRUNCATE regions; {drop_view} {UP}"
    );
    let down = format!("{DOWN}; INSERT INTO regions VALUES (1); {view}");
    let world = with_foreign(&up, &down).await;
    let rehearsed = world.run(Task::Rehearse).await;
    assert!(rehearsed.result.is_ok(), "{:?}", rehearsed.result);
}

#[tokio::test]
async fn a_down_sql_that_only_the_copy_allows_is_found_after_the_window() {
    let mut world = World::new().await;
    world.alter(FOREIGN).await;
    world.cutover(UP).await;
    world.sql(UP, &format!("{DOWN};\nALTER TABLE audit DROP COLUMN what;"));
    let refused = world.run(Task::RehearseRollback).await;
    assert_eq!(refused.failure().reason, Reason::PrivilegeMissing, "{}", refused.failure());
    assert!(refused.failure().message.contains("the down SQL alters table public.audit"), "{}", refused.failure());

    // What others have made of the new version's tables goes with them.
    world
        .alter(
            "CREATE VIEW reports.plans AS SELECT plan FROM credit_plans; ALTER VIEW reports.plans OWNER TO other_{n};
             GRANT SELECT ON reports.plans TO migrator_{n}",
        )
        .await;
    world.sql(UP, &DOWN.replace("DROP TABLE credit_plans;", "DROP TABLE credit_plans CASCADE;"));
    let rehearsed = world.run(Task::RehearseRollback).await;
    assert!(rehearsed.result.is_ok(), "{:?}", rehearsed.result);
}

/// As in the window: a login that acts for the owner stays one, whatever the copy leaves to it.
#[tokio::test]
async fn what_is_left_to_the_login_does_not_change_whose_the_new_objects_are() {
    let mut world = World::new().await;
    world
        .alter(
            "CREATE ROLE owner_{n} NOLOGIN; GRANT owner_{n} TO migrator_{n};
             ALTER DATABASE shop_{n} OWNER TO owner_{n}; CREATE ROLE other_{n}; CREATE TABLE audit (id int);
             DO $$ DECLARE c record; BEGIN
                 FOR c IN SELECT oid::regclass AS name FROM pg_class
                          WHERE relkind IN ('r', 'p', 'v') AND relnamespace = 'public'::regnamespace
                 LOOP EXECUTE format('ALTER TABLE %s OWNER TO owner_{n}', c.name); END LOOP; END $$;
             ALTER TABLE audit OWNER TO other_{n}; GRANT SELECT ON audit TO migrator_{n}",
        )
        .await;
    let query = format!(
        "SELECT count(*) FROM pg_class WHERE relname = 'credit_plans' AND relowner = 'owner_{}'::regrole",
        world.number
    );
    let check = json!([{"name": "owner", "sql": {"query": query}, "equals": "1"}]);
    world.spec.plan.validation.checks = serde_json::from_value(check).unwrap();
    world.backed_up().await;
    let rehearsed = world.run(Task::Rehearse).await;
    assert!(rehearsed.result.is_ok(), "{:?}", rehearsed.result);
    assert_eq!(rehearsed.noted["rehearsal"]["checksNotPassing"], Value::Null);
}
