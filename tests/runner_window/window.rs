//! The window task from order to end, and every way in which it may be interrupted.

use std::sync::Arc;

use credit_migration::{
    api::{Direction, Reason, WindowCommand as Order, WindowState as State},
    runner::{
        database::control::Sql,
        tasks::window::{ChannelError, WindowOutcome, WindowPlan},
    },
};

use tokio::task::JoinHandle;

use crate::harness::{Database, Desk, PAUSED, end, plan, sample_down, sample_up, spec, sql, state_of};

pub fn sample() -> WindowPlan {
    plan(Direction::Forward, sample_up(), sample_down())
}

pub fn back() -> WindowPlan {
    plan(Direction::Rollback, sample_up(), sample_down())
}

/// The sample's SQL behind a statement that waits until the session of [`Database::pause_sql`] is dropped.
pub fn pausing() -> Sql {
    let mut pausing = sample_up();
    let wait = format!("DO $$ BEGIN WHILE {PAUSED} LOOP PERFORM pg_sleep(0.01); END LOOP; END $$");
    pausing.statements.insert(0, wait);
    pausing
}

/// The SQL waits.
pub const SLEEPS: &str = "SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = current_database()
    AND (query LIKE 'SELECT pg_sleep%' OR query LIKE 'DO $$ BEGIN WHILE%') AND state = 'active'";

