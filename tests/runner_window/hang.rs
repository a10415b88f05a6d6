//! What hangs: the session of a pod that is gone, a table locked against the verification, a rollback that fails with
//! no one present.

use std::time::Duration;

use credit_migration::{
    api::{Direction, Reason, WindowCommand as Order, WindowOrder, WindowState as State},
    runner::{
        Failure,
        database::control::Sql,
        tasks::window::{ChannelError, WindowPlan},
    },
};
use jiff::Timestamp;

use crate::{
    harness::{Database, Desk, end, plan, sample_down, sample_up, spec, state_of},
    programs::MAJOR,
    window::{SLEEPS, back, blocked, compared, ledger, migrated, pausing, sample, unblocked, writable},
};

/// Whether the server can check during a statement whether its client is alive: from 14 on.
fn checks_clients() -> bool {
    *MAJOR >= 14
}

/// The sample's SQL, and a statement for ever.
fn endless(watched: bool) -> Sql {
    let mut endless = sample_up();
    if !watched && checks_clients() {
        // As a server that does not check its client: an older one, or on another platform.
        endless.statements.push("SET client_connection_check_interval = 0".to_owned());
    }
    endless.statements.push("SELECT pg_sleep(600)".to_owned());
    endless
}

fn away() -> ChannelError {
    ChannelError::Unreachable("connection refused".to_owned())
}

#[tokio::test]
async fn a_statement_of_a_killed_pod_keeps_nobody_waiting() {
    for watched in [true, false].into_iter().filter(|watched| !watched || checks_clients()) {
        let (database, desk) = (Database::new().await, Desk::new());
        database.prepared(&spec()).await;
        let plan = plan(Direction::Forward, endless(watched), sample_down());
        // A runtime of its own: an aborted task's connection would wait for its answer, that of a killed process is
        // closed.
        let pod = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let first = {
            let _in_pod = pod.enter();
            desk.start(&database, &plan)
        };
        desk.order(Order::BlockWrites);
        database.until(SLEEPS).await;
        pod.shutdown_background();
        assert!(first.await.is_err());
        if watched {
            // The server itself ends it, before another pod comes.
            database.until(&format!("NOT ({SLEEPS})")).await;
        }
        desk.fails(away());
        desk.pass_deadline();
        // It knows the deadline from the database alone.
        let outcome = end(desk.start(&database, &plan)).await;
        assert!(outcome.progress.deadline_passed && outcome.progress.state == State::RolledBack, "{outcome:?}");
        assert_eq!(ledger(&database).await, "");
        writable(&database, false).await;
    }
}

#[tokio::test]
async fn a_pod_that_receives_sigterm_cancels_its_statement() {
    let (database, desk) = (Database::new().await, Desk::new());
    database.prepared(&spec()).await;
    let task = desk.start(&database, &plan(Direction::Forward, endless(false), sample_down()));
    desk.order(Order::BlockWrites);
    database.until(SLEEPS).await;
    desk.stop.cancel();
    assert_eq!(end(task).await.failure.unwrap().reason, Reason::PodFailed);
    database.until(&format!("NOT ({SLEEPS})")).await;
    let desk = Desk::new();
    let task = desk.start(&database, &sample());
    desk.order(Order::Switch);
    desk.until("acknowledgement", |progress, _| progress.switch_acknowledged).await;
    desk.order(Order::Rollback);
    assert_eq!(end(task).await.progress.state, State::RolledBack);
}

#[tokio::test]
async fn a_session_that_may_not_be_ended_is_reported() {
    let (database, desk) = (Database::new().await, Desk::new());
    database.prepared(&spec()).await;
    let first = migrated(&database, &desk).await;
    first.abort();
    assert!(first.await.is_err());
    let root = database.session("postgres").await;
    root.batch_execute("SELECT pg_advisory_lock(1668114791, 1)").await.unwrap();
    let desk = Desk::new();
    let task = desk.start(&database, &sample());
    desk.order(Order::Rollback);
    let refused = |note: Option<&Failure>| {
        note.is_some_and(|n| n.reason == Reason::PrivilegeMissing && n.message.contains("of role postgres"))
    };
    desk.until("refusal", |progress, note| progress.stuck && refused(note)).await;
    blocked(&database).await;
    drop(root);
    let outcome = end(task).await;
    assert_eq!((outcome.progress.state, outcome.failure), (State::RolledBack, None));
    writable(&database, false).await;
}

