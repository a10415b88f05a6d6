//! How long writes are blocked does not depend on how many users there are.
//!
//! Figures: `SIZES="100000 1000000" cargo test --test runner_window -- --ignored --nocapture size`. 10,000,000 users
//! need 5 GB of disk.

use std::{sync::Arc, time::Instant};

use credit_migration::{
    api::{Direction, WindowCommand as Order, WindowProgress, WindowState as State},
    runner::{
        database::control,
        tasks::window::{WindowOutcome, WindowPlan},
    },
};
use tokio::task::JoinHandle;

use crate::{
    harness::{Cluster, Database, Desk, end, plan, spec, sql},
    programs,
};

/// Users that write before the window, and again after it.
const WRITERS: i64 = 5_000;
const WRITE: &str = "UPDATE user_credits SET balance = balance + 1 WHERE user_id % ";

/// Seconds of one window: until it is ready, with writes blocked, of the SQL with its verification, and until balances
/// were compared.
struct Seconds {
    standby: f64,
    blocked: f64,
    sql: f64,
}

impl std::fmt::Display for Seconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { standby, blocked, sql } = self;
        write!(f, "ready after {standby:.1} s, writes blocked for {blocked:.2} s, of these SQL {sql:.2} s")
    }
}

/// As many users as `users`, in the server.
async fn generate(database: &Database, users: i64) {
    let owner = database.session("migrator").await;
    owner
        .batch_execute(&format!(
            "ALTER TABLE user_credits DROP CONSTRAINT user_credits_user_id_fkey;
             INSERT INTO user_credits (user_id, balance) SELECT n, 1000 + n % 1000 FROM generate_series(201, {users}) n"
        ))
        .await
        .unwrap();
    let root = database.session("postgres").await;
    for statement in ["VACUUM ANALYZE user_credits", "CHECKPOINT"] {
        root.batch_execute(statement).await.unwrap();
    }
}

/// As the Backup step does.
async fn prepare(database: &Database, users: i64) {
    let mut client = database.target().connect("test").await.unwrap();
    client.batch_execute("SET statement_timeout = 0").await.unwrap();
    control::install(&mut client, &spec()).await.unwrap();
    let tx = client.build_transaction().isolation_level(tokio_postgres::IsolationLevel::RepeatableRead);
    let tx = tx.start().await.unwrap();
    assert_eq!(i64::try_from(control::take_baseline(&tx, &spec()).await.unwrap()).unwrap(), users);
    tx.commit().await.unwrap();
}

/// Every so-manieth user writes, so that these are [`WRITERS`].
async fn write(database: &Database, users: i64) {
    let app = database.session("app").await;
    app.batch_execute(&format!("{WRITE} {} = 0", users / WRITERS)).await.unwrap();
}

fn the_plan(direction: Direction) -> WindowPlan {
    let up = sql(&[
        "DROP TABLE credit_purchases; DROP TABLE credit_packages",
        "ALTER TABLE user_credits ADD COLUMN tier text",
    ]);
    let mut plan = plan(direction, up, sql(&["ALTER TABLE user_credits DROP COLUMN tier"]));
    plan.control_spec.verify_down = None;
    plan
}

/// A window without an application to switch.
async fn window(database: &Database, direction: Direction) -> Seconds {
    let (desk, started) = (Desk::new(), Instant::now());
    let task = desk.start(database, &the_plan(direction));
    desk.state(State::Ready).await;
    let standby = started.elapsed().as_secs_f64();
    let outcome = ordered(&desk, task, direction).await;
    let WindowOutcome { progress, failure } = outcome;
    assert_eq!(failure, None);
    let compared = progress.comparison.clone().unwrap();
    assert_eq!(compared.unexplained, 0, "{compared:?}");
    let step = if direction == Direction::Forward { "up" } else { "down" };
    let sql = database.value(&format!("SELECT seconds FROM credit_migration.ledger WHERE step = '{step}'")).await;
    Seconds { standby, blocked: blocked(&progress), sql: sql.parse().unwrap() }
}

async fn ordered(desk: &Arc<Desk>, task: JoinHandle<WindowOutcome>, direction: Direction) -> WindowOutcome {
    desk.order(Order::BlockWrites);
    match direction {
        Direction::Forward => {
            desk.until("comparison", |progress, _| progress.comparison.is_some()).await;
            desk.order(Order::Switch);
            desk.until("acknowledgement", |progress, _| progress.switch_acknowledged).await;
            desk.order(Order::UnblockWrites);
        }
        Direction::Rollback => {
            desk.state(State::Blocked).await;
            desk.order(Order::Switch);
            desk.until("acknowledgement", |progress, _| progress.switch_acknowledged).await;
            desk.order(Order::Rollback);
        }
    }
    end(task).await
}

fn blocked(progress: &WindowProgress) -> f64 {
    let (from, to) = (progress.blocked_at.unwrap(), progress.unblocked_at.unwrap());
    to.duration_since(from).as_secs_f64()
}

#[tokio::test]
#[ignore = "a measurement of some minutes"]
async fn size_has_no_part_in_how_long_writes_are_blocked() {
    let sizes = std::env::var("SIZES").unwrap_or_else(|_| "100000 1000000".to_owned());
    let cluster = tokio::task::spawn_blocking(Cluster::durable).await.unwrap();
    let cluster = Arc::new(cluster);
    let mut all: Vec<(i64, Seconds, Seconds)> = Vec::new();
    println!("PostgreSQL {}, {WRITERS} users write before the window and after it", *programs::MAJOR);
    for users in sizes.split_whitespace().map(|text| text.parse::<i64>().unwrap()) {
        let database = Database::on(&cluster).await;
        generate(&database, users).await;
        let started = Instant::now();
        prepare(&database, users).await;
        let baseline = started.elapsed().as_secs_f64();
        write(&database, users).await;
        let forward = window(&database, Direction::Forward).await;
        write(&database, users).await;
        let balances = "SELECT sum(balance) || ' ' || sum(balance * user_id) FROM user_credits";
        let before = database.value(balances).await;
        let back = window(&database, Direction::Rollback).await;
        assert_eq!(database.value(balances).await, before);
        println!("{users} users: baseline {baseline:.1} s; forward {forward}; rollback {back}");
        all.push((users, forward, back));
        let root = database.session("postgres").await;
        for statement in ["TRUNCATE user_credits CASCADE", "TRUNCATE credit_migration.baseline", "CHECKPOINT"] {
            root.batch_execute(statement).await.unwrap();
        }
    }
    // The figures are of tenths of seconds, and the machine does other things, too.
    for (users, forward, back) in &all[1..] {
        for (first, now) in [(&all[0].1, forward), (&all[0].2, back)] {
            assert!(now.blocked < 2.0 * first.blocked + 1.0, "{users} users: {now}, with fewer {first}");
        }
    }
}
