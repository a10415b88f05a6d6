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
    harness::{Database, Desk, end, plan, sample_down, sample_up, spec},
    window::{SLEEPS, back, blocked, ledger, sample, unblocked, writable},
};

/// The sample's SQL, and a statement for ever.
fn endless(watched: bool) -> Sql {
    let mut endless = sample_up();
    if !watched {
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
    for watched in [true, false] {
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
    let first = desk.start(&database, &sample());
    desk.order(Order::BlockWrites);
    desk.state(State::Migrated).await;
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
    let first = desk.start(&database, &sample());
    desk.order(Order::BlockWrites);
    desk.state(State::Migrated).await;
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
