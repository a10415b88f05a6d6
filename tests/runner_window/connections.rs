//! The sessions that the window needs, on a server that has no connection left.

use std::time::Duration;

use credit_migration::{
    api::{
        Direction, NotShownKind, Obstacle, ObstacleKind, Reason, WindowCommand as Order, WindowProgress,
        WindowState as State,
    },
    runner::Failure,
};

use crate::{
    harness::{Database, Desk, end, plan, sample_down, sample_up, spec},
    window::{SLEEPS, back, ledger, pausing, sample, unblocked, writable},
};

/// No role but a superuser gets a connection to the database any more, or again.
async fn limit(database: &Database, connections: i32) {
    let sql = format!("BEGIN READ WRITE; ALTER DATABASE {} CONNECTION LIMIT {connections}; COMMIT", database.name);
    database.session("postgres").await.batch_execute(&sql).await.unwrap();
}

/// Ends a session that the window has in addition to its own.
async fn lose(database: &Database, step: &str) {
    let killed = database
        .value(&format!(
            "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity
             WHERE datname = current_database() AND application_name = 'credit-migration/{step}'"
        ))
        .await;
    assert_ne!(killed, "0");
}

/// The session that has the locks.
async fn window_pid(database: &Database) -> String {
    database
        .value(
            "SELECT string_agg(pid::text, ',') FROM pg_stat_activity WHERE datname = current_database()
             AND application_name = 'credit-migration/window'",
        )
        .await
}

fn refused(note: Option<&Failure>) -> bool {
    note.is_some_and(|note| note.is_connection_lost() && note.message.contains("SQLSTATE 53300"))
}

/// Pools that connect again take every connection, before or after writes are blocked.
#[rstest::rstest]
#[case::forward(Order::UnblockWrites)]
#[case::rolled_back(Order::Rollback)]
#[tokio::test]
async fn a_window_needs_no_new_connection_once_it_is_ready(#[case] last: Order) {
    let (database, desk) = (Database::new().await, Desk::new());
    database.prepared(&spec()).await;
    let task = desk.start(&database, &sample());
    desk.state(State::Ready).await;
    let pid = window_pid(&database).await;
    limit(&database, 0).await;
    desk.order(Order::BlockWrites);
    desk.until("comparison", |progress, _| progress.comparison.is_some()).await;
    desk.order(Order::Switch);
    desk.until("acknowledgement", |progress, _| progress.switch_acknowledged).await;
    assert_eq!(window_pid(&database).await, pid);
    desk.order(last);
    let outcome = end(task).await;
    assert_eq!(outcome.failure, None);
    limit(&database, -1).await;
    writable(&database, last == Order::UnblockWrites).await;
    assert_eq!(ledger(&database).await, if last == Order::UnblockWrites { "up" } else { "up,down" });
}

/// Waiting takes no approval, however long it lasts.
#[rstest::rstest]
#[case::forward(Direction::Forward)]
#[case::rollback(Direction::Rollback)]
#[tokio::test]
async fn a_pod_that_gets_no_connection_at_all_waits_with_writes_open(#[case] direction: Direction) {
    let (database, plan) = match direction {
        Direction::Forward => (Database::new().await, sample()),
        Direction::Rollback => (unblocked().await, back()),
    };
    if direction == Direction::Forward {
        database.prepared(&spec()).await;
    }
    let desk = Desk::new();
    limit(&database, 0).await;
    let task = desk.start(&database, &plan);
    let none = [Obstacle::too_few_connections(0)];
    let progress = desk.until("it waits", |progress, note| progress.obstacles == none && refused(note)).await;
    assert_eq!(progress.state, State::Starting);
    limit(&database, -1).await;
    obstructed(&desk, false).await;
    // What was free is taken before the order: it is not given up for either direction.
    limit(&database, 0).await;
    lose(&database, "verification").await;
    obstructed(&desk, true).await;
    desk.order(Order::BlockWrites);
    let outcome = end(task).await;
    assert_eq!(outcome.failure.unwrap().reason, Reason::DatabaseUnavailable);
    assert_eq!((outcome.progress.blocked_at, outcome.progress.obstacles.len()), (None, 1));
    limit(&database, -1).await;
    writable(&database, direction == Direction::Rollback).await;
}

