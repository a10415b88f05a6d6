//! What else uses the tables: Preflight's list, and that after a day.

use std::time::Duration;

use credit_migration::api::{Finding, StatementStatistics, TableUser, TableUserKind, TableUsers, Task};
use serde_json::json;

use crate::harness::World;

const UP: &str = "DROP TABLE notes; ALTER TABLE ONLY public.\"Old stock\" RENAME TO stock";

/// What uses the tables of [`UP`] and a parked one, and what only seems to.
const OTHERS: &str =
    "CREATE TABLE notes (id int PRIMARY KEY); CREATE TABLE \"Old stock\" (id int) PARTITION BY LIST (id);
    CREATE TABLE part PARTITION OF \"Old stock\" DEFAULT;
    CREATE PUBLICATION stock FOR TABLE part; CREATE PUBLICATION others FOR TABLE users;
    CREATE VIEW \"First\" AS SELECT id FROM notes; CREATE VIEW second AS SELECT id FROM \"First\";
    CREATE MATERIALIZED VIEW counted AS SELECT count(*) FROM second; CREATE VIEW apart AS SELECT 1 AS notes;
    CREATE TABLE orders (package int REFERENCES credit_packages, note int REFERENCES notes);
    CREATE FUNCTION first_note(notes) RETURNS int LANGUAGE sql AS 'SELECT $1.id';
    CREATE FUNCTION text_of() RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN (SELECT count(*) FROM Notes); END';
    CREATE FUNCTION no_text_of() RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN 1; /* notes_of_all, credit_notes */ END';
    GRANT SELECT ON notes TO etl_{n}";

async fn used() -> World {
    let mut world = World::new().await;
    let park = json!({"tables": ["credit_packages", "credit_purchases"], "schema": "away"});
    world.spec.plan.migration.park = Some(serde_json::from_value(park).unwrap());
    world.spec.plan.migration.verify_down = None;
    world.sql(UP, "SELECT 1");
    world.alter("CREATE ROLE etl_{n} LOGIN PASSWORD 'etl-secret'").await;
    let owner = world.owner().await;
    owner.batch_execute(&OTHERS.replace("{n}", &world.number.to_string())).await.unwrap();
    world
}

fn user(kind: TableUserKind, name: &str, table: &str) -> TableUser {
    TableUser { kind, name: name.to_owned(), table: Some(table.to_owned()) }
}

async fn found(world: &World) -> Finding {
    let findings = world.run(Task::Preflight).await.findings();
    findings.into_iter().find(|finding| finding.name == Finding::TABLE_USERS).unwrap()
}

/// Without the application's functions: they name tables of the ledger.
fn of(users: &TableUsers, tables: &[&str]) -> Vec<TableUser> {
    let about = |user: &&TableUser| user.table.as_deref().is_some_and(|table| tables.contains(&table));
    users.used_by.iter().filter(about).cloned().collect()
}

