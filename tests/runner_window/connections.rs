//! The sessions that the window needs, on a server that has no connection left.

use credit_migration::{
    api::{Direction, WindowCommand as Order, WindowState as State},
    runner::Failure,
};

use crate::{
    harness::{Database, Desk, end, plan, sample_down, sample_up, spec},
    window::{ledger, sample, writable},
};

/// No role but a superuser gets a connection to the database any more, or again.
async fn limit(database: &Database, connections: i32) {
    let sql = format!("BEGIN READ WRITE; ALTER DATABASE {} CONNECTION LIMIT {connections}; COMMIT", database.name);
    database.session("postgres").await.batch_execute(&sql).await.unwrap();
}

/// Ends a session of the window beside its own.
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

/// A login's own limit, met before the window is ready.
#[tokio::test]
async fn a_window_is_not_ready_before_all_its_sessions_are_open() {
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
    desk.until("the refusal", |_, note| refused(note)).await;
    assert!(desk.last().state < State::Ready);
    let pid = window_pid(&database).await;
    root.batch_execute(&format!("ALTER ROLE {login} CONNECTION LIMIT 3")).await.unwrap();
    desk.state(State::Ready).await;
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
    let task = desk.start(&database, &sample());
    desk.state(State::Ready).await;
    limit(&database, 0).await;
    lose(&database, "comparison").await;
    desk.order(Order::BlockWrites);
    desk.until("the refusal", |progress, note| progress.state == State::Ready && refused(note)).await;
    assert_eq!(database.value("SELECT count(*) FROM credit_migration.write_block WHERE blocked").await, "0");
    limit(&database, -1).await;
    desk.state(State::Migrated).await;
    desk.order(Order::Rollback);
    assert_eq!(end(task).await.failure, None);
    writable(&database, false).await;
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
    plan.control_spec.lock_timeout = std::time::Duration::from_secs(60);
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
