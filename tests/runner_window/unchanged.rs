//! What a window need not compare: balances that are not tracked, as long as nothing can have changed them unseen.

use credit_migration::{
    api::{Direction, Reason, WindowCommand as Order, WindowState as State},
    runner::{
        database::control::{self, Applied, StopSignal},
        tasks::window::WindowPlan,
    },
};
use tokio_postgres::Client;

use crate::{
    harness::{Database, Desk, end, plan, sample_down, sample_up, spec, sql},
    programs,
    window::{back, sample, unblocked, writable},
};

/// The tracking of one table is as it was before, and has missed a write of user 9.
const UNSEEN: &str = "ALTER TABLE user_credits DISABLE TRIGGER credit_migration_track_changes;
    UPDATE user_credits SET balance = balance + 1 WHERE user_id = 9;
    ALTER TABLE user_credits ENABLE ALWAYS TRIGGER credit_migration_track_changes";

/// SQL that changes the balance of user 9, or takes the user away, each in another way.
const CHANGES: &[&str] = &[
    "UPDATE user_credits SET balance = balance + 1 WHERE user_id = 9",
    UNSEEN,
    "ALTER TABLE user_credits DISABLE TRIGGER USER; UPDATE user_credits SET balance = 0 WHERE user_id = 9",
    "DROP TRIGGER credit_migration_track_changes ON user_credits; DELETE FROM user_credits WHERE user_id = 9",
    // Created again as it was, but for a condition.
    "DROP TRIGGER credit_migration_track_changes ON user_credits;
     CREATE TRIGGER credit_migration_track_changes AFTER INSERT OR UPDATE OR DELETE ON user_credits FOR EACH ROW
         WHEN (false) EXECUTE FUNCTION credit_migration.track_changes();
     ALTER TABLE user_credits ENABLE ALWAYS TRIGGER credit_migration_track_changes;
     UPDATE user_credits SET balance = 0 WHERE user_id = 9",
    // The function is another one for a moment.
    "DO $$ DECLARE was text := pg_get_functiondef('credit_migration.track_changes'::regproc);
     BEGIN
         CREATE OR REPLACE FUNCTION credit_migration.track_changes() RETURNS trigger LANGUAGE plpgsql
             AS 'BEGIN RETURN NULL; END';
         UPDATE user_credits SET balance = 0 WHERE user_id = 9;
         EXECUTE was;
     END $$",
    "ALTER TABLE user_credits ALTER COLUMN balance TYPE bigint USING CASE user_id WHEN 9 THEN 1 ELSE balance END",
    "ALTER TABLE user_credits ADD COLUMN other bigint NOT NULL DEFAULT 7;
     ALTER TABLE user_credits RENAME balance TO was; ALTER TABLE user_credits RENAME other TO balance",
    "CREATE TABLE copied AS SELECT * FROM user_credits WHERE user_id <> 9; TRUNCATE user_credits;
     INSERT INTO user_credits SELECT * FROM copied",
    "CREATE TABLE fresh AS SELECT * FROM user_credits WHERE user_id <> 9; DROP TABLE user_credits;
     ALTER TABLE fresh RENAME TO user_credits; GRANT SELECT, INSERT, UPDATE ON user_credits TO app",
    "ALTER TABLE user_credits RENAME TO old; CREATE TABLE user_credits AS SELECT * FROM old WHERE user_id <> 9;
     GRANT SELECT, INSERT, UPDATE ON user_credits TO app",
    "CREATE TABLE more (LIKE user_credits INCLUDING ALL); INSERT INTO more (user_id, balance) VALUES (999, 5);
     ALTER TABLE more INHERIT user_credits",
    // What was tracked is forgotten.
    "UPDATE user_credits SET balance = 0 WHERE user_id = 9; DELETE FROM credit_migration.changed_users",
    "UPDATE user_credits SET balance = 0 WHERE user_id = 9; TRUNCATE credit_migration.changed_users",
    "CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
     CREATE TRIGGER nothing BEFORE INSERT ON credit_migration.changed_users FOR EACH ROW EXECUTE FUNCTION nothing();
     UPDATE user_credits SET balance = 0 WHERE user_id = 9",
];
/// For ordinary roles from version 15 on.
const AS_A_REPLICA: &str = "SET LOCAL session_replication_role = replica;
    UPDATE user_credits SET balance = 0 WHERE user_id = 9";

const KNOWN: &str = "SELECT count(*) FROM credit_migration.compared";
const GONE: &str = "DROP TABLE credit_purchases; DROP TABLE credit_packages";

async fn changes(database: &Database) -> Vec<&'static str> {
    let mut all = CHANGES.to_vec();
    if *programs::MAJOR >= 15 {
        let root = database.session("postgres").await;
        root.batch_execute("GRANT SET ON PARAMETER session_replication_role TO migrator").await.unwrap();
        all.push(AS_A_REPLICA);
    }
    all
}