/// Until the window is ready, and waits for connections or for nothing.
async fn obstructed(desk: &Desk, obstructed: bool) {
    let kinds: &[ObstacleKind] = if obstructed { &[ObstacleKind::TooFewConnections] } else { &[] };
    desk.until(&format!("{kinds:?}"), |progress, _| {
        progress.state == State::Ready && progress.obstacles.iter().map(|o| &o.kind).eq(kinds)
    })
    .await;
}

/// A login's own limit, met before the window is ready.
#[tokio::test]
async fn a_window_waits_until_all_its_sessions_are_open() {
    let (database, desk) = (Database::new().await, Desk::new());
    database.prepared(&spec()).await;
    let login = format!("limited_{}", database.name);
    let root = database.session("postgres").await;
    root.batch_execute(&format!(
        "CREATE ROLE {login} LOGIN CONNECTION LIMIT 1; GRANT migrator, pg_signal_backend TO {login}"
    ))
    .await
    .unwrap();
    let task = desk.start(&database.with_login(&login), &sample());
    obstructed(&desk, true).await;
    let pid = window_pid(&database).await;
    root.batch_execute(&format!("ALTER ROLE {login} CONNECTION LIMIT 4")).await.unwrap();
    obstructed(&desk, false).await;
    assert_eq!(window_pid(&database).await, pid, "the window's own session was kept");
    desk.order(Order::BlockWrites);
    desk.until("comparison", |progress, _| progress.comparison.is_some()).await;
    desk.order(Order::Rollback);
    assert_eq!(end(task).await.failure, None);
    writable(&database, false).await;
}

#[tokio::test]
async fn writes_are_not_blocked_while_a_lost_session_cannot_be_opened_again() {
    let (database, desk) = (Database::new().await, Desk::new());
    database.prepared(&spec()).await;
    let mut plan = sample();
    // So long an order waits.
    plan.control_spec.lock_timeout = Duration::from_secs(60);
    let task = desk.start(&database, &plan);
    desk.state(State::Ready).await;
    limit(&database, 0).await;
    lose(&database, "comparison").await;
    desk.order(Order::BlockWrites);
    obstructed(&desk, true).await;
    assert_eq!(database.value("SELECT count(*) FROM credit_migration.write_block WHERE blocked").await, "0");
    limit(&database, -1).await;
    desk.state(State::Migrated).await;
    desk.order(Order::Rollback);
    assert_eq!(end(task).await.failure, None);
    writable(&database, false).await;
}

#[tokio::test]
async fn a_comparison_that_fails_is_reported_and_keeps_its_session() {
    let (database, desk) = (Database::new().await, Desk::new());
    database.prepared(&spec()).await;
    let pause = database.pause_sql().await;
    let mut plan = plan(Direction::Forward, pausing(), sample_down());
    plan.control_spec.statement_timeout = Duration::from_secs(5);
    let task = desk.start(&database, &plan);
    desk.order(Order::BlockWrites);
    database.until(SLEEPS).await;
    // As the new version's own migration at its start: it waits for the commit, and is first then.
    let other = database.session("postgres").await;
    let lock = other.batch_execute("BEGIN READ WRITE; LOCK TABLE user_credits IN ACCESS EXCLUSIVE MODE");
    let unpause = async {
        database.until("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock')").await;
        drop(pause);
    };
    let (locked, ()) = tokio::join!(lock, unpause);
    locked.unwrap();
    let pid = "SELECT string_agg(pid::text, ',') FROM pg_stat_activity WHERE datname = current_database()
        AND application_name = 'credit-migration/comparison'";
    let session = database.value(pid).await;
    limit(&database, 0).await;
    let failed = "the full comparison of balances failed, and is retried: ";
    desk.until("the failure", |_, note| note.is_some_and(|note| note.message.starts_with(failed))).await;
    assert_eq!(desk.last().comparison, None);
    other.batch_execute("ROLLBACK").await.unwrap();
    desk.until("the comparison", |progress, note| progress.comparison.is_some() && note.is_none()).await;
    assert_eq!(database.value(pid).await, session, "the same session");
    limit(&database, -1).await;
    desk.order(Order::Rollback);
    assert_eq!(end(task).await.failure, None);
    writable(&database, false).await;
}