/// Writes of the application go through, new sessions are not read-only, and the schema is the one that is expected.
pub async fn writable(database: &Database, new_schema: bool) {
    let app = database.session("app").await;
    assert_eq!(
        state_of(&app, "INSERT INTO credit_transactions (user_id, type, amount) VALUES (1, 'bonus', 0)").await,
        "ok"
    );
    assert_eq!(state_of(&app, "UPDATE user_credits SET updated_at = now()").await, "ok");
    assert_eq!(database.read_only_default().await, "");
    let expected = if new_schema { "credit_plans" } else { "" };
    assert_eq!(database.value("SELECT to_regclass('credit_plans')").await, expected);
    assert_eq!(
        database
            .value(
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ExclusiveLock' \
        AND objid = 2 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            )
            .await,
        "0"
    );
}

/// A window of the sample with its SQL committed: the task, which waits for the controller.
pub async fn migrated(database: &Database, desk: &Arc<Desk>) -> JoinHandle<WindowOutcome> {
    let task = desk.start(database, &sample());
    desk.order(Order::BlockWrites);
    desk.state(State::Migrated).await;
    task
}

/// The same with its balances compared, too.
pub async fn compared(database: &Database, desk: &Arc<Desk>) -> JoinHandle<WindowOutcome> {
    let task = migrated(database, desk).await;
    desk.until("comparison", |progress, _| progress.comparison.is_some()).await;
    task
}

/// A database whose window ended stuck, with writes blocked on the new schema: its down SQL fails.
pub async fn left_stuck() -> Database {
    let (database, desk) = (Database::new().await, Desk::new());
    database.prepared(&spec()).await;
    let mut plan = sample();
    plan.down.as_mut().unwrap().statements.push("SELECT 1/0".to_owned());
    let task = desk.start(&database, &plan);
    desk.order(Order::BlockWrites);
    desk.state(State::Migrated).await;
    desk.order(Order::Rollback);
    assert!(end(task).await.progress.stuck);
    database
}

pub async fn blocked(database: &Database) {
    let app = database.session("app").await;
    assert_eq!(state_of(&app, "BEGIN READ WRITE; UPDATE user_credits SET updated_at = now()").await, "25006");
}

pub async fn ledger(database: &Database) -> String {
    database.value("SELECT string_agg(step, ',' ORDER BY applied_at) FROM credit_migration.ledger").await
}

/// A database that went through the window and is open on the new schema.
pub async fn unblocked() -> Database {
    let (database, desk) = (Database::new().await, Desk::new());
    database.prepared(&spec()).await;
    let task = compared(&database, &desk).await;
    desk.order(Order::Switch);
    desk.until("acknowledgement", |progress, _| progress.switch_acknowledged).await;
    desk.order(Order::UnblockWrites);
    assert_eq!(end(task).await.failure, None);
    database
}

#[tokio::test]
async fn a_window_from_order_to_order() {
    let (database, desk) = (Database::new().await, Desk::new());
    database.prepared(&spec()).await;
    // A reader that holds no writer up, an application with an open session, a write since the baseline.
    let app = database.session("app").await;
    app.batch_execute(
        "UPDATE user_credits SET balance = balance + 5 WHERE user_id = 3; INSERT INTO users (email, \
        api_token) VALUES ('new', 'new'); INSERT INTO user_credits VALUES (201, 9)",
    )
    .await
    .unwrap();
    let balances = database.balances().await;
    let task = desk.start(&database, &sample());
    desk.state(State::Ready).await;
    app.batch_execute(
        "UPDATE user_credits SET balance = balance - 5 WHERE user_id = 3; UPDATE user_credits SET \
        balance = balance + 5 WHERE user_id = 3",
    )
    .await
    .unwrap();
    desk.order(Order::BlockWrites);
    let progress = desk.state(State::Migrated).await;
    assert_eq!((progress.terminated_sessions, progress.reconciled_users), (1, Some(1)));
    assert!(progress.verification.as_ref().unwrap().starts_with("4 writes refused, 0 not tried"), "{progress:?}");
    assert!(progress.verification.unwrap().contains("25006"));
    blocked(&database).await;
    assert_eq!(database.read_only_default().await, "", "the restarted application's sessions are ordinary ones");
    desk.answers("v2");
    let progress = desk.until("version", |progress, _| progress.observed_version.is_some()).await;
    let comparison = progress.comparison.unwrap();
    assert_eq!((comparison.users, comparison.unexplained), (201, 0));
    desk.order(Order::Switch);
    desk.until("acknowledgement", |progress, _| progress.switch_acknowledged).await;
    assert_eq!(
        database.value("SELECT switch_acknowledged_at IS NOT NULL FROM credit_migration.window_record").await,
        "true"
    );
    blocked(&database).await;
    desk.order(Order::UnblockWrites);
    let outcome = end(task).await;
    assert_eq!((outcome.progress.state, outcome.failure), (State::Unblocked, None));
    assert_eq!(desk.last(), outcome.progress, "the end is reported");
    let (from, to) = (outcome.progress.blocked_at.unwrap(), outcome.progress.unblocked_at.unwrap());
    println!(
        "transaction {:?} s, blocked {} from closing to opening (with the test's own waits)",
        outcome.progress.migrate_seconds,
        to.duration_since(from)
    );
    assert_eq!(database.balances().await, balances);
    assert_eq!(ledger(&database).await, "up");
    // Each statement is in it, with its first words and how long it took.
    let texts =
        "SELECT count(*) FROM credit_migration.ledger WHERE statements > 0 AND jsonb_array_length(texts) = statements
                 AND texts->0->>'text' <> '' AND texts->0->>'seconds' IS NOT NULL";
    assert_eq!(database.value(texts).await, "1");
    writable(&database, true).await;
    // The same pod once more finds it done, and repeats the evidence.
    let again = end(desk.start(&database, &sample())).await;
    assert_eq!((again.progress.state, again.failure), (State::Unblocked, None));
    assert_eq!((again.progress.comparison, again.progress.unblocked_at), (outcome.progress.comparison, Some(to)));
}

#[tokio::test]
async fn one_answer_of_one_pod_is_not_the_versions_word() {
    let (database, desk) = (Database::new().await, Desk::new());
    database.prepared(&spec()).await;
    let task = migrated(&database, &desk).await;
    desk.answers("v2 v2 v1");
    let mixed = desk.until("version", |progress, _| progress.observed_version.is_some()).await;
    assert_eq!(mixed.observed_version.as_deref(), Some("v1, v2"));
    desk.answers("v2");
    let asked = desk.until("v2", |progress, _| progress.observed_version.as_deref() == Some("v2")).await.observed_at;
    assert!(asked > mixed.observed_at);
    // The same answer is reported again, with its time ...
    let later = desk.until("v2 again", |progress, _| progress.observed_at > asked).await;
    assert_eq!(later.observed_version.as_deref(), Some("v2"));
    // ... and none is no answer: without one nothing is reported. At most one round was half answered before.
    desk.answers("");
    desk.asked_in_vain(2).await;
    let silent = desk.last().observed_at;
    desk.asked_in_vain(3).await;
    assert_eq!(desk.last().observed_at, silent);
    desk.order(Order::Rollback);
    assert_eq!(end(task).await.progress.state, State::RolledBack);
}

#[tokio::test]
async fn how_long_writes_are_blocked_when_the_controller_answers_at_once() {
    let (database, desk) = (Database::new().await, Desk::new());
    database.prepared(&spec()).await;
    let task = desk.start(&database, &sample());
    desk.state(State::Ready).await;
    desk.order(Order::BlockWrites);
    desk.state(State::Migrated).await;
    desk.order(Order::Switch);
    desk.until("acknowledgement", |progress, _| progress.switch_acknowledged).await;
    desk.order(Order::UnblockWrites);
    let progress = end(task).await.progress;
    let blocked = progress.unblocked_at.unwrap().duration_since(progress.blocked_at.unwrap());
    // A figure for information, without a limit: the machine is shared.
    println!("blocked {blocked}, transaction {:?} s", progress.migrate_seconds);
    writable(&database, true).await;
}

#[tokio::test]
async fn sql_that_fails_leaves_nothing_but_its_reason() {
    let (database, desk) = (Database::new().await, Desk::new());
    let root = database.session("postgres").await;
    root.batch_execute(&format!("ALTER DATABASE {} SET default_transaction_read_only = off", database.name))
        .await
        .unwrap();
    database.prepared(&spec()).await;
    let broken = plan(Direction::Forward, sql(&["DROP TABLE credit_purchases", "SELECT 1/0"]), sample_down());
    let task = desk.start(&database, &broken);
    desk.order(Order::BlockWrites);
    let outcome = end(task).await;
    assert_eq!(outcome.progress.state, State::RolledBack);
    let failure = outcome.failure.unwrap();
    assert!(failure.reason == Reason::SqlFailed && failure.message.starts_with("statement 2 of 2"), "{failure}");
    assert_eq!(
        database.read_only_default().await,
        "default_transaction_read_only=off",
        "what was set before is set again"
    );
    assert_eq!(database.value("SELECT to_regclass('credit_purchases')").await, "credit_purchases");
    let app = database.session("app").await;
    assert_eq!(state_of(&app, "UPDATE user_credits SET updated_at = now()").await, "ok");
    // A second pod of the same attempt does not open the window again, and knows why.
    assert_eq!(end(desk.start(&database, &broken)).await.failure, Some(failure));
    // The next attempt, with better SQL, does.
    let desk = Desk::new();
    let task = desk.start(&database, &WindowPlan { attempt: 2, ..sample() });
    desk.state(State::Ready).await;
    desk.order(Order::BlockWrites);
    desk.state(State::Migrated).await;
    desk.order(Order::Rollback);
    assert_eq!(end(task).await.progress.state, State::RolledBack);
}

#[tokio::test]
async fn a_schema_that_is_not_verified_is_undone_and_writes_are_open() {
    let (database, desk) = (Database::new().await, Desk::new());
    database.prepared(&spec()).await;
    let mut unverified = plan(Direction::Forward, sample_up(), sample_down());
    unverified.control_spec.verify_up = Some("SELECT count(*) = 4 AS plans FROM credit_plans".to_owned());
    let task = desk.start(&database, &unverified);
    desk.order(Order::BlockWrites);
    let outcome = end(task).await;
    assert_eq!(outcome.progress.state, State::RolledBack);
    let failure = outcome.failure.unwrap();
    assert!(failure.reason == Reason::VerifyUpFailed && failure.message.contains("column plans"), "{failure}");
    writable(&database, false).await;
    assert_eq!(ledger(&database).await, "");
}

#[tokio::test]
async fn a_schema_that_changed_since_the_rehearsal_is_found_while_writes_are_open() {
    let (database, desk) = (Database::new().await, Desk::new());
    let plan = database.rehearsed(sample()).await;
    let root = database.session("postgres").await;
    root.batch_execute("ALTER TABLE users ADD note text; DROP INDEX IF EXISTS no_such_index").await.unwrap();
    for number in 0..11 {
        root.batch_execute(&format!("CREATE TABLE later_{number} ()")).await.unwrap();
    }
    let outcome = end(desk.start(&database, &plan)).await;
    let failure = outcome.failure.unwrap();
    assert_eq!(failure.reason, Reason::SchemaDrifted);
    assert!(failure.message.contains("since the rehearsal: table public.users changed; table public.later_0 is new"));
    assert!(failure.message.contains(" and 2 more; limit 0 objects"), "{failure}");
    assert_eq!((outcome.progress.state, outcome.progress.blocked_at), (State::default(), None));
    writable(&database, false).await;
}

#[tokio::test]
async fn a_schema_that_changes_on_standby_is_found_before_the_sql() {
    let (database, desk) = (Database::new().await, Desk::new());
    let plan = database.rehearsed(sample()).await;
    let task = desk.start(&database, &plan);
    desk.state(State::Ready).await;
    let root = database.session("postgres").await;
    root.batch_execute("CREATE VIEW rich AS SELECT user_id FROM user_credits WHERE balance > 5").await.unwrap();
    desk.order(Order::BlockWrites);
    let outcome = end(task).await;
    assert_eq!(outcome.progress.state, State::RolledBack);
    let failure = outcome.failure.unwrap();
    assert!(
        failure.reason == Reason::SchemaDrifted && failure.message.contains("view public.rich is new"),
        "{failure}"
    );
    writable(&database, false).await;
    assert_eq!(ledger(&database).await, "");
    // Without it the schema is the one that was rehearsed: neither the triggers nor a window that failed count.
    root.batch_execute("DROP VIEW rich").await.unwrap();
    let (desk, next) = (Desk::new(), WindowPlan { attempt: 2, ..plan });
    let _task = desk.start(&database, &next);
    desk.order(Order::BlockWrites);
    desk.state(State::Migrated).await;
}

#[tokio::test]
async fn a_lost_connection_at_any_point_is_got_over() {
    for point in ["ready", "sql", "migrated", "acknowledged"] {
        let (database, desk) = (Database::new().await, Desk::new());
        database.prepared(&spec()).await;
        let paused = database.pause_sql().await;
        let task = desk.start(
            &database,
            &plan(Direction::Forward, if point == "sql" { pausing() } else { sample_up() }, sample_down()),
        );
        desk.state(State::Ready).await;
        if point == "ready" {
            database.kill_window().await;
        }
        desk.order(Order::BlockWrites);
        if point == "sql" {
            database.until(SLEEPS).await;
            database.kill_window().await;
        }
        drop(paused);
        desk.state(State::Migrated).await;
        if point == "migrated" {
            database.kill_window().await;
            blocked(&database).await;
        }
        desk.order(Order::Switch);
        desk.until("acknowledgement", |progress, _| progress.switch_acknowledged).await;
        if point == "acknowledged" {
            database.kill_window().await;
            blocked(&database).await;
        }
        desk.order(Order::UnblockWrites);
        let outcome = end(task).await;
        assert_eq!((outcome.progress.state, outcome.failure), (State::Unblocked, None), "{point}");
        assert!(
            outcome.progress.switch_acknowledged && outcome.progress.verification.is_some(),
            "{point}: {:?}",
            outcome.progress
        );
        assert_eq!(ledger(&database).await, "up");
        writable(&database, true).await;
    }
}

#[tokio::test]
async fn a_killed_pod_is_succeeded_by_the_next_one() {
    for point in ["ready", "sql", "migrated", "acknowledged"] {
        let (database, desk) = (Database::new().await, Desk::new());
        database.prepared(&spec()).await;
        let paused = database.pause_sql().await;
        let plan = plan(Direction::Forward, if point == "sql" { pausing() } else { sample_up() }, sample_down());
        let first = desk.start(&database, &plan);
        desk.state(State::Ready).await;
        if point != "ready" {
            desk.order(Order::BlockWrites);
        }
        match point {
            "sql" => database.until(SLEEPS).await,
            "migrated" => drop(desk.state(State::Migrated).await),
            "acknowledged" => {
                desk.state(State::Migrated).await;
                desk.order(Order::Switch);
                desk.until("acknowledgement", |progress, _| progress.switch_acknowledged).await;
            }
            _ => {}
        }
        first.abort();
        assert!(first.await.is_err());
        drop(paused);
        let second = desk.start(&database, &plan);
        desk.order(Order::Switch);
        desk.until("comparison", |progress, _| progress.comparison.is_some() && progress.switch_acknowledged).await;
        desk.order(Order::UnblockWrites);
        let outcome = end(second).await;
        assert_eq!((outcome.progress.state, outcome.failure), (State::Unblocked, None), "{point}");
        assert_eq!(ledger(&database).await, "up");
        writable(&database, true).await;
    }
}

#[tokio::test]
async fn of_two_pods_one_works_and_the_other_takes_over() {
    let (database, desk) = (Database::new().await, Desk::new());
    database.prepared(&spec()).await;
    // Would leave a trace for each time that it takes effect.
    let mut counted = sample_up();
    counted.statements.push("CREATE TABLE IF NOT EXISTS effects (n int); INSERT INTO effects VALUES (1)".to_owned());
    let plan = plan(Direction::Forward, counted, sample_down());
    let (one, two) = (desk.start(&database, &plan), desk.start(&database, &plan));
    desk.state(State::Ready).await;
    database
        .until(
            "SELECT count(*) = 2 FROM pg_stat_activity WHERE datname = current_database() AND application_name \
        = 'credit-migration/window'",
        )
        .await;
    database
        .until(
            "SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'advisory' AND granted AND objid = 1 AND \
        database = (SELECT oid FROM pg_database WHERE datname = current_database())",
        )
        .await;
    desk.order(Order::BlockWrites);
    desk.state(State::Migrated).await;
    desk.order(Order::Switch);
    desk.until("acknowledgement", |progress, _| progress.switch_acknowledged).await;
    desk.order(Order::UnblockWrites);
    for task in [one, two] {
        let outcome = end(task).await;
        assert_eq!((outcome.progress.state, outcome.failure), (State::Unblocked, None));
    }
    assert_eq!(database.value("SELECT count(*) FROM effects").await, "1");
    assert_eq!(ledger(&database).await, "up");
}

#[tokio::test]
async fn past_the_deadline_without_a_migration_writes_are_unblocked() {
    let (database, desk) = (Database::new().await, Desk::new());
    database.prepared(&spec()).await;
    let mut endless = sample_up();
    endless.statements.push("SELECT pg_sleep(600)".to_owned());
    let task = desk.start(&database, &plan(Direction::Forward, endless, sample_down()));
    desk.order(Order::BlockWrites);
    database.until(SLEEPS).await;
    // No orders from the controller any more, and reports that hang.
    desk.hangs();
    desk.pass_deadline();
    // The lock is released after the commit.
    let unblocked = "SELECT NOT blocked AND NOT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = 2
        AND mode = 'ExclusiveLock' AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))
        FROM credit_migration.write_block";
    database.until(unblocked).await;
    writable(&database, false).await;
    assert_eq!(
        database.value("SELECT outcome || ' ' || reason FROM credit_migration.window_record").await,
        "rolled_back DeadlinePassed"
    );
    let outcome = end(task).await;
    assert!(outcome.progress.deadline_passed && outcome.progress.state == State::RolledBack, "{outcome:?}");
}

