//! A balances table in partitions, and partitions of them: blocked, tracked and compared like one table.

use credit_migration::{
    api::{Direction, Reason, SafeguardKind as Kind, WindowCommand as Order, WindowState as State},
    runner::{database::control, tasks::cleanup::cleanup},
};

use crate::{
    harness::{Database, Desk, end, sample_down, spec, state_of},
    window::{back, compared, migrated, sample, writable},
};

/// The sample's balances by number of the user. What hangs on the old table is not needed.
const PARTITIONED: &str = "SET ROLE migrator;
    ALTER TABLE user_credits RENAME TO flat;
    CREATE TABLE user_credits (LIKE flat INCLUDING DEFAULTS, UNIQUE (user_id),
        FOREIGN KEY (user_id) REFERENCES users (id)) PARTITION BY RANGE (user_id);
    CREATE TABLE credits_low PARTITION OF user_credits FOR VALUES FROM (0) TO (100) PARTITION BY RANGE (user_id);
    CREATE TABLE credits_low_1 PARTITION OF credits_low FOR VALUES FROM (0) TO (50);
    CREATE TABLE credits_low_2 PARTITION OF credits_low FOR VALUES FROM (50) TO (100);
    CREATE TABLE credits_high PARTITION OF user_credits FOR VALUES FROM (100) TO (1000);
    INSERT INTO user_credits SELECT * FROM flat;
    DROP TABLE flat;
    GRANT SELECT, INSERT, UPDATE ON user_credits, credits_low, credits_low_1, credits_low_2, credits_high TO app;
    RESET ROLE";
const LEVELS: [&str; 5] = ["user_credits", "credits_low", "credits_low_1", "credits_low_2", "credits_high"];

async fn partitioned() -> Database {
    let database = Database::new().await;
    database.session("postgres").await.batch_execute(PARTITIONED).await.unwrap();
    database
}

#[tokio::test]
async fn writes_to_every_level_are_blocked_and_the_block_is_verified_on_each() {
    let (database, desk) = (partitioned().await, Desk::new());
    database.prepared(&spec()).await;
    let task = compared(&database, &desk).await;
    let root = database.session("postgres").await;
    for table in LEVELS {
        for write in [format!("UPDATE {table} SET balance = balance + 1"), format!("DELETE FROM {table}")] {
            assert_eq!(state_of(&root, &format!("BEGIN READ WRITE; {write}")).await, "25006", "{write}");
            root.batch_execute("ROLLBACK").await.unwrap();
        }
    }
    // The five levels, and the three other protected tables.
    let verification = desk.last().verification.unwrap();
    assert!(verification.starts_with("8 writes refused, 0 not tried"), "{verification}");
    let comparison = desk.last().comparison.unwrap();
    assert_eq!((comparison.users, comparison.unexplained), (200, 0));
    desk.order(Order::Switch);
    desk.until("acknowledgement", |progress, _| progress.switch_acknowledged).await;
    desk.order(Order::UnblockWrites);
    assert_eq!(end(task).await.failure, None);
    writable(&database, true).await;
}

/// It has no trigger yet: the next attempt creates it.
#[tokio::test]
async fn a_partition_that_is_added_after_the_triggers_keeps_no_write_block_from_being_verified() {
    let (database, desk) = (partitioned().await, Desk::new());
    database.prepared(&spec()).await;
    let task = desk.start(&database, &sample());
    desk.state(State::Ready).await;
    let owner = database.session("migrator").await;
    owner
        .batch_execute(
            "ALTER TABLE credits_low DETACH PARTITION credits_low_2; DELETE FROM credits_low_2 WHERE user_id = 50;
             CREATE TABLE credits_50 PARTITION OF credits_low FOR VALUES FROM (50) TO (51);
             GRANT SELECT, UPDATE ON credits_50 TO app;
             DROP TABLE credits_low_2; INSERT INTO user_credits (user_id, balance) VALUES (50, 1050)",
        )
        .await
        .unwrap();
    desk.order(Order::BlockWrites);
    let outcome = end(task).await;
    let failure = outcome.failure.unwrap();
    assert_eq!((failure.reason, outcome.progress.state), (Reason::WritesNotBlocked, State::RolledBack), "{failure}");
    assert!(failure.message.contains("role app to public.credits_50"), "{failure}");
    writable(&database, false).await;
}