/// What keeps it from being shown once more keeps no write blocked, and is reported.
#[tokio::test]
async fn what_is_not_shown_once_more_is_reported_and_the_window_goes_on() {
    let (database, desk) = (Database::new().await, Desk::new());
    database.prepared(&spec()).await;
    let task = desk.start(&database, &sample());
    desk.order(Order::BlockWrites);
    desk.until("comparison", |progress, _| progress.comparison.is_some()).await;
    let other = database.session("postgres").await;
    other
        .batch_execute("BEGIN READ WRITE; REVOKE EXECUTE ON FUNCTION pg_wal_lsn_diff FROM PUBLIC; COMMIT")
        .await
        .unwrap();
    other.batch_execute("BEGIN READ WRITE; LOCK TABLE user_credits IN SHARE MODE").await.unwrap();
    desk.order(Order::Switch);
    let progress = desk.until("acknowledgement", |progress, _| progress.switch_acknowledged).await;
    let proofs = |progress: &WindowProgress| progress.not_shown.iter().map(|n| n.kind).collect::<Vec<_>>();
    assert_eq!(proofs(&progress), [NotShownKind::StandbysReplayed, NotShownKind::WritesBlocked], "{progress:?}");
    other.batch_execute("ROLLBACK").await.unwrap();
    limit(&database, 0).await;
    desk.order(Order::UnblockWrites);
    let outcome = end(task).await;
    assert_eq!((outcome.failure, outcome.progress.state), (None, State::Unblocked));
    let shown = &outcome.progress.not_shown;
    assert_eq!(shown.last().map(|n| n.kind), Some(NotShownKind::WritesUnblocked), "{shown:?}");
    assert!(shown.iter().any(|n| n.message.contains("SQLSTATE 53300")), "{shown:?}");
    limit(&database, -1).await;
    writable(&database, true).await;
}

#[rstest::rstest]
#[case::until_it_is_open(false)]
#[case::until_the_deadline(true)]
#[tokio::test]
async fn the_verification_is_retried_and_the_window_keeps_its_own_session(#[case] overdue: bool) {
    let (database, desk) = (Database::new().await, Desk::new());
    database.prepared(&spec()).await;
    let reader = database.session("analyst").await;
    reader.batch_execute("BEGIN; SELECT count(*) FROM user_credits").await.unwrap();
    let mut plan = plan(Direction::Forward, sample_up(), sample_down());
    // So long is the reader waited for.
    plan.control_spec.lock_timeout = Duration::from_secs(60);
    let task = desk.start(&database, &plan);
    desk.state(State::Ready).await;
    let pid = window_pid(&database).await;
    desk.order(Order::BlockWrites);
    database.until("SELECT EXISTS (SELECT FROM credit_migration.write_block WHERE blocked)").await;
    limit(&database, 0).await;
    lose(&database, "verification").await;
    reader.batch_execute("ROLLBACK").await.unwrap();
    desk.until("the refusal", |progress, note| progress.state == State::Blocking && refused(note)).await;
    assert_eq!(window_pid(&database).await, pid);
    if overdue {
        desk.pass_deadline();
        assert_eq!(end(task).await.progress.state, State::RolledBack);
        limit(&database, -1).await;
    } else {
        limit(&database, -1).await;
        desk.state(State::Migrated).await;
        assert_eq!(window_pid(&database).await, pid);
        desk.order(Order::Rollback);
        assert_eq!(end(task).await.failure, None);
    }
    writable(&database, false).await;
}
