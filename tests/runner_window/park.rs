//! Tables that are moved out of the way instead of being dropped.

use std::time::Duration;

use credit_migration::{
    api::{Direction, Park, Reason, WindowCommand as Order, WindowState as State},
    runner::{
        database::control::{self, ControlSpec, StopSignal},
        tasks::{cleanup::cleanup, window::WindowPlan},
    },
};

use crate::{
    harness::{Database, Desk, end, plan, spec, sql, state_of},
    window::{SLEEPS, blocked, pausing, writable},
};

/// Grants of each kind: of the owner and of others, of columns, with and without the option to grant, to all, by
/// others, on sequences; an owner that is not the first of its list; a partitioned table; none at all.
const TABLES: &str = "CREATE SCHEMA shop AUTHORIZATION migrator; GRANT USAGE ON SCHEMA shop TO app, analyst;
    SET ROLE migrator;
    CREATE TABLE shop.\"Old orders\" (id bigserial PRIMARY KEY, note text, secret text);
    GRANT USAGE ON SEQUENCE shop.\"Old orders_id_seq\" TO app;
    REVOKE ALL ON shop.\"Old orders\" FROM migrator; GRANT SELECT ON shop.\"Old orders\" TO analyst;
    GRANT ALL ON shop.\"Old orders\" TO migrator;
    GRANT SELECT, INSERT, UPDATE ON shop.\"Old orders\" TO app WITH GRANT OPTION;
    GRANT DELETE ON shop.\"Old orders\" TO app;
    GRANT UPDATE (note) ON shop.\"Old orders\" TO analyst; GRANT SELECT (secret) ON shop.\"Old orders\" TO PUBLIC;
    RESET ROLE; SET ROLE app; GRANT SELECT ON shop.\"Old orders\" TO PUBLIC; RESET ROLE; SET ROLE migrator;
    CREATE TABLE shop.logs (id int, at date) PARTITION BY RANGE (at);
    CREATE TABLE shop.logs_1 PARTITION OF shop.logs FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
    GRANT SELECT ON shop.logs_1 TO app; GRANT UPDATE (id) ON shop.logs TO app;
    CREATE INDEX \"logs at\" ON shop.logs (at);
    CREATE TABLE shop.plain (id int GENERATED ALWAYS AS IDENTITY);
    INSERT INTO shop.\"Old orders\" (note) VALUES ('a'), ('b'); RESET ROLE";

const PARKED: &[&str] = &["shop.Old orders", "shop.logs", "shop.plain", "credit_packages"];

/// Where each relation is, and its lists of grants, byte by byte.
const STATE: &str = "SELECT string_agg(concat_ws(' ', n.nspname, c.relname, c.relkind, coalesce(c.relacl::text, '-'),
        (SELECT string_agg(a.attname || coalesce(a.attacl::text, '-'), ',' ORDER BY a.attnum) FROM pg_attribute a
         WHERE a.attrelid = c.oid AND a.attnum > 0)), E'\\n' ORDER BY c.oid)
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname IN ('shop', 'public', 'parked') AND c.relkind IN ('r', 'p', 'S', 'i', 'I')";

/// What someone but the owner may do in the schema of parked tables.
const OTHERS: &str = "SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace,
    aclexplode(c.relacl) AS i WHERE n.nspname = 'parked' AND i.grantee <> c.relowner";

fn park(tables: &[&str]) -> ControlSpec {
    let park = serde_json::from_value(serde_json::json!({"tables": tables, "schema": "parked"})).unwrap();
    let spec = spec();
    let mut protected = spec.protected.clone();
    protected.extend(tables.iter().map(|table| (*table).to_owned()));
    protected.dedup();
    ControlSpec { park: Some(park), protected, verify_down: None, ..spec }
}

async fn shop() -> Database {
    let database = Database::new().await;
    database.session("postgres").await.batch_execute(TABLES).await.unwrap();
    database
}

