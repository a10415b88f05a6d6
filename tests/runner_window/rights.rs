//! What roles of the application may do before and after the up SQL.

use credit_migration::{
    api::{Direction, LostRight, Reason, WindowCommand as Order, WindowState as State},
    runner::database::control::{self, Applied},
};

use crate::{
    harness::{Database, Desk, end, plan, sample_down, spec, sql},
    window::writable,
};

/// What every up SQL of these tests has to do.
const GONE: &str = "DROP TABLE credit_purchases; DROP TABLE credit_packages";

/// Each way to have a right, on each kind of object.
const BEFORE: &str = "CREATE SCHEMA shop; CREATE ROLE readers_{n}; GRANT readers_{n} TO app;
    CREATE TABLE shop.own (id int, note text, secret text); GRANT SELECT, DELETE ON shop.own TO app;
    GRANT UPDATE (note, secret) ON shop.own TO app;
    CREATE TABLE shop.\"of Group\" (id int); GRANT SELECT ON shop.\"of Group\" TO readers_{n};
    CREATE TABLE shop.of_all (id int); GRANT SELECT ON shop.of_all TO PUBLIC;
    CREATE TABLE shop.dropped (id int); CREATE TABLE shop.renamed (id int); CREATE TABLE shop.regranted (id int);
    GRANT ALL ON shop.dropped, shop.renamed, shop.regranted TO app;
    CREATE TABLE shop.other (id int); GRANT ALL ON shop.other TO analyst;
    CREATE VIEW shop.plans AS SELECT 1 AS a; GRANT SELECT ON shop.plans TO app;
    CREATE SEQUENCE shop.numbers; GRANT USAGE ON SEQUENCE shop.numbers TO app;
    GRANT USAGE ON SCHEMA shop TO app;
    DO $$ DECLARE t text; BEGIN
        EXECUTE 'ALTER SCHEMA shop OWNER TO migrator';
        FOR t IN SELECT quote_ident(relname) FROM pg_class WHERE relnamespace = 'shop'::regnamespace
            AND relkind IN ('r', 'v', 'S') LOOP EXECUTE format('ALTER TABLE shop.%s OWNER TO migrator', t); END LOOP;
    END $$;";

/// All of it is created again, and nothing is granted but what is as good as before.
const AFTER: &[&str] = &[
    GONE,
    "DROP TABLE shop.own; CREATE TABLE shop.own (id int, note text)",
    "DROP TABLE shop.\"of Group\"; CREATE TABLE shop.\"of Group\" (id int)",
    "DROP TABLE shop.of_all; CREATE TABLE shop.of_all (id int); GRANT SELECT ON shop.of_all TO app",
    "DROP TABLE shop.dropped; ALTER TABLE shop.renamed RENAME TO archive",
    "DROP TABLE shop.regranted; CREATE VIEW shop.regranted AS SELECT 1 AS id; GRANT ALL ON shop.regranted TO app",
    "DROP TABLE shop.other; CREATE TABLE shop.other (id int)",
    "DROP VIEW shop.plans; CREATE VIEW shop.plans AS SELECT 2 AS a",
    "DROP SEQUENCE shop.numbers; CREATE SEQUENCE shop.numbers",
    "REVOKE USAGE ON SCHEMA shop FROM app",
    "REVOKE UPDATE ON user_credits FROM app; GRANT UPDATE (balance) ON user_credits TO app",
];

fn lost(object: &str, privileges: &[&str]) -> LostRight {
    LostRight {
        role: "app".to_owned(),
        object: object.to_owned(),
        privileges: privileges.iter().map(|privilege| (*privilege).to_owned()).collect(),
    }
}

/// A database with such tables.
async fn shop() -> Database {
    let database = Database::new().await;
    let number = database.name.rsplit('_').next().unwrap_or_default();
    database.session("postgres").await.batch_execute(&BEFORE.replace("{n}", number)).await.unwrap();
    database
}

#[tokio::test]
async fn a_right_is_lost_where_the_name_is_still_there() {
    let (database, spec) = (shop().await, spec());
    let mut client = database.prepared(&spec).await;
    let applied = control::rehearse_up(&mut client, &spec, &sql(AFTER), &sample_down(), None).await.unwrap();
    let Applied::Now { rights_lost, .. } = applied else { panic!("{applied:?}") };
    let expected = [
        lost("SCHEMA shop", &["USAGE"]),
        lost("SEQUENCE shop.numbers", &["USAGE"]),
        lost("TABLE public.user_credits", &["UPDATE"]),
        lost("TABLE shop.\"of Group\"", &["SELECT"]),
        lost("TABLE shop.own", &["DELETE", "SELECT", "UPDATE (note)"]),
        lost("TABLE shop.plans", &["SELECT"]),
    ];
    assert_eq!(rights_lost, expected);
    // Each statement that a message names is one that the server takes.
    client.batch_execute(&LostRight::grants(&rights_lost)).await.unwrap();
}

#[tokio::test]
async fn a_window_loses_no_right_that_was_not_approved() {
    let (database, desk) = (Database::new().await, Desk::new());
    database.prepared(&spec()).await;
    let recreated = sql(&[GONE, "DROP TABLE credit_transactions; CREATE TABLE credit_transactions (id int)"]);
    let mut plan = plan(Direction::Forward, recreated, sample_down());
    let of_the_table = |privileges: &[&str]| lost("TABLE public.credit_transactions", privileges);
    plan.control_spec.approved_rights_lost = vec![of_the_table(&["SELECT"])];
    let task = desk.start(&database, &plan);
    desk.order(Order::BlockWrites);
    let outcome = end(task).await;
    assert_eq!(outcome.progress.state, State::RolledBack);
    let failure = outcome.failure.unwrap();
    assert_eq!(failure.reason, Reason::RightsLost);
    let next = "next: add to it GRANT INSERT, UPDATE ON TABLE public.credit_transactions TO app;";
    assert!(failure.message.contains("takes 2 rights") && failure.message.ends_with(next), "{failure}");
    writable(&database, false).await;

    let desk = Desk::new();
    plan.attempt = 2;
    plan.control_spec.approved_rights_lost = vec![of_the_table(&["INSERT", "SELECT", "UPDATE"])];
    desk.order(Order::BlockWrites);
    let task = desk.start(&database, &plan);
    desk.state(State::Migrated).await;
    task.abort();
}
