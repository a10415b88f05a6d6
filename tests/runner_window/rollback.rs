//! The window of a rollback: what it keeps, when it is refused, and how it ends past its deadline.

use credit_migration::{
    api::{Direction, Reason, UNEXPLAINED_BALANCES, WindowCommand as Order, WindowState as State},
    runner::{
        Failure,
        database::control::ControlSpec,
        tasks::{cleanup::cleanup, window::WindowPlan},
    },
};

use crate::{
    harness::{Database, Desk, end, plan, spec, sql, state_of},
    window::{back, blocked, ledger, left_stuck, sample, unblocked, writable},
};

/// Those that the sample's up SQL drops.
const SAMPLE_TABLES: &str = "CREATE TABLE credit_purchases (id int); CREATE TABLE credit_packages (id int)";

#[tokio::test]
async fn the_rollback_keeps_what_was_written_on_the_new_version() {
    let database = unblocked().await;
    let app = database.session("app").await;
    app.batch_execute(
        "UPDATE user_credits SET balance = balance - 1 WHERE user_id IN (3, 4); UPDATE user_credits SET balance = \
            balance + 500 WHERE user_id = 3;
         INSERT INTO users (email, api_token) VALUES ('new', 'new'); INSERT INTO user_credits (user_id, balance) \
         VALUES (201, 77)",
    )
    .await
    .unwrap();
    let written = database.balances().await;
    let desk = Desk::new();
    let task = desk.start(&database, &back());
    desk.state(State::Ready).await;
    desk.order(Order::BlockWrites);
    let progress = desk.state(State::Blocked).await;
    assert_eq!(progress.users_written_since, Some(3));
    blocked(&database).await;
    desk.order(Order::Switch);
    desk.until("acknowledgement", |progress, _| progress.switch_acknowledged).await;
    database.kill_window().await;
    desk.order(Order::Rollback);
    let outcome = end(task).await;
    assert_eq!((outcome.progress.state, outcome.failure), (State::RolledBack, None));
    assert_eq!((database.balances().await, ledger(&database).await), (written, "up,down".to_owned()));
    writable(&database, false).await;
}

/// The pod of a rehearsal is removed when a rollback starts; its session may still read every table.
#[tokio::test]
async fn a_rollback_does_not_wait_for_its_rehearsal() {
    let database = unblocked().await;
    let rehearsal = database.target().connect("rollback-rehearsal").await.unwrap();
    // As pg_dump does, which locks the control schema's tables, too.
    let tables = "public.user_credits, public.credit_plans, credit_migration.ledger, credit_migration.window_record";
    rehearsal.batch_execute(&format!("BEGIN; LOCK TABLE {tables} IN ACCESS SHARE MODE")).await.unwrap();
    let desk = Desk::new();
    let task = desk.start(&database, &back());
    desk.order(Order::BlockWrites);
    desk.state(State::Blocked).await;
    desk.order(Order::Switch);
    desk.until("acknowledgement", |progress, _| progress.switch_acknowledged).await;
    desk.order(Order::Rollback);
    let outcome = end(task).await;
    assert_eq!((outcome.progress.state, outcome.failure), (State::RolledBack, None));
    assert!(rehearsal.batch_execute("SELECT 1").await.is_err(), "its session was ended");
    writable(&database, false).await;
}

