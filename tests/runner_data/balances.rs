//! Balances compared with the cutover: what explains a balance, what does not, and what a measurement costs.

use std::time::{Duration, Instant};

use credit_migration::{
    api::{BalancesCheck, BalancesComparison, sha256},
    runner::{
        checks::{
            self,
            balances::BalancesSource,
            evaluator::{Measurement, Value},
        },
        report::Progress,
    },
};
use serde_json::json;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use crate::harness::{UP, World};

fn compare(world: &World, compare: BalancesComparison) -> BalancesSource {
    BalancesSource::new(&BalancesCheck { compare }, &world.control_spec(), world.target())
}

fn users(world: &World) -> BalancesSource {
    self::compare(world, BalancesComparison::Users)
}

fn number(text: &str) -> Measurement {
    Measurement::Value { value: Value::Number(text.to_owned()), samples: None }
}

async fn owner(world: &World) -> Client {
    world.owner().await
}

/// As the application does it: balance and transaction in one.
async fn change(client: &Client, user: i64, amount: i64) {
    let sql = format!(
        "BEGIN; UPDATE user_credits SET balance = balance + {amount} WHERE user_id = {user};
         INSERT INTO credit_transactions (user_id, type, amount) VALUES ({user}, 'bonus', {amount}); COMMIT"
    );
    client.batch_execute(&sql).await.unwrap();
}

#[tokio::test]
async fn what_transactions_explain_passes_and_nothing_else() {
    let mut world = World::new().await;
    let mut users = users(&world);
    assert!(matches!(users.measure().await, Measurement::NoData(words) if words.text.contains("no cutover")));
    // Written before the cutover, and not in the baseline of the backup.
    world.backed_up().await;
    let app = owner(&world).await;
    change(&app, 1, 7).await;
    world.cutover(UP).await;
    assert_eq!(users.measure().await, number("0"));

    change(&app, 1, -3).await;
    change(&app, 2, 30).await;
    change(&app, 2, -5).await;
    assert_eq!(users.measure().await, number("0"), "explained changes");

    // Without a transaction; with one of another amount; the other way round.
    app.batch_execute("UPDATE user_credits SET balance = balance + 1 WHERE user_id = 3").await.unwrap();
    assert_eq!(users.measure().await, number("1"), "a silently changed balance");
    // What is wrong stays wrong, though nothing new was captured.
    assert_eq!(users.measure().await, number("1"));
    app.batch_execute("INSERT INTO credit_transactions (user_id, type, amount) VALUES (3, 'bonus', 1)").await.unwrap();
    assert_eq!(users.measure().await, number("0"), "explained afterwards");
    let swap = "UPDATE user_credits SET balance = CASE user_id WHEN 10 THEN 110 ELSE 100 END WHERE user_id IN (10, 11)";
    app.batch_execute(swap).await.unwrap();
    assert_eq!(users.measure().await, number("2"), "a swap between two users");
    app.batch_execute("UPDATE user_credits SET balance = user_id * 10 WHERE user_id IN (10, 11)").await.unwrap();
    assert_eq!(users.measure().await, number("0"));
    // Only once: a user who was measured as good, and goes wrong later.
    app.batch_execute("UPDATE user_credits SET balance = balance + 5 WHERE user_id = 1").await.unwrap();
    assert_eq!(users.measure().await, number("1"));
    // Another process of the same run sees the same.
    assert_eq!(self::users(&world).measure().await, number("1"));
}

/// What most applications write into a column without time zone is UTC, whatever the server's zone is.
#[tokio::test]
async fn times_without_zone_are_read_in_the_zone_of_the_spec() {
    for zone in ["UTC", "America/New_York"] {
        let mut world = World::new().await;
        world.spec.plan.credits.transactions.as_mut().unwrap().created_at_time_zone = zone.to_owned();
        world
            .alter(&format!(
                "ALTER TABLE credit_transactions ALTER created_at TYPE timestamp USING created_at AT TIME ZONE '{zone}';
                 ALTER DATABASE shop_{{n}} SET timezone = 'Europe/Berlin'"
            ))
            .await;
        world.cutover(UP).await;
        let (app, mut users) = (owner(&world).await, users(&world));
        let change = |user: i64, ago: &str| {
            format!(
                "UPDATE user_credits SET balance = balance + 3 WHERE user_id = {user};
                 INSERT INTO credit_transactions (user_id, type, amount, created_at)
                 VALUES ({user}, 'bonus', 3, now() AT TIME ZONE '{zone}' - interval '{ago}')"
            )
        };
        app.batch_execute(&change(1, "0")).await.unwrap();
        assert_eq!(users.measure().await, number("0"), "{zone}: written since");
        // Thirty minutes before the cutover: read in the server's zone or another one it would be after it, or all
        // would be before.
        app.batch_execute(&change(2, "30 min")).await.unwrap();
        assert_eq!(users.measure().await, number("1"), "{zone}: written before");
    }
}