/// The up SQL reads what is parked, and drops what is not.
fn up() -> control::Sql {
    sql(&[
        "CREATE TABLE shop.notes AS SELECT id, note FROM parked.\"Old orders\"",
        "ALTER TABLE credit_purchases SET SCHEMA shop",
        "ALTER TABLE shop.credit_purchases RENAME TO purchases",
    ])
}

fn down() -> control::Sql {
    sql(&[
        "INSERT INTO shop.\"Old orders\" (note) SELECT 'c'",
        "DROP TABLE shop.notes",
        "ALTER TABLE shop.purchases RENAME TO credit_purchases",
        "ALTER TABLE shop.credit_purchases SET SCHEMA public",
    ])
}

#[tokio::test]
async fn a_rollback_gives_each_grant_back() {
    let (database, spec) = (shop().await, park(PARKED));
    let mut client = database.prepared(&spec).await;
    let before = database.value(STATE).await;
    control::rehearse_up(&mut client, &spec, &up(), &down(), None).await.unwrap();
    let names = "SELECT string_agg(relname, ',' ORDER BY relname) FROM pg_class WHERE relkind IN ('r', 'p', 'S')
        AND relnamespace = 'parked'::regnamespace";
    assert_eq!(
        database.value(names).await,
        "Old orders,Old orders_id_seq,credit_packages,credit_packages_id_seq,logs,logs_1,plain,plain_id_seq"
    );
    assert_eq!(database.value(OTHERS).await, "0");
    let app = database.session("app").await;
    assert_eq!(state_of(&app, "SELECT FROM parked.logs_1").await, "42501");
    // An operator that reads them is not kept from it: the next dump does.
    client.batch_execute("SELECT FROM parked.\"Old orders\"").await.unwrap();

    control::rehearse_down(&mut client, &spec, &down(), None).await.unwrap();
    assert_eq!(database.value(STATE).await, before);
    assert_eq!(database.value("SELECT to_regnamespace('parked')").await, "");
    assert_eq!(database.value("SELECT count(*) FROM credit_migration.parked_tables").await, "0");
    assert_eq!(database.value("SELECT count(*) FROM credit_migration.parked_grants").await, "0");
    assert_eq!(database.value("SELECT string_agg(note, '') FROM shop.\"Old orders\"").await, "abc");
}

fn window(direction: Direction) -> WindowPlan {
    let (mut up, mut down, wait) = (up(), down(), pausing().statements[0].clone());
    up.statements.push(wait.clone());
    down.statements.push(wait);
    WindowPlan { control_spec: park(PARKED), ..plan(direction, up, down) }
}

/// Before the commit nothing is parked, or all is back; after it the next pod goes on.
#[tokio::test]
async fn a_killed_pod_leaves_the_tables_where_they_were_or_where_they_belong() {
    let (database, desk) = (shop().await, Desk::new());
    let window_plan = window(Direction::Forward);
    database.prepared(&window_plan.control_spec).await;
    let before = database.value(STATE).await;
    let pause = database.pause_sql().await;
    let task = desk.start(&database, &window_plan);
    desk.order(Order::BlockWrites);
    database.until(SLEEPS).await;
    database.kill_window().await;
    assert_eq!(database.value(STATE).await, before, "nothing is committed");
    drop(pause);
    let parked = desk.state(State::Migrated).await;
    assert!(!parked.stuck);
    task.abort();
    assert_ne!(database.value(STATE).await, before);
    blocked(&database).await;

    // The rollback, killed in its own SQL.
    let pause = database.pause_sql().await;
    let desk = Desk::new();
    let task = desk.start(&database, &window_plan);
    desk.order(Order::Rollback);
    database.until(SLEEPS).await;
    database.kill_window().await;
    assert_eq!(database.value(OTHERS).await, "0", "still parked");
    drop(pause);
    let outcome = end(task).await;
    assert_eq!((outcome.progress.state, outcome.failure), (State::RolledBack, None));
    assert_eq!(database.value(STATE).await, before);
    writable(&database, false).await;
}