/// The owner's own session: it is not among those that are ended.
#[tokio::test]
async fn a_table_locked_against_the_verification_delays_neither_deadline_nor_order() {
    for (cause, reason) in
        [("limit", Some(Reason::LockTimeout)), ("deadline", Some(Reason::DeadlinePassed)), ("order", None)]
    {
        let (database, desk) = (Database::new().await, Desk::new());
        database.prepared(&spec()).await;
        let mut plan = sample();
        if cause != "limit" {
            plan.control_spec.lock_timeout = Duration::from_secs(600);
        }
        let task = desk.start(&database, &plan);
        desk.state(State::Ready).await;
        // As CREATE INDEX does for as long as it takes.
        let owner = database.session("migrator").await;
        owner.batch_execute("BEGIN; LOCK TABLE credit_purchases IN SHARE MODE").await.unwrap();
        desk.order(Order::BlockWrites);
        if cause != "limit" {
            database
                .until(
                    "SELECT count(*) > 0 FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE NOT \
                l.granted AND a.datname = current_database() AND a.application_name = \
                'credit-migration/verification'",
                )
                .await;
        }
        match cause {
            "deadline" => desk.pass_deadline(),
            "order" => desk.order(Order::Rollback),
            _ => {}
        }
        let outcome = end(task).await;
        assert_eq!(outcome.progress.state, State::RolledBack, "{cause}: {outcome:?}");
        assert_eq!(outcome.failure.as_ref().map(|failure| failure.reason), reason, "{cause}: {outcome:?}");
        owner.batch_execute("ROLLBACK").await.unwrap();
        writable(&database, false).await;
    }
}

/// Written users are a figure for information; locked balances must not keep a rollback from its orders.
#[tokio::test]
async fn a_count_that_takes_too_long_is_unknown() {
    let (database, desk) = (unblocked().await, Desk::new());
    let task = desk.start(&database, &back());
    desk.state(State::Ready).await;
    // Only the table of changed users, as in no real case: the verification does not meet it either.
    let owner = database.session("migrator").await;
    owner.batch_execute("BEGIN; LOCK TABLE credit_migration.changed_users").await.unwrap();
    desk.order(Order::BlockWrites);
    let progress = desk.state(State::Blocked).await;
    assert_eq!(progress.users_written_since, None);
    owner.batch_execute("ROLLBACK").await.unwrap();
    desk.order(Order::UnblockWrites);
    assert_eq!(end(task).await.progress.state, State::Unblocked);
}

#[tokio::test]
async fn a_rollback_that_fails_at_the_deadline_is_reported_as_stuck() {
    let (database, desk) = (Database::new().await, Desk::new());
    database.prepared(&spec()).await;
    let mut plan = sample();
    plan.down.as_mut().unwrap().statements.push("UPDATE user_credits SET balance = 0 WHERE user_id = 3".to_owned());
    let task = desk.start(&database, &plan);
    desk.order(Order::BlockWrites);
    desk.state(State::Migrated).await;
    desk.fails(away());
    desk.pass_deadline();
    let outcome = end(task).await;
    assert_eq!((outcome.progress.stuck, outcome.failure.unwrap().reason), (true, Reason::BalancesUnexplained));
    // What the alert receives, which is raised by this alone.
    desk.until("report", |progress, note| progress.stuck && !progress.switch_acknowledged && note.is_some()).await;
    blocked(&database).await;
    assert_eq!(ledger(&database).await, "up");
}

/// As a container that is restarted while the API server is away.
#[tokio::test]
async fn an_order_that_was_kept_is_obeyed() {
    let (database, desk) = (Database::new().await, Desk::new());
    database.prepared(&spec()).await;
    desk.fails(away());
    let deadline = Some(Timestamp::from_second(1_790_000_300).unwrap());
    let kept = WindowOrder { command: Order::BlockWrites, deadline };
    let task = desk.start(&database, &WindowPlan { order: kept, ..sample() });
    desk.state(State::Migrated).await;
    desk.pass_deadline();
    assert_eq!(end(task).await.progress.state, State::RolledBack);
    writable(&database, false).await;
}

/// The down SQL is edited or pruned after the first pod has read it, and that pod is killed before the commit.
#[tokio::test]
async fn a_fresh_pod_needs_no_down_sql_to_unblock_writes() {
    let (database, desk) = (Database::new().await, Desk::new());
    database.prepared(&spec()).await;
    let plan = plan(Direction::Forward, endless(true), sample_down());
    let pod = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let first = {
        let _in_pod = pod.enter();
        desk.start(&database, &plan)
    };
    desk.order(Order::BlockWrites);
    database.until(SLEEPS).await;
    pod.shutdown_background();
    assert!(first.await.is_err());
    desk.fails(away());
    desk.pass_deadline();
    let outcome = end(desk.start(&database, &WindowPlan { up: gone(), down: gone(), ..plan })).await;
    assert_eq!((outcome.progress.state, outcome.progress.stuck), (State::RolledBack, false), "{outcome:?}");
    writable(&database, false).await;
}