/// Pods of the old version may be ready before the down SQL has run: only who has a lock is ended, however often the
/// SQL is retried, and whether or not the migration role sees when a session started.
#[tokio::test]
async fn sessions_of_the_old_version_stay_through_the_retries_of_a_rollback() {
    let (database, desk) = (Database::new().await, Desk::new());
    let (hidden, bridge) = (format!("hidden_{}", database.name), format!("bridge_{}", database.name));
    let root = database.session("postgres").await;
    root.batch_execute(&format!(
        "CREATE ROLE {hidden} LOGIN; CREATE ROLE {bridge} NOINHERIT; GRANT {hidden} TO {bridge}; GRANT {bridge} \
         TO migrator; GRANT SELECT, UPDATE ON ALL TABLES IN SCHEMA public TO {hidden}"
    ))
    .await
    .unwrap();
    let mut plan = sample();
    plan.control_spec.application_roles.push(hidden.clone());
    database.prepared(&plan.control_spec).await;
    let task = desk.start(&database, &plan);
    desk.order(Order::BlockWrites);
    desk.state(State::Migrated).await;
    let old_version = [database.session("app").await, database.session(&hidden).await];
    let reader = database.session("app").await;
    reader.batch_execute("BEGIN; SELECT count(*) FROM user_credits").await.unwrap();
    // A superuser's: it cannot be ended.
    root.batch_execute("BEGIN; SELECT count(*) FROM user_credits").await.unwrap();
    desk.order(Order::Rollback);
    let waits = "EXISTS (SELECT FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock' AND database =
        (SELECT oid FROM pg_database WHERE datname = current_database()))";
    for _ in 0..3 {
        database.until(waits).await;
        database.until(&format!("NOT {waits}")).await;
        for session in &old_version {
            let write = "BEGIN READ WRITE; UPDATE user_credits SET updated_at = now() WHERE user_id = 1";
            assert_eq!((state_of(session, write).await, state_of(session, "ROLLBACK").await), refused());
        }
    }
    assert!(reader.batch_execute("SELECT 1").await.is_err(), "its session was ended");
    root.batch_execute("ROLLBACK").await.unwrap();
    let outcome = end(task).await;
    assert_eq!((outcome.progress.state, outcome.failure), (State::RolledBack, None));
    for session in &old_version {
        assert_eq!(state_of(session, "UPDATE user_credits SET updated_at = now() WHERE user_id = 1").await, "ok");
    }
    writable(&database, false).await;
}

fn refused() -> (String, String) {
    ("25006".to_owned(), "ok".to_owned())
}

#[tokio::test]
async fn a_rollback_that_alters_balances_is_refused_and_stuck() {
    let database = unblocked().await;
    let mut plan = back();
    plan.down.as_mut().unwrap().statements.push("UPDATE user_credits SET balance = 0 WHERE user_id = 3".to_owned());
    let desk = Desk::new();
    let task = desk.start(&database, &plan);
    desk.order(Order::BlockWrites);
    desk.state(State::Blocked).await;
    desk.order(Order::Rollback);
    let outcome = end(task).await;
    let failure = outcome.failure.unwrap();
    assert_eq!((outcome.progress.stuck, failure.reason), (true, Reason::BalancesUnexplained));
    assert!(failure.message.contains(UNEXPLAINED_BALANCES), "{failure}");
    let listed = "SELECT user_id || ' ' || expected || ' ' || found FROM credit_migration.unexplained_balances";
    assert_eq!(database.value(listed).await, "3 1003 0");
    blocked(&database).await;
    assert_eq!(database.value("SELECT to_regclass('credit_plans')").await, "credit_plans");
    // The next attempt takes over while writes are blocked.
    let desk = Desk::new();
    let task = desk.start(&database, &WindowPlan { attempt: 2, ..back() });
    desk.until("taken over", |progress, _| progress.state >= State::Blocked).await;
    desk.order(Order::Rollback);
    let outcome = end(task).await;
    assert_eq!((outcome.progress.state, outcome.failure), (State::RolledBack, None));
    writable(&database, false).await;
}

#[tokio::test]
async fn past_the_deadline_of_a_rollback_writes_are_unblocked_or_stay_blocked() {
    let database = unblocked().await;
    let desk = Desk::new();
    let task = desk.start(&database, &back());
    desk.order(Order::BlockWrites);
    desk.state(State::Blocked).await;
    desk.pass_deadline();
    let outcome = end(task).await;
    assert!(outcome.progress.deadline_passed && outcome.progress.state == State::Unblocked, "{outcome:?}");
    writable(&database, true).await;

    let desk = Desk::new();
    let task = desk.start(&database, &WindowPlan { attempt: 2, ..back() });
    desk.order(Order::BlockWrites);
    desk.state(State::Blocked).await;
    desk.order(Order::Switch);
    desk.until("acknowledgement", |progress, _| progress.switch_acknowledged).await;
    desk.pass_deadline();
    desk.stuck().await;
    blocked(&database).await;
    desk.order(Order::Rollback);
    assert_eq!(end(task).await.progress.state, State::RolledBack);
    writable(&database, false).await;
}