#[tokio::test]
async fn what_is_kept_is_dropped_later_and_once() {
    // Of the last two one refers to the other.
    let (database, spec) = (shop().await, park(&[PARKED, &["credit_purchases"]].concat()));
    let mut client = database.prepared(&spec).await;
    let up = sql(&["SELECT 1"]);
    control::run_up(&mut client, &spec, &up, &down(), &StopSignal::default()).await.unwrap();
    cleanup(&mut client, &spec).await.unwrap();
    // What still needs a table keeps it, and all others with it.
    client.batch_execute("CREATE VIEW public.still AS SELECT id FROM parked.plain").await.unwrap();
    let failure = control::drop_parked(&mut client, &spec).await.unwrap_err();
    assert_eq!(failure.reason, Reason::ParkedTableInUse, "{failure}");
    client.batch_execute("DROP VIEW public.still").await.unwrap();
    // Not while another migration relies on the schema that it has rehearsed.
    let other = ControlSpec { uid: "uid-2".to_owned(), name: "next".to_owned(), park: None, ..spec.clone() };
    let other = ControlSpec { protected: other.ledger.clone(), ..other };
    control::install(&mut client, &other).await.unwrap();
    let failure = control::drop_parked(&mut client, &spec).await.unwrap_err();
    assert_eq!(failure.reason, Reason::DatabaseInUse, "{failure}");
    cleanup(&mut client, &other).await.unwrap();
    assert_eq!(control::drop_parked(&mut client, &spec).await, Ok(6));
    assert_eq!(database.value("SELECT to_regnamespace('parked')").await, "");
    assert_eq!(control::drop_parked(&mut client, &spec).await, Ok(0));
}

#[tokio::test]
async fn what_could_not_be_moved_back_is_not_parked() {
    let database = shop().await;
    let root = database.session("postgres").await;
    root.batch_execute(
        "CREATE TABLE shop.users (id int); ALTER TABLE shop.users OWNER TO migrator;
         CREATE TABLE shop.given (id int); ALTER TABLE shop.given OWNER TO migrator;
         GRANT SELECT ON shop.given TO analyst WITH GRANT OPTION; SET ROLE analyst; GRANT SELECT ON shop.given TO app;
         RESET ROLE; CREATE SCHEMA taken AUTHORIZATION migrator; CREATE TABLE taken.plain (id int)",
    )
    .await
    .unwrap();
    let gone = "DROP TABLE credit_purchases; DROP TABLE credit_packages";
    for (tables, schema, reason, words) in [
        (&["user_credits"] as &[&str], "parked", Reason::TableNotParked, "holds credits, which the new version"),
        (&["credit_transactions"], "parked", Reason::TableNotParked, "holds credits"),
        (&["shop.logs_1"], "parked", Reason::TableNotParked, "is a partition or child of shop.logs, which is not"),
        (&["users", "shop.users"], "parked", Reason::TableNotParked, "have one name"),
        (&["shop.plain"], "taken", Reason::TableNotParked, "cannot be moved: taken.plain is there"),
        (&["shop.given"], "parked", Reason::TableNotParked, "next: GRANT \"analyst\" TO \"migrator\";"),
        (&["shop.missing"], "parked", Reason::TableMissing, "table shop.missing does not exist"),
    ] {
        let park = Park { schema: schema.to_owned(), ..park(tables).park.unwrap() };
        let spec = ControlSpec { park: Some(park), ..spec() };
        let mut client = database.prepared(&spec).await;
        let before = database.value(STATE).await;
        let refused = control::rehearse_up(&mut client, &spec, &sql(&[gone]), &down(), None).await;
        let failure = refused.unwrap_err();
        assert_eq!(failure.reason, reason, "{failure}");
        assert!(failure.message.contains(words), "{failure}");
        assert_eq!(database.value(STATE).await, before);
    }
}