/// An error that is no lost connection, before the pod has read what the database records.
#[tokio::test]
async fn a_fresh_pod_that_cannot_read_the_record_does_not_give_up_blocked_writes() {
    let (database, desk) = (Database::new().await, Desk::new());
    database.prepared(&spec()).await;
    let first = migrated(&database, &desk).await;
    first.abort();
    assert!(first.await.is_err());
    let root = database.session("postgres").await;
    root.batch_execute("REVOKE SELECT ON credit_migration.ledger FROM migrator").await.unwrap();
    let deadline = Some(Timestamp::from_second(1_790_000_300).unwrap());
    let known = WindowOrder { command: Order::BlockWrites, deadline };
    let desk = Desk::new();
    desk.order(Order::BlockWrites);
    let task = desk.start(&database, &WindowPlan { order: known, ..sample() });
    desk.until("the refusal", |_, note| note.is_some_and(|n| n.message.contains("42501"))).await;
    desk.pass_deadline();
    desk.stuck().await;
    root.batch_execute("GRANT SELECT ON credit_migration.ledger TO migrator").await.unwrap();
    assert_eq!(end(task).await.progress.state, State::RolledBack);
    writable(&database, false).await;
}

/// The runner's statement waits for a lock of another session.
const WAITS: &str = "SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = current_database()
    AND application_name = 'credit-migration/window' AND wait_event_type = 'Lock'";

/// Another session changes a setting of the database at the moment at which the window restores its own.
#[tokio::test]
async fn a_default_that_another_session_changes_is_restored_all_the_same() {
    let (database, desk) = (Database::new().await, Desk::new());
    database.prepared(&spec()).await;
    let paused = database.pause_sql().await;
    let mut up = pausing();
    up.statements.insert(1, "SELECT 1/0".to_owned());
    let task = desk.start(&database, &plan(Direction::Forward, up, sample_down()));
    desk.order(Order::BlockWrites);
    database.until(SLEEPS).await;
    let other = database.changing_a_setting().await;
    drop(paused);
    database.until(WAITS).await;
    // Now the runner's statement fails: tuple concurrently updated.
    other.batch_execute("COMMIT").await.unwrap();
    let outcome = end(task).await;
    let failure = outcome.failure.unwrap();
    assert_eq!((outcome.progress.state, failure.reason), (State::RolledBack, Reason::SqlFailed), "{failure}");
    assert_eq!(database.read_only_default().await, "work_mem=8MB");
    let app = database.session("app").await;
    assert_eq!(state_of(&app, "UPDATE user_credits SET updated_at = now()").await, "ok");
}

#[tokio::test]
async fn a_session_that_changes_the_database_keeps_nobody_from_the_deadline() {
    let (database, desk) = (Database::new().await, Desk::new());
    database.prepared(&spec()).await;
    let paused = database.pause_sql().await;
    let task = desk.start(&database, &plan(Direction::Forward, pausing(), sample_down()));
    desk.order(Order::BlockWrites);
    database.until(SLEEPS).await;
    let other = database.changing_a_setting().await;
    drop(paused);
    desk.state(State::Migrated).await;
    desk.pass_deadline();
    // The down SQL runs, and that new sessions are still read-only is said.
    desk.until("stuck", |progress, note| {
        progress.stuck && note.is_some_and(|n| n.message.contains("the window's deadline"))
    })
    .await;
    assert_eq!(ledger(&database).await, "up,down");
    other.batch_execute("ROLLBACK").await.unwrap();
    let outcome = end(task).await;
    assert_eq!((outcome.progress.state, outcome.progress.stuck), (State::RolledBack, false), "{outcome:?}");
    assert_eq!(outcome.failure.unwrap().reason, Reason::DeadlinePassed);
    writable(&database, false).await;
}

/// As a row that is open in a tool that commits by hand.
#[tokio::test]
async fn a_locked_window_record_keeps_nobody_from_the_deadline() {
    let (database, desk) = (Database::new().await, Desk::new());
    database.prepared(&spec()).await;
    let task = compared(&database, &desk).await;
    let other = database.session("postgres").await;
    other.batch_execute("BEGIN READ WRITE; SELECT FROM credit_migration.window_record FOR UPDATE").await.unwrap();
    desk.order(Order::Switch);
    let timed_out = |note: Option<&Failure>| note.is_some_and(|n| n.reason == Reason::LockTimeout);
    let progress = desk.until("the lock's time-out", |_, note| timed_out(note)).await;
    assert!(!progress.switch_acknowledged);
    desk.pass_deadline();
    // Writes are not unblocked before the record says so, and no switch was acknowledged.
    database.until("SELECT count(*) = 2 FROM credit_migration.ledger").await;
    other.batch_execute("ROLLBACK").await.unwrap();
    let outcome = end(task).await;
    assert_eq!(outcome.progress.state, State::RolledBack, "{outcome:?}");
    writable(&database, false).await;
}