async fn run_up(client: &mut Client, statements: &[&str]) -> Result<Applied, credit_migration::runner::Failure> {
    control::run_up(client, &spec(), &sql(statements), &sample_down(), &StopSignal::default()).await
}

async fn write(database: &Database, user: i64) {
    let app = database.session("app").await;
    let update = format!("UPDATE user_credits SET balance = balance + 1 WHERE user_id = {user}");
    app.batch_execute(&update).await.unwrap();
}

/// Whether the balances that are not tracked are known to be unchanged.
async fn known(client: &mut Client) -> bool {
    let (compared, all) = control::compare_blocked(client, &spec()).await.unwrap();
    assert_eq!((compared.users, compared.unexplained), (200, 0));
    !all
}

#[tokio::test]
async fn no_sql_of_a_rollback_changes_a_balance_unseen() {
    let (database, spec) = (unblocked().await, spec());
    let mut client = database.target().connect("test").await.unwrap();
    write(&database, 3).await;
    let balances = database.balances().await;
    for change in changes(&database).await {
        assert_eq!(database.value(KNOWN).await, "1", "after what was refused before, too");
        let down = sql(&[&sample_down().text, change]);
        let failure = control::run_down(&mut client, &spec, &down).await.expect_err(change);
        assert_eq!(failure.reason, Reason::BalancesUnexplained, "{change}: {failure}");
        assert_eq!(database.balances().await, balances);
    }
    let applied = control::run_down(&mut client, &spec, &sample_down()).await.unwrap();
    assert!(matches!(applied, Applied::Now { reconciled_users: 1, all_compared: false, .. }), "{applied:?}");
    assert!(known(&mut client).await);
}

#[tokio::test]
async fn no_up_sql_changes_a_balance_unseen() {
    let database = Database::new().await;
    let all = changes(&database).await;
    for change in all {
        let database = Database::new().await;
        let mut client = database.prepared(&spec()).await;
        write(&database, 3).await;
        assert_eq!(database.value(KNOWN).await, "1");
        // What the transaction does not find is found during the rollout.
        if let Err(failure) = run_up(&mut client, &[GONE, change]).await {
            assert_eq!(failure.reason, Reason::BalancesUnexplained, "{change}: {failure}");
            continue;
        }
        let (compared, all) = control::compare_blocked(&mut client, &spec()).await.unwrap();
        assert!(compared.unexplained > 0 && all, "{change}: {compared:?}");
    }
}

/// SQL that leaves balances alone: whether all have to be compared because of it.
#[tokio::test]
async fn sql_that_leaves_the_balances_where_they_are_needs_no_comparison_of_all() {
    let rewrite = "ALTER TABLE user_credits ALTER COLUMN balance TYPE numeric(20, 4)";
    for (up, down, all) in [
        ("ALTER TABLE user_credits ADD COLUMN plan text", "ALTER TABLE user_credits DROP COLUMN plan", false),
        ("CREATE INDEX ON user_credits (balance); UPDATE user_credits SET updated_at = now()", "SELECT 1", false),
        (
            "UPDATE user_credits SET balance = balance + 1; UPDATE user_credits SET balance = balance - 1",
            "SELECT 1",
            false,
        ),
        (rewrite, "ALTER TABLE user_credits ALTER COLUMN balance TYPE bigint", true),
    ] {
        let database = Database::new().await;
        let mut spec = spec();
        spec.verify_down = None;
        let mut client = database.prepared(&spec).await;
        let applied = run_up(&mut client, &[GONE, up]).await.unwrap();
        assert!(matches!(applied, Applied::Now { all_compared, .. } if all_compared == all), "{up}: {applied:?}");
        assert_eq!(known(&mut client).await, !all, "{up}");
        assert!(known(&mut client).await, "{up}: all are compared once");
        let applied = control::run_down(&mut client, &spec, &sql(&[down])).await.unwrap();
        assert!(matches!(applied, Applied::Now { all_compared, .. } if all_compared == all), "{down}: {applied:?}");
        assert!(known(&mut client).await, "{down}: the transaction has compared them");
    }
}