#[tokio::test]
async fn what_is_written_into_any_partition_is_tracked_once() {
    let database = partitioned().await;
    let mut client = database.prepared(&spec()).await;
    let (app, root) = (database.session("app").await, database.session("postgres").await);
    app.batch_execute(
        "UPDATE user_credits SET balance = balance + 1 WHERE user_id IN (3, 150);
         UPDATE credits_low SET balance = balance + 1 WHERE user_id = 4;
         UPDATE credits_low_1 SET balance = balance + 1 WHERE user_id IN (4, 5)",
    )
    .await
    .unwrap();
    // A row that moves into another partition, while replication keeps ordinary triggers from running.
    root.batch_execute(
        "SET session_replication_role = replica; UPDATE user_credits SET user_id = 900 WHERE user_id = 6;
         UPDATE credits_high SET balance = balance + 1 WHERE user_id = 160",
    )
    .await
    .unwrap();
    let tracked = "SELECT string_agg(user_id, ',' ORDER BY user_id::int) FROM credit_migration.changed_users";
    assert_eq!(database.value(tracked).await, "3,4,5,6,150,160,900");
    assert_eq!(control::users_written(&client, &spec()).await.unwrap(), 7);
    // User 6 has 1006 credits under another number, the others one each, and user 4 two.
    assert_eq!(control::credits_written(&client, &spec()).await.unwrap(), (2 * 1006 + 6).to_string());
    assert_eq!(control::refresh_baseline(&mut client, &spec(), Direction::Forward).await.unwrap(), 7);
    let compared = control::compare(&client, &spec()).await.unwrap();
    assert_eq!((compared.users, compared.unexplained), (200, 0));
    root.batch_execute("TRUNCATE credits_low_1").await.unwrap();
    assert_eq!(control::users_written(&client, &spec()).await.unwrap(), 152, "all that are left");
    control::refresh_baseline(&mut client, &spec(), Direction::Forward).await.unwrap();
    let compared = control::compare(&client, &spec()).await.unwrap();
    assert_eq!((compared.users, compared.unexplained), (152, 0));
    // A partition that comes later is tracked from its first row on.
    let new = "CREATE TABLE credits_new PARTITION OF user_credits FOR VALUES FROM (1000) TO (2000)";
    database.session("migrator").await.batch_execute(new).await.unwrap();
    root.batch_execute("UPDATE user_credits SET user_id = 1900 WHERE user_id = 900").await.unwrap();
    assert_eq!(database.value(tracked).await, "900,1900");
    cleanup(&mut client, &spec()).await.unwrap();
    let triggers = "SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'credit_migration%'";
    assert_eq!(database.value(triggers).await, "0");
}

#[tokio::test]
async fn what_a_rollback_lacks_on_any_level_is_found_and_it_keeps_what_was_written() {
    let (database, desk) = (partitioned().await, Desk::new());
    database.prepared(&spec()).await;
    let task = migrated(&database, &desk).await;
    desk.order(Order::Switch);
    desk.until("acknowledgement", |progress, _| progress.switch_acknowledged).await;
    desk.order(Order::UnblockWrites);
    assert_eq!(end(task).await.failure, None);
    let (target, owner, approved) = (database.target(), database.session("migrator").await, sample_down().sha256);
    let missing = async || {
        let found = control::missing_safeguards(&target, &spec(), &approved).await.unwrap();
        found.into_iter().map(|found| (found.kind, found.table.unwrap_or_default())).collect::<Vec<_>>()
    };
    assert_eq!(missing().await, []);
    for (trigger, kind) in [
        ("block_writes", Kind::WriteBlock),
        ("track_changes", Kind::ChangeTracking),
        ("track_truncates", Kind::ChangeTracking),
    ] {
        let alter = |how: &str| format!("ALTER TABLE credits_low_2 {how} TRIGGER credit_migration_{trigger}");
        owner.batch_execute(&alter("DISABLE")).await.unwrap();
        assert_eq!(missing().await, [(kind, "public.credits_low_2".to_owned())], "{trigger}");
        owner.batch_execute(&alter("ENABLE ALWAYS")).await.unwrap();
    }
    owner.batch_execute("ALTER TABLE user_credits RENAME balance TO credits").await.unwrap();
    assert_eq!(missing().await, [(Kind::WorkingChangeTracking, "public.user_credits".to_owned())]);
    owner.batch_execute("ALTER TABLE user_credits RENAME credits TO balance").await.unwrap();
    let app = database.session("app").await;
    app.batch_execute("UPDATE credits_low_2 SET balance = balance - 7 WHERE user_id = 60").await.unwrap();
    let written = database.balances().await;
    let desk = Desk::new();
    let task = desk.start(&database, &back());
    desk.order(Order::BlockWrites);
    assert_eq!(desk.state(State::Blocked).await.users_written_since, Some(1));
    desk.order(Order::Switch);
    desk.order(Order::Rollback);
    let outcome = end(task).await;
    assert_eq!((outcome.progress.state, outcome.failure), (State::RolledBack, None));
    assert_eq!(database.balances().await, written);
    writable(&database, false).await;
}
