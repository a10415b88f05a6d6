//! SIGTERM in the window: with its run gone no pod follows this one, otherwise the next one continues.

use credit_migration::{
    api::{Direction, Reason, WindowCommand as Order, WindowState as State},
    runner::tasks::window::ChannelError,
};

use crate::{
    harness::{Database, Desk, end, plan, sample_down, sample_up, spec},
    window::{SLEEPS, back, blocked, ledger, migrated, pausing, sample, unblocked, writable},
};

fn denied() -> ChannelError {
    ChannelError::Denied("forbidden".to_owned())
}

#[tokio::test]
async fn with_the_run_gone_the_old_state_is_restored() {
    for (point, answer, steps) in [
        ("sql", ChannelError::Gone, ""),
        ("sql", denied(), ""),
        ("migrated", ChannelError::Gone, "up,down"),
        ("migrated", denied(), "up,down"),
    ] {
        let (database, desk) = (Database::new().await, Desk::new());
        database.prepared(&spec()).await;
        let balances = database.balances().await;
        let _paused = database.pause_sql().await;
        let up = if point == "sql" { pausing() } else { sample_up() };
        let task = desk.start(&database, &plan(Direction::Forward, up, sample_down()));
        desk.order(Order::BlockWrites);
        match point {
            "sql" => database.until(SLEEPS).await,
            _ => drop(desk.state(State::Migrated).await),
        }
        desk.fails(answer);
        desk.stop.cancel();
        let outcome = end(task).await;
        assert!(
            outcome.progress.deadline_passed && outcome.progress.state == State::RolledBack,
            "{point}: {outcome:?}"
        );
        assert_eq!(outcome.failure.unwrap().reason, Reason::DeadlinePassed);
        assert_eq!((ledger(&database).await, database.balances().await), (steps.to_owned(), balances), "{point}");
        writable(&database, false).await;
    }
}

#[tokio::test]
async fn a_refusal_alone_is_no_reason_to_roll_back() {
    let (database, desk) = (Database::new().await, Desk::new());
    database.prepared(&spec()).await;
    let task = migrated(&database, &desk).await;
    desk.fails(denied());
    desk.asked_for_orders(100).await;
    assert!(!task.is_finished());
    blocked(&database).await;
    desk.order(Order::Switch);
    desk.until("acknowledgement", |progress, _| progress.switch_acknowledged).await;
    desk.order(Order::UnblockWrites);
    assert_eq!(end(task).await.progress.state, State::Unblocked);
}

#[tokio::test]
async fn with_the_run_there_the_next_pod_goes_on() {
    let (database, desk) = (Database::new().await, Desk::new());
    database.prepared(&spec()).await;
    let task = desk.start(&database, &sample());
    desk.order(Order::BlockWrites);
    let before = desk.state(State::Migrated).await;
    desk.stop.cancel();
    let outcome = end(task).await;
    assert_eq!((outcome.progress.verification, outcome.progress.deadline_passed), (before.verification, false));
    assert_eq!(outcome.failure.unwrap().reason, Reason::PodFailed);
    blocked(&database).await;
    let desk = Desk::new();
    let task = desk.start(&database, &sample());
    desk.order(Order::Switch);
    desk.until("comparison", |progress, _| progress.comparison.is_some() && progress.switch_acknowledged).await;
    desk.order(Order::UnblockWrites);
    assert_eq!(end(task).await.progress.state, State::Unblocked);
    writable(&database, true).await;
}

#[tokio::test]
async fn without_an_answer_the_next_pod_goes_on() {
    for hangs in [true, false] {
        let (database, desk) = (Database::new().await, Desk::new());
        database.prepared(&spec()).await;
        let task = desk.start(&database, &sample());
        desk.order(Order::BlockWrites);
        desk.state(State::Migrated).await;
        match hangs {
            true => desk.hangs(),
            false => desk.fails(ChannelError::Unreachable("connection refused".to_owned())),
        }
        desk.stop.cancel();
        assert_eq!(end(task).await.failure.unwrap().reason, Reason::PodFailed);
        blocked(&database).await;
        assert_eq!(ledger(&database).await, "up");
    }
}

#[tokio::test]
async fn with_the_run_gone_after_the_acknowledged_switch_writes_are_held_and_the_pod_ends() {
    for held_before in [false, true] {
        let (database, desk) = (Database::new().await, Desk::new());
        database.prepared(&spec()).await;
        let task = desk.start(&database, &sample());
        desk.order(Order::BlockWrites);
        desk.state(State::Migrated).await;
        desk.order(Order::Switch);
        desk.until("acknowledgement", |progress, _| progress.switch_acknowledged).await;
        if held_before {
            desk.pass_deadline();
            desk.stuck().await;
        }
        desk.fails(ChannelError::Gone);
        desk.stop.cancel();
        let outcome = end(task).await;
        assert_eq!((outcome.progress.stuck, outcome.failure.unwrap().reason), (true, Reason::DeadlinePassed));
        blocked(&database).await;
        assert_eq!(ledger(&database).await, "up");
    }
}

#[tokio::test]
async fn with_the_run_of_the_rollback_gone_the_new_version_continues() {
    let (database, desk) = (unblocked().await, Desk::new());
    let task = desk.start(&database, &back());
    desk.order(Order::BlockWrites);
    desk.state(State::Blocked).await;
    desk.fails(denied());
    desk.stop.cancel();
    assert_eq!(end(task).await.progress.state, State::Unblocked);
    writable(&database, true).await;
}
