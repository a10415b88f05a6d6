//! What keeps a window from blocking writes is found while they are open.

use std::{sync::Arc, time::Duration};

use credit_migration::{
    api::{Direction, Obstacle, ObstacleKind as Kind, Reason, WindowCommand as Order, WindowState as State},
    runner::tasks::window::{WindowOutcome, WindowPlan},
};
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use crate::{
    harness::{Database, Desk, end, spec},
    window::{back, sample, unblocked, writable},
};

/// Until exactly this is reported.
async fn found(desk: &Desk, kinds: &[Kind]) -> Vec<Obstacle> {
    let is = |obstacles: &[Obstacle]| obstacles.iter().map(|o| o.kind).collect::<Vec<_>>() == kinds;
    let what = format!("{kinds:?}");
    let ready = |state: State, obstacles: &[Obstacle]| state == State::Ready && is(obstacles);
    desk.until(&what, |progress, _| ready(progress.state, &progress.obstacles)).await.obstacles
}

/// A window's pod on standby, and what it waits for.
async fn on_standby(database: &Database, plan: &WindowPlan) -> (Arc<Desk>, JoinHandle<WindowOutcome>) {
    let desk = Desk::new();
    let task = desk.start(database, plan);
    (desk, task)
}

/// For which a transaction need not be old.
fn impatient(mut plan: WindowPlan) -> WindowPlan {
    plan.control_spec.long_transaction = Duration::ZERO;
    plan
}

async fn transaction_of(database: &Database, role: &str, statement: &str) -> Client {
    let session = database.session(role).await;
    session.batch_execute(&format!("SET application_name = 'nightly'; BEGIN; {statement}")).await.unwrap();
    session
}

#[tokio::test]
async fn a_prepared_transaction_is_found_before_writes_are_blocked() {
    let database = Database::new().await;
    database.prepared(&spec()).await;
    let app = database.session("app").await;
    let gid = format!("ann@example.com {}", database.name);
    app.batch_execute(&format!(
        "BEGIN; UPDATE user_credits SET balance = balance WHERE user_id = 1; PREPARE TRANSACTION '{gid}'"
    ))
    .await
    .unwrap();
    let (desk, task) = on_standby(&database, &sample()).await;
    let obstacle = found(&desk, &[Kind::PreparedTransaction]).await.remove(0);
    assert_eq!((obstacle.table.as_deref(), obstacle.role.as_deref()), (Some("public.user_credits"), Some("app")));
    assert!(obstacle.since.is_some() && !format!("{obstacle:?}").contains("ann@example.com"), "{obstacle:?}");
    let number = database.value("SELECT transaction FROM pg_prepared_xacts WHERE database = current_database()").await;
    assert_eq!(obstacle.transaction, Some(number));
    app.batch_execute(&format!("ROLLBACK PREPARED '{gid}'")).await.unwrap();
    found(&desk, &[]).await;
    // It goes on by itself.
    desk.order(Order::BlockWrites);
    desk.state(State::Migrated).await;
    desk.order(Order::Rollback);
    assert_eq!(end(task).await.progress.state, State::RolledBack);
}

#[tokio::test]
async fn an_obstacle_that_comes_with_the_order_blocks_no_writes() {
    for direction in [Direction::Forward, Direction::Rollback] {
        let (database, plan, end_state) = match direction {
            Direction::Forward => (Database::new().await, sample(), State::RolledBack),
            Direction::Rollback => (unblocked().await, back(), State::Unblocked),
        };
        if direction == Direction::Forward {
            database.prepared(&spec()).await;
        }
        let (desk, task) = on_standby(&database, &plan).await;
        found(&desk, &[]).await;
        let holder = transaction_of(&database, "postgres", "SELECT count(*) FROM user_credits").await;
        desk.order(Order::BlockWrites);
        let outcome = end(task).await;
        let failure = outcome.failure.unwrap();
        assert!(failure.message.contains("session") && failure.message.contains("role postgres, application nightly"));
        assert_eq!((failure.reason, outcome.progress.state), (Reason::LockTimeout, end_state));
        assert_eq!((outcome.progress.blocked_at, outcome.progress.obstacles.len()), (None, 1));
        holder.batch_execute("ROLLBACK").await.unwrap();
        writable(&database, direction == Direction::Rollback).await;
    }
}