/// It is found by the rehearsal, since the rollback needs the name.
#[tokio::test]
async fn a_name_that_the_up_sql_takes_is_not_free_for_the_rollback() {
    let (database, spec) = (shop().await, park(&["shop.plain"]));
    let mut client = database.prepared(&spec).await;
    let up = sql(&["DROP TABLE credit_purchases; DROP TABLE credit_packages", "CREATE TABLE shop.plain (id int)"]);
    let down = sql(&["DROP TABLE shop.plain"]);
    control::rehearse_up(&mut client, &spec, &up, &down, None).await.unwrap();
    let failure = control::rehearse_down(&mut client, &spec, &down, None).await.unwrap_err();
    assert_eq!(failure.reason, Reason::TableNotParked);
    let words = ["cannot be moved back: relation \"plain\" already exists", "must not have their names"];
    assert!(words.iter().all(|part| failure.message.contains(part)), "{failure}");
}

/// The owner keeps its rights, and with them its jobs.
#[tokio::test]
async fn a_rollback_works_whatever_partitions_came_and_went_meanwhile() {
    let (database, spec) = (shop().await, park(PARKED));
    let mut client = database.prepared(&spec).await;
    control::rehearse_up(&mut client, &spec, &up(), &down(), None).await.unwrap();
    let owner = database.session("migrator").await;
    let retention = "DROP TABLE parked.logs_1;
        CREATE TABLE parked.logs_2 PARTITION OF parked.logs FOR VALUES FROM ('2021-01-01') TO ('2022-01-01')";
    owner.batch_execute(retention).await.unwrap();
    control::rehearse_down(&mut client, &spec, &down(), None).await.unwrap();
    let partitions = "SELECT string_agg(inhrelid::regclass::text, ',') FROM pg_inherits
        WHERE inhparent = 'shop.logs'::regclass";
    assert_eq!(database.value(partitions).await, "shop.logs_2");
    assert_eq!(database.value("SELECT to_regnamespace('parked')").await, "");
}

/// It would be found with writes blocked: to move a table needs a right where it goes, and none where it is.
#[tokio::test]
async fn a_table_that_could_not_be_moved_back_is_not_parked() {
    let (database, spec) = (Database::new().await, park(&["other.gone"]));
    let root = database.session("postgres").await;
    let of_another = "CREATE SCHEMA other; CREATE TABLE other.gone (id int); ALTER TABLE other.gone OWNER TO migrator;
        GRANT USAGE ON SCHEMA other TO migrator, app, analyst";
    root.batch_execute(of_another).await.unwrap();
    let mut client = database.prepared(&spec).await;
    let refused = control::rehearse_up(&mut client, &spec, &sql(&["SELECT 1"]), &sql(&["SELECT 1"]), None).await;
    let failure = refused.unwrap_err();
    assert_eq!(failure.reason, Reason::TableNotParked, "{failure}");
    let next = "next: GRANT CREATE ON SCHEMA \"other\" TO \"migrator\";";
    assert!(failure.message.contains(next), "{failure}");
}

/// Who reads a parked table keeps it from being moved back: such a session is ended as one on a protected table is.
#[tokio::test]
async fn who_reads_a_parked_table_keeps_no_rollback_waiting() {
    let (database, spec) = (shop().await, park(PARKED));
    let mut client = database.prepared(&spec).await;
    control::rehearse_up(&mut client, &spec, &up(), &down(), None).await.unwrap();
    let root = database.session("postgres").await;
    root.batch_execute("CREATE ROLE parked_reader LOGIN IN ROLE migrator").await.unwrap();
    let reader = database.session("parked_reader").await;
    reader.batch_execute("BEGIN; SELECT FROM parked.\"Old orders\"").await.unwrap();
    let failure = control::rehearse_down(&mut client, &spec, &down(), None).await.unwrap_err();
    assert_eq!(failure.reason, Reason::LockTimeout, "{failure}");
    control::drain(&client, &spec, None, Duration::from_secs(5)).await.unwrap();
    control::rehearse_down(&mut client, &spec, &down(), None).await.unwrap();
}
