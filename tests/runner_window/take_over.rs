//! What a task meets that takes over, or comes late.

use std::time::Duration;

use credit_migration::{
    api::{Direction, Reason, WindowCommand as Order, WindowState as State},
    runner::{Failure, tasks::cleanup::cleanup},
};

use crate::{
    harness::{Database, Desk, end, plan, sample_down, sample_up, spec, state_of},
    window::{back, blocked, ledger, left_stuck, sample, writable},
};

/// A new rollback has no deadline of its own before `BlockWrites`; that of the window it takes over has passed.
#[tokio::test]
async fn past_the_deadline_a_reader_is_waited_for_and_then_ended() {
    let database = left_stuck().await;

    let reader = database.session("analyst").await;
    reader.batch_execute("BEGIN; SELECT count(*) FROM user_credits").await.unwrap();
    let desk = Desk::new();
    desk.pass_deadline();
    let task = desk.start(&database, &back());
    desk.until("the verification", |progress, _| progress.verification.is_some() && progress.state >= State::Blocked)
        .await;
    assert!(reader.is_closed() || state_of(&reader, "SELECT 1").await != "ok");
    assert!(!task.is_finished());
    blocked(&database).await;
    desk.order(Order::Rollback);
    let outcome = end(task).await;
    assert_eq!((outcome.progress.state, outcome.failure), (State::RolledBack, None));
    writable(&database, false).await;
}

#[tokio::test]
async fn writes_are_not_said_to_be_unblocked_before_the_read_only_default_is_restored() {
    let database = Database::new().await;
    database.prepared(&spec()).await;
    let (name, heir) = (&database.name, format!("heir_of_{}", database.name));
    let root = database.session("postgres").await;
    root.batch_execute(&format!(
        "CREATE ROLE {heir}; GRANT {heir} TO migrator; GRANT ALL ON SCHEMA public TO migrator; GRANT CREATE ON \
            DATABASE {name} TO {heir}"
    ))
    .await
    .unwrap();
    // The SQL ends when the database belongs to another role, of which its own is no member any more.
    let mut up = sample_up();
    up.statements.push(format!(
        "DO $$ BEGIN WHILE EXISTS (SELECT FROM pg_auth_members WHERE roleid = '{heir}'::regrole AND member = \
            'migrator'::regrole)
                     LOOP PERFORM pg_sleep(0.01); END LOOP; END $$"
    ));
    let desk = Desk::new();
    let task = desk.start(&database, &plan(Direction::Forward, up, sample_down()));
    desk.order(Order::BlockWrites);
    database
        .until(&format!(
            "SELECT count(*) > 0 FROM pg_stat_activity WHERE query LIKE 'DO %{heir}%' AND state = 'active'"
        ))
        .await;
    root.batch_execute(&format!("ALTER DATABASE {name} OWNER TO {heir}; REVOKE {heir} FROM migrator")).await.unwrap();
    desk.state(State::Migrated).await;
    desk.order(Order::Rollback);
    let refused = |note: Option<&Failure>| {
        note.is_some_and(|n| n.reason == Reason::PrivilegeMissing && n.message.contains("RESET default_transaction"))
    };
    let progress = desk.until("the refusal", |_, note| refused(note)).await;
    assert!(!progress.stuck && progress.unblocked_at.is_none(), "{progress:?}");
    // The down SQL is committed; at the deadline the contacts are notified.
    desk.pass_deadline();
    desk.until("stuck", |progress, note| progress.stuck && refused(note)).await;
    assert_eq!(ledger(&database).await, "up,down");
    assert_eq!(database.value("SELECT finished_at IS NULL FROM credit_migration.window_record").await, "true");
    // What the message asks for.
    root.batch_execute(&format!("ALTER DATABASE {name} RESET default_transaction_read_only")).await.unwrap();
    let outcome = end(task).await;
    assert_eq!((outcome.progress.state, outcome.progress.stuck), (State::RolledBack, false), "{outcome:?}");
    writable(&database, false).await;
}

/// A run that is deleted in `Standby` is followed by Cleanup; its pod may still be on its way.
#[tokio::test]
async fn what_cleanup_has_taken_down_stays_down() {
    for direction in [Direction::Forward, Direction::Rollback] {
        let database = match direction {
            Direction::Forward => Database::new().await,
            Direction::Rollback => crate::window::unblocked().await,
        };
        let mut client = match direction {
            Direction::Forward => database.prepared(&spec()).await,
            Direction::Rollback => database.target().connect("test").await.unwrap(),
        };
        cleanup(&mut client, &spec()).await.unwrap();
        let outcome = end(Desk::new().start(&database, &plan(direction, sample_up(), sample_down()))).await;
        let refused = outcome.failure.as_ref().is_some_and(|f| f.message.contains("do not exist any more"));
        assert!(refused, "{direction:?} {outcome:?}");
        assert_eq!(database.value("SELECT to_regclass('credit_migration.claim')").await, "");
        assert_eq!(database.value("SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'credit_migration%'").await, "0");
    }
}

/// The row of the write block blocks writes without the lock, which a session that cannot be ended keeps from being
/// taken again.
#[tokio::test]
async fn a_pod_that_takes_over_obeys_orders_while_it_waits_for_the_lock() {
    let (database, desk) = (Database::new().await, Desk::new());
    let mut plan = sample();
    plan.control_spec.lock_timeout = Duration::from_secs(600);
    database.prepared(&plan.control_spec).await;
    let first = desk.start(&database, &plan);
    desk.order(Order::BlockWrites);
    desk.until("comparison", |progress, _| progress.comparison.is_some()).await;
    first.abort();
    assert!(first.await.is_err());
    let root = database.session("postgres").await;
    root.batch_execute("BEGIN; SELECT count(*) FROM user_credits").await.unwrap();
    let desk = Desk::new();
    let task = desk.start(&database, &plan);
    desk.state(State::Migrated).await;
    desk.order(Order::Switch);
    desk.until("acknowledgement", |progress, _| progress.switch_acknowledged).await;
    blocked(&database).await;
    desk.order(Order::UnblockWrites);
    assert_eq!(end(task).await.failure, None);
    writable(&database, true).await;
}