#[tokio::test]
async fn past_the_deadline_with_a_migration_nobody_took_up_it_is_undone() {
    for gone in [true, false] {
        let (database, desk) = (Database::new().await, Desk::new());
        database.prepared(&spec()).await;
        let balances = database.balances().await;
        let task = desk.start(&database, &sample());
        desk.order(Order::BlockWrites);
        desk.state(State::Migrated).await;
        if gone {
            desk.fails(ChannelError::Gone);
        } else {
            desk.fails(ChannelError::Unreachable("connection refused".to_owned()));
            desk.pass_deadline();
        }
        let outcome = end(task).await;
        assert!(outcome.progress.deadline_passed && outcome.progress.state == State::RolledBack, "{outcome:?}");
        assert_eq!(outcome.failure.unwrap().reason, Reason::DeadlinePassed);
        assert_eq!((ledger(&database).await, database.balances().await), ("up,down".to_owned(), balances));
        writable(&database, false).await;
        // Undone is undone: the next pod, and the next attempt, leave it so.
        let desk = Desk::new();
        desk.order(Order::BlockWrites);
        let outcome = end(desk.start(&database, &WindowPlan { attempt: 2, ..sample() })).await;
        assert_eq!(outcome.progress.state, State::RolledBack);
        assert_eq!(ledger(&database).await, "up,down");
    }
}