#[tokio::test]
async fn preflight_names_what_else_uses_the_tables() {
    use TableUserKind::{ForeignKey, Function, FunctionText, MaterializedView, Publication, Role, View};
    let world = used().await;
    let finding = found(&world).await;
    assert_eq!(finding.reason, None, "{}", finding.message);
    assert_eq!(finding.users.statement_statistics, Some(StatementStatistics::NotInstalled));
    let tables = ["public.notes", "public.\"Old stock\"", "public.part", "public.credit_packages"];
    let mut expected = vec![
        user(Publication, "stock", "public.part"),
        user(View, "public.\"First\"", "public.notes"),
        user(View, "public.second", "public.notes"),
        user(MaterializedView, "public.counted", "public.notes"),
        user(ForeignKey, "orders_note_fkey of public.orders", "public.notes"),
        user(ForeignKey, "orders_package_fkey of public.orders", "public.credit_packages"),
        user(Function, "public.first_note(public.notes)", "public.notes"),
        user(FunctionText, "public.text_of()", "public.notes"),
    ];
    assert_eq!(of(&finding.users, &tables), expected);

    // Who has read them: the roles that are neither the application's nor the migration's.
    world.alter("CREATE EXTENSION pg_stat_statements").await;
    let unread = found(&world).await;
    assert_eq!(unread.users.statement_statistics, Some(StatementStatistics::NotReadable));
    assert!(unread.message.ends_with("the migration role needs pg_read_all_stats"), "{}", unread.message);
    world.alter("GRANT pg_read_all_stats TO migrator_{n}").await;
    world.alter("SET ROLE etl_{n}; SELECT 'secret' FROM notes; RESET ROLE; SET ROLE app_{n}; SELECT 'notes'").await;
    let finding = found(&world).await;
    assert_eq!(finding.users.statement_statistics, Some(StatementStatistics::Read));
    // The superuser of these tests has made them.
    let roles: Vec<TableUser> = of(&finding.users, &["public.notes"]);
    let roles: Vec<&TableUser> = roles.iter().filter(|user| user.kind == Role && user.name != "postgres").collect();
    expected = vec![user(Role, &format!("etl_{}", world.number), "public.notes")];
    assert_eq!(roles, expected.iter().collect::<Vec<_>>());
    let text = serde_json::to_string(&finding).unwrap();
    assert!(!text.contains("secret"), "{text}");

    let slot = "a_slot_{n}".replace("{n}", &world.number.to_string());
    world.alter(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')")).await;
    let users = found(&world).await.users;
    assert!(users.used_by.contains(&TableUser { kind: TableUserKind::Slot, name: slot.clone(), table: None }));
    world.alter(&format!("SELECT pg_drop_replication_slot('{slot}')")).await;
}

#[tokio::test]
async fn after_a_day_it_is_checked_again() {
    let mut world = used().await;
    world.alter("CREATE EXTENSION pg_stat_statements; GRANT pg_read_all_stats TO migrator_{n}").await;
    world.alter("SET ROLE etl_{n}; SELECT FROM notes").await;
    // What needs a table keeps it from being dropped by the SQL.
    let up = "DROP VIEW \"First\" CASCADE; DROP TABLE notes CASCADE; ALTER TABLE \"Old stock\" RENAME TO stock";
    world.sql(up, "SELECT 1");
    world.cutover(up).await;
    world.spec.task = Task::DayCheck;
    let checks = json!([{"name": "one", "interval": "1s", "sql": {"query": "SELECT 1"}, "max": "1"}]);
    world.spec.plan.follow_ups.day.checks = serde_json::from_value(checks).unwrap();
    world.spec.plan.follow_ups.day.duration = Duration::from_secs(3).into();
    // Until the report is there: what counts is what was asked between its two readings.
    let asked = async {
        loop {
            world.alter("GRANT SELECT ON user_credits TO etl_{n}; SET ROLE etl_{n}; SELECT FROM user_credits").await;
        }
    };
    let outcome = tokio::select! {
        outcome = world.run(Task::DayCheck) => outcome,
        () = asked => unreachable!(),
    };
    outcome.result.as_ref().unwrap();
    let users: TableUsers = serde_json::from_value(outcome.noted["report"].clone()).unwrap();
    let package = of(&users, &["away.credit_packages"]);
    let key = user(TableUserKind::ForeignKey, "orders_package_fkey of public.orders", "away.credit_packages");
    assert_eq!(package, [key]);
    let etl = format!("etl_{}", world.number);
    let by_etl: Vec<&TableUser> = users.used_by.iter().filter(|user| user.name == etl).collect();
    let credits = user(TableUserKind::Role, &etl, "public.user_credits");
    assert_eq!(by_etl, [&credits], "not what it did before");
    // A table that is gone is searched for by its name.
    assert!(users.used_by.contains(&user(TableUserKind::FunctionText, "public.text_of()", "notes")), "{users:?}");
    let summary = outcome.noted["report"]["summary"].as_str().unwrap();
    assert!(summary.contains("; other users of the tables ("), "{summary}");
}
