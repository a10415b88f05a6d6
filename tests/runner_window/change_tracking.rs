//! What is noted of writes to balances, and that it costs the writers nothing but a row each.

use std::time::{Duration, Instant};

use credit_migration::{
    api::Direction,
    runner::database::{connection::Target, control},
};
use tokio_postgres::Client;

use crate::harness::{Cluster, Database, connect, spec, state_of};

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
    let differs = "SELECT sum(abs(coalesce(t.balance, 0) - coalesce(b.balance, 0)))::text FROM user_credits t \
                   FULL JOIN credit_migration.baseline b ON b.user_id = t.user_id::text";
    let credits = database.value(differs).await;
    assert!(credits.parse::<f64>().unwrap() > 0.0, "{credits}");
    assert_eq!(control::credits_written(&client, &spec).await.unwrap(), credits);
    assert_eq!(control::refresh_baseline(&mut client, &spec, Direction::Forward).await.unwrap(), 5);
    assert_eq!(database.value(ROWS).await, "0 0");
    assert_eq!(control::compare(&client, &spec).await.unwrap().unexplained, 0);
    root.batch_execute("TRUNCATE user_credits").await.unwrap();
    root.batch_execute("TRUNCATE user_credits").await.unwrap();
    assert_eq!(database.value("SELECT count(*) FROM credit_migration.changed_users WHERE user_id IS NULL").await, "2");
    assert_eq!(control::credits_written(&client, &spec).await.unwrap(), database.value(differs).await, "each user's");
    control::refresh_baseline(&mut client, &spec, Direction::Forward).await.unwrap();
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
    let refreshed = tokio::time::timeout(
        std::time::Duration::from_secs(5),
        control::refresh_baseline(&mut client, &spec, Direction::Forward),
    );
    assert_eq!(refreshed.await.expect("waits for a writer").unwrap(), 2);
    // The row of user 2 is deleted, that of user 1 is the writer's.
    assert_eq!(state_of(&two, &format!("{}; COMMIT", write(2))).await, "ok");
    assert_eq!(database.value(ROWS).await, "2 2");
    control::refresh_baseline(&mut client, &spec, Direction::Forward).await.unwrap();
    assert_eq!(
        (database.value(ROWS).await.as_str(), control::compare(&client, &spec).await.unwrap().unexplained),
        ("0 0", 0)
    );
}

/// More than one transaction of a refresh takes, and a TRUNCATE among them.
#[tokio::test]
async fn a_refresh_of_many_users_is_complete() {
    let (database, spec) = (Database::new().await, spec());
    let mut client = database.prepared(&spec).await;
    let root = database.session("postgres").await;
    root.batch_execute(
        "INSERT INTO users (id, email, api_token) SELECT i, i || '@example.com', i FROM generate_series(1000, 121000) i;
         INSERT INTO user_credits (user_id, balance) SELECT generate_series(1000, 121000), 1",
    )
    .await
    .unwrap();
    assert_eq!(control::refresh_baseline(&mut client, &spec, Direction::Forward).await.unwrap(), 120_001);
    assert_eq!(database.value(ROWS).await, "0 0");
    assert_eq!(control::compare(&client, &spec).await.unwrap().unexplained, 0);
    root.batch_execute(
        "UPDATE user_credits SET balance = balance + 1; TRUNCATE user_credits;
         INSERT INTO user_credits (user_id, balance) VALUES (1000, 7)",
    )
    .await
    .unwrap();
    control::refresh_baseline(&mut client, &spec, Direction::Forward).await.unwrap();
    assert_eq!(database.value(ROWS).await, "0 0");
    let compared = control::compare(&client, &spec).await.unwrap();
    assert_eq!((compared.users, compared.unexplained), (1, 0));
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
    assert_eq!(control::refresh_baseline(&mut client, &spec, Direction::Forward).await.unwrap(), 1);
    assert_eq!(
        (database.value(ROWS).await.as_str(), control::compare(&client, &spec).await.unwrap().unexplained),
        ("0 0", 0)
    );
}

/// Why Preflight refuses such a publication, and no other.
#[tokio::test]
async fn a_publication_for_all_tables_stops_its_subscriber() {
    let cluster = tokio::task::spawn_blocking(Cluster::with_logical_wal).await.unwrap();
    let (port, schema) = (cluster.port, include_str!("../../examples/watermark-remover/db/schema_v1.sql"));
    let root = connect(port, "postgres", "postgres").await;
    root.batch_execute("CREATE ROLE app").await.unwrap();
    let mut sessions = Vec::new();
    for database in ["publisher", "listed", "everything"] {
        root.batch_execute(&format!("CREATE DATABASE {database}")).await.unwrap();
        let session = connect(port, "postgres", database).await;
        session.batch_execute(schema).await.unwrap();
        sessions.push(session);
    }
    let publisher = sessions.remove(0);
    publisher
        .batch_execute(
            "CREATE PUBLICATION listed FOR TABLE users, user_credits; CREATE PUBLICATION everything FOR ALL TABLES",
        )
        .await
        .unwrap();
    for (subscriber, name) in sessions.iter().zip(["listed", "everything"]) {
        let slot = format!("SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')");
        publisher.query(&slot, &[]).await.unwrap();
        let subscription = format!(
            "CREATE SUBSCRIPTION {name} CONNECTION 'host=127.0.0.1 port={port} user=postgres dbname=publisher'
             PUBLICATION {name} WITH (create_slot = false, slot_name = '{name}', copy_data = false)"
        );
        subscriber.batch_execute(&subscription).await.unwrap();
    }
    let (listed, everything) = (&sessions[0], &sessions[1]);
    let worker = "SELECT pid FROM pg_stat_subscription WHERE subname = 'everything'";
    until(everything, &format!("SELECT ({worker}) IS NOT NULL")).await;
    let first: i32 = everything.query_one(worker, &[]).await.unwrap().get(0);
    // As the Backup step does.
    let url = format!("postgresql://postgres@127.0.0.1:{port}/publisher?sslmode=disable");
    let mut client = Target::parse(&url, None).unwrap().connect("test").await.unwrap();
    control::install(&mut client, &spec()).await.unwrap();
    publisher
        .batch_execute(
            "INSERT INTO users (email, api_token) VALUES ('a', 'a');
             INSERT INTO user_credits (user_id, balance) SELECT id, 10 FROM users",
        )
        .await
        .unwrap();
    until(listed, "SELECT count(*) = 1 FROM user_credits").await;
    // Its worker ends with an error.
    until(everything, &format!("SELECT ({worker}) IS DISTINCT FROM {first}")).await;
    let arrived: i64 = everything.query_one("SELECT count(*) FROM user_credits", &[]).await.unwrap().get(0);
    assert_eq!(arrived, 0, "nothing is applied any more");
}

/// Until `query` is true.
async fn until(session: &Client, query: &str) {
    let start = Instant::now();
    while !session.query_one(query, &[]).await.unwrap().get::<_, Option<bool>>(0).unwrap_or_default() {
        assert!(start.elapsed() < Duration::from_secs(60), "{query}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