#[tokio::test]
async fn past_the_deadline_of_an_acknowledged_switch_writes_stay_blocked() {
    for (order, state) in [(Order::Rollback, State::RolledBack), (Order::UnblockWrites, State::Unblocked)] {
        let (database, desk) = (Database::new().await, Desk::new());
        database.prepared(&spec()).await;
        let task = desk.start(&database, &sample());
        desk.order(Order::BlockWrites);
        desk.state(State::Migrated).await;
        desk.order(Order::Switch);
        desk.until("acknowledgement", |progress, _| progress.switch_acknowledged).await;
        // The next pod knows of the acknowledgement from the database alone.
        task.abort();
        assert!(task.await.is_err());
        desk.fails(ChannelError::Unreachable("connection refused".to_owned()));
        desk.pass_deadline();
        let task = desk.start(&database, &sample());
        let progress = desk.stuck().await;
        assert!(progress.deadline_passed);
        blocked(&database).await;
        assert!(!task.is_finished(), "goes on to obey");
        desk.order(order);
        assert_eq!(end(task).await.progress.state, state);
        writable(&database, state == State::Unblocked).await;
    }
}

#[tokio::test]
async fn rollback_before_the_sql_unblocks_writes() {
    let (database, desk) = (Database::new().await, Desk::new());
    database.prepared(&spec()).await;
    let _paused = database.pause_sql().await;
    let task = desk.start(&database, &plan(Direction::Forward, pausing(), sample_down()));
    desk.order(Order::BlockWrites);
    database.until(SLEEPS).await;
    desk.order(Order::Rollback);
    let outcome = end(task).await;
    assert_eq!(
        (outcome.progress.state, outcome.failure, outcome.progress.deadline_passed),
        (State::RolledBack, None, false)
    );
    assert_eq!(ledger(&database).await, "");
    writable(&database, false).await;
}