/// The window ends the sessions of the application; for the work of others it waits.
#[tokio::test]
async fn a_long_transaction_of_others_is_waited_for_and_one_of_the_application_is_not() {
    let database = Database::new().await;
    database.prepared(&spec()).await;
    let report = transaction_of(&database, "analyst", "SELECT count(*) FROM user_credits").await;
    let _app = transaction_of(&database, "app", "UPDATE user_credits SET balance = balance WHERE user_id = 1").await;
    // Young transactions end soon.
    let (desk, task) = on_standby(&database, &sample()).await;
    found(&desk, &[]).await;
    desk.order(Order::Rollback);
    end(task).await;
    let (desk, task) = on_standby(&database, &impatient(sample())).await;
    let obstacle = found(&desk, &[Kind::LongTransaction]).await.remove(0);
    assert_eq!((obstacle.role.as_deref(), obstacle.application_name.as_deref()), (Some("analyst"), Some("nightly")));
    assert!(obstacle.since.is_some(), "since it was first seen: its start is not visible");
    drop(report);
    found(&desk, &[]).await;
    desk.order(Order::BlockWrites);
    desk.state(State::Migrated).await;
    desk.order(Order::Rollback);
    end(task).await;
}

#[tokio::test]
async fn a_rollback_waits_only_for_what_it_cannot_end() {
    let database = unblocked().await;
    let _report = transaction_of(&database, "analyst", "SELECT count(*) FROM user_credits").await;
    let own = transaction_of(&database, "migrator", "SELECT count(*) FROM user_credits").await;
    let (desk, task) = on_standby(&database, &impatient(back())).await;
    let obstacle = found(&desk, &[Kind::LongTransaction]).await.remove(0);
    assert_eq!(obstacle.role.as_deref(), Some("migrator"));
    own.batch_execute("ROLLBACK").await.unwrap();
    found(&desk, &[]).await;
    desk.order(Order::BlockWrites);
    desk.state(State::Blocked).await;
    desk.order(Order::UnblockWrites);
    assert_eq!(end(task).await.progress.state, State::Unblocked);
}

#[tokio::test]
async fn a_vacuum_against_wraparound_is_found_and_an_ordinary_one_is_not() {
    let database = Database::new().await;
    database.prepared(&spec()).await;
    let root = database.session("postgres").await;
    // One row on each page, and a pause after each page: a vacuum lasts until it is ended. The session ends, because
    // before 15 one that stays idle does not report the rows that it has deleted.
    let session = database.session("postgres").await;
    session
        .batch_execute(
            "CREATE TABLE pages AS SELECT n, repeat('x', 7000) AS t FROM generate_series(1, 0) n;
         ALTER TABLE pages ALTER t SET STORAGE PLAIN;
         INSERT INTO pages SELECT n, repeat('x', 7000) FROM generate_series(1, 400) n;
         ALTER TABLE pages OWNER TO migrator;
         ALTER TABLE pages SET (autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1,
            autovacuum_vacuum_threshold = 0, autovacuum_vacuum_scale_factor = 0);
         DELETE FROM pages WHERE n % 2 = 0",
        )
        .await
        .unwrap();
    drop(session);
    let vacuums = "SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'pages'::regclass AND granted
        AND mode = 'ShareUpdateExclusiveLock')";
    database.until(vacuums).await;
    let mut plan = impatient(sample());
    plan.control_spec.protected.push("pages".to_owned());
    // Longer than deadlock_timeout, after which an ordinary one gives way.
    plan.control_spec.lock_timeout = Duration::from_secs(2);
    let (desk, task) = on_standby(&database, &plan).await;
    found(&desk, &[]).await;
    desk.order(Order::Rollback);
    end(task).await;
    let mut short = plan.clone();
    short.control_spec.lock_timeout = Duration::from_millis(500);
    let (desk, task) = on_standby(&database, &short).await;
    found(&desk, &[Kind::Vacuum]).await;
    desk.order(Order::Rollback);
    end(task).await;
    root.batch_execute("DO $$ BEGIN FOR n IN 1..110000 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$")
        .await
        .unwrap();
    // Waits until the ordinary one gives way. The table is old already: no other ordinary one can follow.
    root.batch_execute("ALTER TABLE pages SET (autovacuum_freeze_max_age = 100000)").await.unwrap();
    database.until("SELECT count(*) > 0 FROM pg_stat_activity WHERE query LIKE '%pages (to prevent wraparound)'").await;
    let (desk, task) = on_standby(&database, &plan).await;
    let obstacle = found(&desk, &[Kind::Vacuum]).await.remove(0);
    assert_eq!((obstacle.table.as_deref(), obstacle.role), (Some("public.pages"), None));
    root.query("SELECT pg_terminate_backend($1)", &[&obstacle.pid]).await.unwrap();
    root.batch_execute("DROP TABLE pages").await.unwrap();
    found(&desk, &[]).await;
    desk.order(Order::Rollback);
    end(task).await;
}