#[tokio::test]
async fn users_who_come_and_go() {
    let mut world = World::new().await;
    world.cutover(UP).await;
    let (app, mut users) = (owner(&world).await, users(&world));
    let come = "INSERT INTO users (id, email, api_token) VALUES (1001, 'new@example.com', 'x'),
            (1002, 'other@example.com', 'y');
        INSERT INTO user_credits (user_id, balance) VALUES (1001, 20), (1002, 20);
        INSERT INTO credit_transactions (user_id, type, amount) VALUES (1001, 'bonus', 20)";
    app.batch_execute(come).await.unwrap();
    assert_eq!(users.measure().await, number("1"), "a new user is explained by transactions alone");
    app.batch_execute("INSERT INTO credit_transactions (user_id, type, amount) VALUES (1002, 'bonus', 20)")
        .await
        .unwrap();
    assert_eq!(users.measure().await, number("0"));
    // Led to 0, then deleted; deleted with a balance.
    change(&app, 5, -50).await;
    app.batch_execute("DELETE FROM user_credits WHERE user_id IN (5, 6)").await.unwrap();
    assert_eq!(users.measure().await, number("1"));
    app.batch_execute("UPDATE user_credits SET user_id = 6 WHERE user_id = 1002").await.unwrap();
    assert_eq!(users.measure().await, number("2"), "a balance that went to another user");
    world.alter("TRUNCATE user_credits CASCADE").await;
    // All of before but user 5, who is at 0 as transactions say, and the two that came.
    assert_eq!(users.measure().await, number("301"));
}

