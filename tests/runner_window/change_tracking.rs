//! What is noted of writes to balances, and that it costs the writers nothing but a row each.

use credit_migration::runner::database::control;

use crate::harness::{Database, spec, state_of};

const ROWS: &str = "SELECT count(*) || ' ' || count(DISTINCT user_id) FROM credit_migration.changed_users";

#[tokio::test]
async fn a_user_has_one_row_however_often_the_balance_is_written() {
    let (database, spec) = (Database::new().await, spec());
    let mut client = database.prepared(&spec).await;
    let app = database.session("app").await;
    let last = "SELECT max(id) FROM credit_migration.changed_users";
    let mut before = 0;
    for _ in 0..3 {
        app.batch_execute("UPDATE user_credits SET balance = balance + 1 WHERE user_id IN (1, 2)").await.unwrap();
        let now: i64 = database.value(last).await.parse().unwrap();
        assert!(now > before, "each write has a higher number: {now} after {before}");
        before = now;
    }
    assert_eq!(database.value(ROWS).await, "2 2");
    // A user's number is changed, there and back within a transaction; a user comes and goes.
    let root = database.session("postgres").await;
    root.batch_execute(
        "BEGIN; SET LOCAL session_replication_role = replica; UPDATE user_credits SET user_id = 900 WHERE user_id = 3;
         UPDATE user_credits SET user_id = 3 WHERE user_id = 900; COMMIT;
         DELETE FROM user_credits WHERE user_id = 4; INSERT INTO user_credits (user_id, balance) VALUES (4, 1)",
    )
    .await
    .unwrap();
    assert_eq!(database.value(ROWS).await, "5 5");
    assert_eq!(control::users_written(&client, &spec).await.unwrap(), 5);
    assert_eq!(control::refresh_baseline(&mut client, &spec).await.unwrap(), 5);
    assert_eq!(database.value(ROWS).await, "0 0");
    assert_eq!(control::compare(&client, &spec).await.unwrap().unexplained, 0);
    root.batch_execute("TRUNCATE user_credits").await.unwrap();
    root.batch_execute("TRUNCATE user_credits").await.unwrap();
    assert_eq!(database.value("SELECT count(*) FROM credit_migration.changed_users WHERE user_id IS NULL").await, "2");
    control::refresh_baseline(&mut client, &spec).await.unwrap();
    assert_eq!(database.value(ROWS).await, "0 0");
    let compared = control::compare(&client, &spec).await.unwrap();
    assert_eq!((compared.users, compared.unexplained), (0, 0));
}

/// A writer under way is neither waited for nor forgotten.
#[tokio::test]
async fn a_refresh_during_writes_loses_no_write() {
    let (database, spec) = (Database::new().await, spec());
    let mut client = database.prepared(&spec).await;
    let (one, two) = (database.session("app").await, database.session("app").await);
    let write = |user: u32| format!("UPDATE user_credits SET balance = balance + 1 WHERE user_id = {user}");
    for user in [1, 2] {
        one.batch_execute(&write(user)).await.unwrap();
    }
    two.batch_execute(&format!("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1; {}", write(1))).await.unwrap();
    let refreshed =
        tokio::time::timeout(std::time::Duration::from_secs(5), control::refresh_baseline(&mut client, &spec));
    assert_eq!(refreshed.await.expect("waits for a writer").unwrap(), 2);
    // The row of user 2 is deleted, that of user 1 is the writer's.
    assert_eq!(state_of(&two, &format!("{}; COMMIT", write(2))).await, "ok");
    assert_eq!(database.value(ROWS).await, "2 2");
    control::refresh_baseline(&mut client, &spec).await.unwrap();
    assert_eq!(
        (database.value(ROWS).await.as_str(), control::compare(&client, &spec).await.unwrap().unexplained),
        ("0 0", 0)
    );
}

/// An operator that is upgraded in the middle of a migration.
#[tokio::test]
async fn a_capture_of_an_earlier_version_goes_on() {
    let (database, spec) = (Database::new().await, spec());
    let mut client = database.prepared(&spec).await;
    client
        .batch_execute("ALTER TABLE credit_migration.changed_users DROP CONSTRAINT changed_users_user_id_key")
        .await
        .unwrap();
    control::reinstall(&mut client, &spec).await.unwrap();
    let app = database.session("app").await;
    for _ in 0..2 {
        app.batch_execute("UPDATE user_credits SET balance = balance + 1 WHERE user_id = 1").await.unwrap();
    }
    assert_eq!(database.value(ROWS).await, "2 1");
    assert_eq!(control::refresh_baseline(&mut client, &spec).await.unwrap(), 1);
    assert_eq!(
        (database.value(ROWS).await.as_str(), control::compare(&client, &spec).await.unwrap().unexplained),
        ("0 0", 0)
    );
}