#[tokio::test]
async fn a_lock_that_is_not_to_be_had_is_named() {
    let (database, desk) = (Database::new().await, Desk::new());
    database.prepared(&spec()).await;
    let task = desk.start(&database, &sample());
    desk.state(State::Ready).await;
    // A superuser's session cannot be ended by the migration role.
    let root = database.session("postgres").await;
    root.batch_execute("BEGIN; SELECT count(*) FROM user_credits").await.unwrap();
    desk.order(Order::BlockWrites);
    let outcome = end(task).await;
    let failure = outcome.failure.unwrap();
    assert!(failure.reason == Reason::LockTimeout && failure.message.contains("role postgres"), "{failure}");
    assert_eq!(outcome.progress.state, State::RolledBack);
    writable(&database, false).await;
}

#[tokio::test]
async fn a_write_block_without_effect_is_noticed() {
    let (database, desk) = (Database::new().await, Desk::new());
    database.prepared(&spec()).await;
    let task = desk.start(&database, &sample());
    desk.state(State::Ready).await;
    database
        .session("migrator")
        .await
        .batch_execute("ALTER TABLE credit_transactions DISABLE TRIGGER credit_migration_block_writes")
        .await
        .unwrap();
    desk.order(Order::BlockWrites);
    let outcome = end(task).await;
    let failure = outcome.failure.unwrap();
    assert!(failure.reason == Reason::WritesNotBlocked && failure.message.contains("credit_transactions"), "{failure}");
    assert_eq!(ledger(&database).await, "");
}

#[tokio::test]
async fn sql_that_is_not_what_was_approved_is_not_run() {
    let (database, desk) = (Database::new().await, Desk::new());
    let mut plan = sample();
    plan.inputs.down_sha256 = "sha256:0".to_owned();
    assert_eq!(end(desk.start(&database, &plan)).await.failure.unwrap().reason, Reason::SqlChanged);
}
