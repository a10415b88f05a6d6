//! What a task meets that takes over, or comes late.

use credit_migration::api::{WindowCommand as Order, WindowState as State};

use crate::{
    harness::{Database, Desk, end, state_of, subject},
    window::{back, blocked, sample, writable},
};

/// A new way back has no deadline of its own before `Open`; that of the window it takes over has passed.
#[tokio::test]
async fn past_the_deadline_a_reader_is_waited_for_and_then_ended() {
    let database = Database::new().await;
    database.prepared(&subject()).await;
    let mut plan = sample();
    plan.down.statements.push("SELECT 1/0".to_owned());
    let desk = Desk::new();
    let task = desk.start(&database, &plan);
    desk.order(Order::Open);
    desk.state(State::Migrated).await;
    desk.order(Order::Revert);
    assert_eq!(end(task).await.progress.state, State::Held);

    let reader = database.session("analyst").await;
    reader.batch_execute("BEGIN; SELECT count(*) FROM user_credits").await.unwrap();
    let desk = Desk::new();
    desk.pass_deadline();
    let task = desk.start(&database, &back());
    desk.until("proof", |progress, _| progress.proof.is_some() && progress.state >= State::Blocked).await;
    assert!(reader.is_closed() || state_of(&reader, "SELECT 1").await != "ok");
    assert!(!task.is_finished());
    blocked(&database).await;
    desk.order(Order::Revert);
    let outcome = end(task).await;
    assert_eq!((outcome.progress.state, outcome.failure), (State::Reverted, None));
    writable(&database, false).await;
}