/// A transaction that started while the SQL was running, and wrote when writes were open again, bears an earlier time
/// than the ledger's row. And what the SQL itself wrote bears a later time than its own start.
#[tokio::test]
async fn both_edges_of_the_cutover() {
    let mut world = World::new().await;
    let holder = owner(&world).await;
    holder.batch_execute("SELECT pg_advisory_lock(77)").await.unwrap();
    let up = format!(
        "{UP}; SELECT pg_advisory_xact_lock(77);
         INSERT INTO credit_transactions (user_id, type, amount, created_at)
             SELECT user_id, 'refund', balance, clock_timestamp() FROM user_credits;
         DO $$ BEGIN
             INSERT INTO credit_transactions (user_id, type, amount, created_at)
                 SELECT user_id, 'refund', balance, clock_timestamp() FROM user_credits;
         EXCEPTION WHEN division_by_zero THEN NULL; END $$"
    );
    let (early, watching) = (owner(&world).await, owner(&world).await);
    let meanwhile = async {
        let started = Instant::now();
        let waits = "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = 77 AND NOT granted)";
        while !watching.query_one(waits, &[]).await.unwrap().get::<_, bool>(0) {
            assert!(started.elapsed() < Duration::from_secs(30), "the SQL does not wait");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        early.batch_execute("BEGIN; SELECT now()").await.unwrap();
        holder.batch_execute("SELECT pg_advisory_unlock(77)").await.unwrap();
    };
    tokio::join!(world.cutover(&up), meanwhile);
    let write = "UPDATE user_credits SET balance = balance - 4 WHERE user_id = 8;
        INSERT INTO credit_transactions (user_id, type, amount) VALUES (8, 'usage', -4); COMMIT";
    early.batch_execute(write).await.unwrap();
    let order = "SELECT count(*) FROM credit_transactions t, credit_migration.ledger l
        WHERE t.user_id = 8 AND t.amount = -4 AND t.created_at < l.applied_at";
    assert_eq!(world.count(order).await, 1, "the case is not the one that is meant");
    let by_the_sql = "SELECT count(*) FROM credit_transactions t, credit_migration.ledger l
        WHERE t.type = 'refund' AND t.created_at > l.applied_at - make_interval(secs => l.seconds)";
    assert_eq!(world.count(by_the_sql).await, 600, "the case is not the one that is meant");
    let mut users = users(&world);
    assert_eq!(users.measure().await, number("0"));
    early.batch_execute("UPDATE user_credits SET balance = balance - 1 WHERE user_id = 8").await.unwrap();
    assert_eq!(users.measure().await, number("1"));
}

#[tokio::test]
async fn a_schema_without_transactions_says_so() {
    let mut world = World::new().await;
    world.cutover(&format!("{UP}; ALTER TABLE credit_transactions RENAME amount TO delta")).await;
    let (app, mut users) = (owner(&world).await, users(&world));
    app.batch_execute("UPDATE user_credits SET balance = 0").await.unwrap();
    let measured = users.measure().await;
    assert!(
        matches!(&measured, Measurement::NoData(detail)
            if detail.to_string().contains("no column amount any more") && detail.to_string().contains("next: ")),
        "{measured:?}"
    );
    app.batch_execute("DROP TABLE credit_transactions").await.unwrap();
    let measured = users.measure().await;
    assert!(
        matches!(&measured, Measurement::NoData(words) if words.text.contains("is not there any more")),
        "{measured:?}"
    );
    // The sum needs none of it.
    let mut total = compare(&world, BalancesComparison::Total);
    assert_eq!(total.measure().await, number("100"));
}

#[tokio::test]
async fn the_sum_in_percent() {
    let mut world = World::new().await;
    world.cutover(UP).await;
    let (app, mut total) = (owner(&world).await, compare(&world, BalancesComparison::Total));
    assert_eq!(total.measure().await, number("0"));
    // 451500 credits in all.
    change(&app, 300, 4515).await;
    assert_eq!(total.measure().await, number("1"));
    change(&app, 300, -4515 - 903).await;
    assert_eq!(total.measure().await, number("0.2"));
}

/// Polled every few seconds with a million users: what is read must depend on what changed, not on what there is.
#[tokio::test]
async fn a_measurement_costs_what_changed() {
    let mut world = World::new().await;
    let app = owner(&world).await;
    let many = "INSERT INTO users (id, email, api_token)
            SELECT n, n || '@many.example', 'many ' || n FROM generate_series(1001, 101000) n;
        INSERT INTO user_credits (user_id, balance) SELECT n, n FROM generate_series(1001, 101000) n;
        INSERT INTO credit_transactions (user_id, type, amount)
            SELECT n, 'bonus', n FROM generate_series(1001, 101000) n;
        ANALYZE";
    app.batch_execute(many).await.unwrap();
    world.cutover(UP).await;
    let mut users = users(&world);
    for user in 1001..1021 {
        change(&app, user, 3).await;
    }
    app.batch_execute("UPDATE user_credits SET balance = balance + 1 WHERE user_id = 2000").await.unwrap();
    // The counters come with a delay; the index scans of the measurements are the sign that they have come.
    let scans = "SELECT coalesce(sum(idx_scan), 0)::bigint FROM pg_stat_user_tables WHERE relname = 'baseline'";
    let read = "SELECT coalesce(sum(seq_tup_read), 0)::bigint FROM pg_stat_user_tables WHERE relname IN \
        ('user_credits', 'credit_transactions', 'baseline')";
    let mut settled = async |from: i64| {
        let started = Instant::now();
        while world.count(scans).await < from {
            assert!(started.elapsed() < Duration::from_secs(30), "{} index scans", world.count(scans).await);
            users.measure().await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    settled(1).await;
    let (before, scanned) = (world.count(read).await, world.count(scans).await);
    // A full one reads 21 users, 19 others the one that is unexplained: two full ones are among them.
    settled(scanned + 2 * 40 + 20).await;
    assert_eq!(world.count(read).await - before, 0, "rows were read that no index led to");
    assert_eq!(users.measure().await, number("1"));
}

/// The rows are in the bucket; the status has where, how many and their digest.
#[tokio::test]
async fn balances_that_nothing_explains_are_listed_in_the_bucket() {
    let mut world = World::new().await;
    world.cutover(UP).await;
    let app = owner(&world).await;
    change(&app, 1, 7).await;
    change(&app, 2, 30).await;
    app.batch_execute("UPDATE user_credits SET balance = balance + 5 WHERE user_id = 2").await.unwrap();
    app.batch_execute("DELETE FROM user_credits WHERE user_id = 4").await.unwrap();
    let check = json!({"name": "balances", "interval": "1s", "balances": {}, "max": "0"});
    let checks = [serde_json::from_value(check).unwrap()];
    let (progress, stop) = (Progress::default(), CancellationToken::new());
    let context = world.context(&progress);
    let listed = async {
        loop {
            if let Some(unexplained) = progress.fields().get("unexplained") {
                stop.cancel();
                return unexplained.clone();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let both = async { tokio::join!(checks::watch(&context, &checks, &[], &stop), listed) };
    let (watched, unexplained) = tokio::time::timeout(Duration::from_secs(60), both).await.expect("no list");
    watched.unwrap();
    let object = unexplained["object"].as_str().unwrap();
    let dump = world.spec.inputs.backup_object.clone().unwrap();
    assert_eq!((object, &unexplained["rows"]), (dump.replace(".dump", ".unexplained.csv").as_str(), &json!(2)));
    let file = std::fs::read(world.file_of(object)).unwrap();
    assert_eq!(unexplained["sha256"], sha256(&file));
    let text = String::from_utf8(file).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines, ["user,before,transactions since,expected,now", "\"2\",20,30,50,55", "\"4\",40,0,40,"]);
}