/// As with a server that hides the locks of others, or a lock that is gone whenever it is asked for.
#[tokio::test]
async fn a_lock_that_is_refused_for_long_without_a_holder_is_found() {
    let database = Database::new().await;
    database.prepared(&spec()).await;
    let holder = transaction_of(&database, "analyst", "UPDATE user_credits SET balance = balance").await;
    let pid: i32 = holder.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    let root = database.session("postgres").await;
    root.batch_execute(&format!(
        "SET allow_system_table_mods = on; CREATE OR REPLACE VIEW pg_catalog.pg_locks AS
         SELECT l.* FROM pg_lock_status() AS l WHERE l.pid IS DISTINCT FROM {pid}"
    ))
    .await
    .unwrap();
    // Its lock is compatible with that of the window, and so no reason for the refusal.
    let _reader = transaction_of(&database, "app", "SELECT count(*) FROM user_credits").await;
    // Not for long yet.
    let (desk, task) = on_standby(&database, &sample()).await;
    found(&desk, &[]).await;
    desk.order(Order::Rollback);
    end(task).await;
    let (desk, task) = on_standby(&database, &impatient(sample())).await;
    let obstacle = found(&desk, &[Kind::LockRefused]).await.remove(0);
    assert!(obstacle.since.is_some() && obstacle.pid.is_none(), "{obstacle:?}");
    let message = obstacle.message().to_string();
    for part in ["no session is seen", "limit 10 s", "; next: as a superuser, SELECT"] {
        assert!(message.contains(part), "{part} is not in {message}");
    }
    desk.order(Order::BlockWrites);
    let outcome = end(task).await;
    assert_eq!((outcome.failure.unwrap().reason, outcome.progress.blocked_at), (Reason::LockTimeout, None));
    drop(holder);
    let (desk, task) = on_standby(&database, &impatient(sample())).await;
    found(&desk, &[]).await;
    desk.order(Order::Rollback);
    end(task).await;
}

/// A pod that was killed leaves its session behind, with the lock that it had.
#[tokio::test]
async fn a_session_of_an_earlier_pod_that_has_the_lock_is_named() {
    let database = Database::new().await;
    database.prepared(&spec()).await;
    let earlier = database.target().connect("backup").await.unwrap();
    // What only reads, such as a rehearsal of the rollback, is ended by the window.
    earlier.batch_execute("BEGIN; LOCK TABLE public.user_credits IN ACCESS SHARE MODE").await.unwrap();
    let (desk, task) = on_standby(&database, &impatient(sample())).await;
    found(&desk, &[]).await;
    earlier.batch_execute("LOCK TABLE public.user_credits IN ROW EXCLUSIVE MODE").await.unwrap();
    let obstacle = found(&desk, &[Kind::LongTransaction]).await.remove(0);
    let named = (obstacle.role.as_deref(), obstacle.application_name.as_deref());
    assert_eq!(named, (Some("migrator"), Some("credit-migration/backup")));
    earlier.batch_execute("ROLLBACK").await.unwrap();
    found(&desk, &[]).await;
    desk.order(Order::Rollback);
    end(task).await;
}

/// Without it writes would be blocked blindly.
#[tokio::test]
async fn a_search_that_fails_keeps_writes_open() {
    let database = Database::new().await;
    database.prepared(&spec()).await;
    let root = database.session("postgres").await;
    root.batch_execute("REVOKE EXECUTE ON FUNCTION pg_catalog.mxid_age(xid) FROM PUBLIC").await.unwrap();
    let (desk, task) = on_standby(&database, &sample()).await;
    let detail = found(&desk, &[Kind::SearchFailed]).await.remove(0).detail.unwrap();
    assert!(detail.contains("permission denied for function mxid_age"), "{detail}");
    root.batch_execute("GRANT EXECUTE ON FUNCTION pg_catalog.mxid_age(xid) TO PUBLIC").await.unwrap();
    found(&desk, &[]).await;
    desk.order(Order::Rollback);
    end(task).await;
}

#[tokio::test]
async fn a_window_without_free_connections_waits() {
    let database = Database::new().await;
    let _prepared = database.prepared(&spec()).await;
    let root = database.session("postgres").await;
    let count = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()";
    let sessions: i64 = root.query_one(count, &[]).await.unwrap().get(0);
    let limit = |n: i64| format!("ALTER DATABASE {} CONNECTION LIMIT {n}", database.name);
    // The window's own, and two of those that it needs in addition.
    root.batch_execute(&limit(sessions + 3)).await.unwrap();
    let (desk, task) = on_standby(&database, &sample()).await;
    let waits = |obstacles: &[Obstacle]| obstacles.iter().any(|found| found.kind == Kind::TooFewConnections);
    let progress = desk.until("it waits", |progress, _| waits(&progress.obstacles)).await;
    assert!(progress.blocked_at.is_none() && progress.obstacles[0].free_connections < Some(3), "{progress:?}");
    root.batch_execute(&limit(100)).await.unwrap();
    found(&desk, &[]).await;
    desk.order(Order::Rollback);
    end(task).await;
}