/// The flag may be back at the old value already when the forward window ends with writes blocked.
#[tokio::test]
async fn a_rollback_that_takes_over_a_window_never_unblocks_on_its_own() {
    let database = left_stuck().await;

    let desk = Desk::new();
    let task = desk.start(&database, &back());
    desk.until("taken over", |progress, _| progress.state >= State::Blocked).await;
    desk.order(Order::BlockWrites);
    desk.pass_deadline();
    desk.stuck().await;
    blocked(&database).await;
    desk.order(Order::Rollback);
    let outcome = end(task).await;
    assert_eq!((outcome.progress.state, outcome.failure), (State::RolledBack, None));
    writable(&database, false).await;
}

#[tokio::test]
async fn writes_stay_blocked_while_balances_are_unexplained() {
    let (database, desk) = (Database::new().await, Desk::new());
    database.prepared(&spec()).await;
    // A copy that loses a user without change tracking: only the full comparison can find it.
    let lossy = sql(&[
        "DROP TABLE credit_purchases; DROP TABLE credit_packages",
        "ALTER TABLE user_credits RENAME TO old",
        "CREATE TABLE user_credits AS SELECT * FROM old WHERE user_id <> 9",
        "GRANT SELECT, INSERT, UPDATE ON user_credits TO app",
    ]);
    let down = sql(&[
        "DROP TABLE user_credits; ALTER TABLE old RENAME TO user_credits",
        "CREATE FUNCTION verify_rollback() RETURNS boolean LANGUAGE sql AS 'SELECT true'",
    ]);
    let task = desk.start(&database, &plan(Direction::Forward, lossy, down));
    desk.order(Order::BlockWrites);
    desk.until("comparison", |progress, _| progress.comparison.as_ref().is_some_and(|c| c.unexplained == 1)).await;
    // Who it is can be read while writes are blocked, by the owner alone.
    let listed =
        "SELECT string_agg(concat_ws(' ', migration_uid, user_id, expected, coalesce(found::text, 'none')), ',')
        FROM credit_migration.unexplained_balances";
    assert_eq!(database.value(listed).await, "uid-1 9 1009 none");
    let app = database.session("app").await;
    assert_eq!(state_of(&app, UNEXPLAINED_BALANCES).await, "42501");
    desk.order(Order::Switch);
    desk.until("acknowledgement", |progress, _| progress.switch_acknowledged).await;
    desk.order(Order::UnblockWrites);
    let says =
        |note: &Failure| note.message.contains("1 of 200 balances") && note.message.contains(UNEXPLAINED_BALANCES);
    desk.until("refusal", |_, note| note.is_some_and(|note| note.reason == Reason::BalancesUnexplained && says(note)))
        .await;
    assert_eq!(database.value("SELECT blocked FROM credit_migration.write_block").await, "true");
    desk.order(Order::Rollback);
    assert_eq!(end(task).await.progress.state, State::RolledBack);
    // Nor does the end of the migration take it away; the next backup does.
    let mut client = database.target().connect("test").await.unwrap();
    cleanup(&mut client, &spec()).await.unwrap();
    assert_eq!(database.value(listed).await, "uid-1 9 1009 none");
    let next = ControlSpec { uid: "uid-2".to_owned(), ..spec() };
    database.session("migrator").await.batch_execute(SAMPLE_TABLES).await.unwrap();
    database.prepared(&next).await;
    assert_eq!(database.value(listed).await, "");
    cleanup(&mut client, &next).await.unwrap();
    assert_eq!(database.value("SELECT to_regclass('credit_migration.unexplained_balances')").await, "");
}