#[tokio::test]
async fn a_switch_is_not_acknowledged_after_writes_were_unblocked_by_hand() {
    let (database, desk) = (Database::new().await, Desk::new());
    database.prepared(&spec()).await;
    let task = compared(&database, &desk).await;
    let root = database.session("postgres").await;
    root.batch_execute("UPDATE credit_migration.write_block SET blocked = false").await.unwrap();
    desk.until("the report", |_, note| note.is_some_and(|n| n.reason == Reason::WritesNotBlocked)).await;
    desk.order(Order::Switch);
    desk.asked_for_orders(5).await;
    assert!(!desk.last().switch_acknowledged);
    desk.pass_deadline();
    assert_eq!(end(task).await.progress.state, State::RolledBack);
    writable(&database, false).await;
}

/// No time-out of the server limits every statement: a COMMIT may wait for a standby.
#[tokio::test]
async fn a_control_statement_without_an_answer_is_cancelled() {
    let database = Database::new().await;
    let client = database.target().connect("test").await.unwrap();
    let sleeping = async { client.batch_execute("SELECT pg_sleep(600)").await.map_err(Failure::from) };
    let bounded = database.target().bounded(client.cancel_token(), Duration::from_millis(200), sleeping).await;
    assert_eq!(bounded.unwrap_err().reason, Reason::DatabaseUnavailable);
    client.batch_execute("SELECT 1").await.unwrap();
}

/// A role that can write the ledger could change what a rollback runs.
#[tokio::test]
async fn a_stored_down_sql_that_was_changed_is_not_run() {
    let database = unblocked().await;
    database
        .session("postgres")
        .await
        .batch_execute("UPDATE credit_migration.ledger SET down_sql = down_sql || '; DROP TABLE users'")
        .await
        .unwrap();
    let outcome = end(Desk::new().start(&database, &WindowPlan { down: gone(), ..back() })).await;
    assert_eq!(outcome.failure.unwrap().reason, Reason::SqlChanged);
    writable(&database, true).await;
}

fn gone() -> Result<Sql, Failure> {
    Err(Failure::new(Reason::SqlChanged, "the key is missing"))
}

#[tokio::test]
async fn the_up_sql_is_needed_until_it_is_committed() {
    let (database, desk) = (Database::new().await, Desk::new());
    database.prepared(&spec()).await;
    let mut changed = sample();
    changed.inputs.up_sha256 = "sha256:0".to_owned();
    for plan in [WindowPlan { up: gone(), ..sample() }, changed, WindowPlan { down: gone(), ..sample() }] {
        desk.order(Order::BlockWrites);
        let outcome = end(desk.start(&database, &plan)).await;
        assert_eq!(outcome.failure.unwrap().reason, Reason::SqlChanged);
        assert_eq!(database.value("SELECT count(*) FROM credit_migration.write_block").await, "0");
    }
    // The next pod of the forward window.
    let desk = Desk::new();
    let first = migrated(&database, &desk).await;
    first.abort();
    assert!(first.await.is_err());
    let task = desk.start(&database, &WindowPlan { up: gone(), down: gone(), ..sample() });
    desk.order(Order::Switch);
    desk.until("comparison", |progress, _| progress.comparison.is_some() && progress.switch_acknowledged).await;
    desk.order(Order::UnblockWrites);
    assert_eq!(end(task).await.progress.state, State::Unblocked);
    writable(&database, true).await;
}

/// The next release prunes the ConfigMap, or edits it, while a rollback is still possible.
#[tokio::test]
async fn the_rollback_needs_no_config_map() {
    for down in ["mounted", "gone", "edited"] {
        let database = unblocked().await;
        let mut plan = WindowPlan { up: gone(), ..back() };
        plan.inputs.up_sha256 = "sha256:0".to_owned();
        match down {
            "gone" => plan.down = gone(),
            "edited" => plan.down = Ok(Sql { sha256: "sha256:0".to_owned(), ..sample_up() }),
            _ => {}
        }
        let desk = Desk::new();
        let task = desk.start(&database, &plan);
        desk.state(State::Ready).await;
        desk.order(Order::BlockWrites);
        desk.state(State::Blocked).await;
        desk.order(Order::Rollback);
        let outcome = end(task).await;
        assert_eq!((outcome.progress.state, outcome.failure), (State::RolledBack, None), "{down}");
        writable(&database, false).await;
    }
    // Another one than was kept is approved, and is not there.
    let database = unblocked().await;
    let mut plan = WindowPlan { down: gone(), ..back() };
    plan.inputs.down_sha256 = "sha256:0".to_owned();
    assert_eq!(end(Desk::new().start(&database, &plan)).await.failure.unwrap().reason, Reason::SqlChanged);
}
