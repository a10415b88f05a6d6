//! What a task meets that takes over, or comes late.

use credit_migration::{
    api::{Direction, Reason, WindowCommand as Order, WindowState as State},
    runner::tasks::cleanup::cleanup,
};

use crate::{
    harness::{Database, Desk, end, plan, sample_down, sample_up, spec, state_of},
    window::{back, blocked, ledger, sample, writable},
};

/// A new rollback has no deadline of its own before `BlockWrites`; that of the window it takes over has passed.
#[tokio::test]
async fn past_the_deadline_a_reader_is_waited_for_and_then_ended() {
    let database = Database::new().await;
    database.prepared(&spec()).await;
    let mut plan = sample();
    plan.down.as_mut().unwrap().statements.push("SELECT 1/0".to_owned());
    let desk = Desk::new();
    let task = desk.start(&database, &plan);
    desk.order(Order::BlockWrites);
    desk.state(State::Migrated).await;
    desk.order(Order::Rollback);
    assert!(end(task).await.progress.stuck);

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
async fn a_read_only_default_that_stays_keeps_nobody_from_going_back() {
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
    // The SQL gives the database away, and ends when its role is no member of the new owner's any more.
    let mut up = sample_up();
    up.statements.push(format!("ALTER DATABASE {name} OWNER TO {heir}"));
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
    root.batch_execute(&format!("REVOKE {heir} FROM migrator")).await.unwrap();
    desk.state(State::Migrated).await;
    desk.order(Order::Rollback);
    let outcome = end(task).await;
    assert_eq!(
        (outcome.progress.state, outcome.failure.unwrap().reason),
        (State::RolledBack, Reason::PrivilegeMissing)
    );
    assert_eq!(ledger(&database).await, "up,down");
    assert_eq!(database.value("SELECT blocked FROM credit_migration.write_block").await, "false");
    assert_eq!(database.read_only_default().await, "default_transaction_read_only=on");
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