/// Weeks may lie between the window and its rollback.
#[tokio::test]
async fn what_is_known_is_lost_by_whatever_may_have_changed_a_balance_unseen_and_by_nothing_else() {
    let database = unblocked().await;
    let mut client = database.target().connect("test").await.unwrap();
    let owner = database.session("migrator").await;
    let trigger = |how: &str| format!("ALTER TABLE user_credits {how} TRIGGER credit_migration_track_changes");
    for (statements, stays) in [
        ("ANALYZE user_credits".to_owned(), true),
        ("VACUUM user_credits".to_owned(), true),
        ("CREATE INDEX ON user_credits (updated_at)".to_owned(), true),
        ("ALTER TABLE user_credits ADD COLUMN note text DEFAULT 'x'".to_owned(), true),
        ("GRANT SELECT ON user_credits TO analyst".to_owned(), true),
        (
            "UPDATE user_credits SET balance = balance + 1; UPDATE user_credits SET balance = balance - 1".to_owned(),
            true,
        ),
        (trigger("DISABLE"), false),
        (trigger("ENABLE"), false),
        (format!("{}; {}", trigger("DISABLE"), trigger("ENABLE ALWAYS")), false),
        ("VACUUM FULL user_credits".to_owned(), false),
        ("ALTER TABLE user_credits ENABLE ROW LEVEL SECURITY".to_owned(), false),
        (
            "ALTER TABLE subscription_credits DROP CONSTRAINT subscription_credits_user_id_fkey; ALTER TABLE
             user_credits DROP CONSTRAINT user_credits_user_id_fkey; ALTER TABLE user_credits SET UNLOGGED"
                .to_owned(),
            false,
        ),
        ("ALTER TABLE user_credits SET LOGGED".to_owned(), false),
        ("TRUNCATE credit_migration.changed_users".to_owned(), false),
        ("ALTER TABLE user_credits ALTER COLUMN balance TYPE numeric".to_owned(), false),
    ] {
        for statement in statements.split("; ") {
            owner.batch_execute(statement).await.unwrap();
        }
        assert_eq!(known(&mut client).await, stays, "{statements}");
        control::reinstall(&mut client, &spec()).await.unwrap();
        // Compared once, it is known again, unless a write could go untracked.
        let works = control::compare_untracked(&mut client, &spec(), Direction::Rollback, false).await.unwrap();
        assert_eq!(works.known, !statements.ends_with("UNLOGGED"), "{statements}");
    }
}

/// A trigger was off for a while before the window, with writes open.
#[tokio::test]
async fn a_write_that_was_not_tracked_stops_a_window_on_standby_and_is_kept_by_a_rollback() {
    let (database, desk) = (Database::new().await, Desk::new());
    database.prepared(&spec()).await;
    database.session("migrator").await.batch_execute(UNSEEN).await.unwrap();
    let outcome = end(desk.start(&database, &sample())).await;
    let failure = outcome.failure.unwrap();
    assert_eq!((failure.reason, outcome.progress.blocked_at), (Reason::BalancesUnexplained, None), "{failure}");
    assert!(failure.message.starts_with("1 of 200 balances are unexplained"), "{failure}");
    writable(&database, false).await;

    let (database, desk) = (unblocked().await, Desk::new());
    database.session("migrator").await.batch_execute(UNSEEN).await.unwrap();
    let balances = database.balances().await;
    let task = desk.start(&database, &back());
    desk.order(Order::BlockWrites);
    desk.state(State::Blocked).await;
    desk.order(Order::Rollback);
    let outcome = end(task).await;
    assert_eq!((outcome.progress.state, outcome.failure), (State::RolledBack, None));
    assert_eq!(database.balances().await, balances);
}

/// Who has written stays known, to the user.
#[tokio::test]
async fn a_rollback_empties_the_tracking_on_standby_and_counts_each_user_once() {
    let (database, desk) = (unblocked().await, Desk::new());
    for user in 1..=7 {
        write(&database, user).await;
    }
    let task = desk.start(&database, &back());
    desk.state(State::Ready).await;
    assert_eq!(database.value("SELECT count(*) FROM credit_migration.changed_users").await, "0");
    for user in [7, 8] {
        write(&database, user).await;
    }
    let balances = database.balances().await;
    desk.order(Order::BlockWrites);
    assert_eq!(desk.state(State::Blocked).await.users_written_since, Some(8));
    desk.order(Order::Rollback);
    let outcome = end(task).await;
    assert_eq!((outcome.progress.state, outcome.failure), (State::RolledBack, None));
    assert_eq!(database.balances().await, balances);
    let reconciled = "SELECT reconciled_users FROM credit_migration.ledger WHERE step = 'down'";
    assert_eq!(database.value(reconciled).await, "2", "those that were written since");
}

/// The SQL is run again: what the first attempt found in the database is there for the second.
#[tokio::test]
async fn a_refused_rollback_loses_nothing_that_is_known() {
    let database = unblocked().await;
    let bad = sql(&[&sample_down().text, CHANGES[0]]);
    let desk = Desk::new();
    let task = desk.start(&database, &plan(Direction::Rollback, sample_up(), bad));
    desk.order(Order::BlockWrites);
    desk.state(State::Blocked).await;
    desk.order(Order::Rollback);
    assert_eq!(end(task).await.failure.unwrap().reason, Reason::BalancesUnexplained);
    let mut client = database.target().connect("test").await.unwrap();
    assert!(known(&mut client).await);
    let desk = Desk::new();
    let task = desk.start(&database, &WindowPlan { attempt: 2, ..back() });
    desk.order(Order::Rollback);
    let outcome = end(task).await;
    assert_eq!((outcome.progress.state, outcome.failure), (State::RolledBack, None));
    assert_eq!(outcome.progress.comparison.map(|c| (c.users, c.unexplained)), Some((200, 0)));
}
