//! Day check and week review: the report in the bucket.

use credit_migration::api::{Task, sha256};
use serde_json::{Value, json};

use crate::harness::{UP, World};

fn report(world: &World, ending: &str) -> (Value, Vec<u8>) {
    let text = std::fs::read(world.object_file().with_extension(ending)).unwrap();
    (serde_json::from_slice(&text).unwrap(), text)
}

#[tokio::test]
async fn the_report_has_figures_and_checks() {
    let mut world = World::new().await;
    world.cutover(UP).await;
    let app = world.owner().await;
    let changes = "UPDATE user_credits SET balance = balance - 2 WHERE user_id <= 3;
        INSERT INTO credit_transactions (user_id, type, amount) SELECT n, 'usage', -2 FROM generate_series(1, 3) n;
        UPDATE user_credits SET balance = balance + 100 WHERE user_id = 4;
        INSERT INTO credit_transactions (user_id, type, amount) VALUES (4, 'subscription_grant', 100)";
    app.batch_execute(changes).await.unwrap();
    let cutover_at = "2026-01-02T03:04:05Z";
    world.spec.inputs.cutover_at = Some(cutover_at.parse().unwrap());
    world.spec.task = Task::DayCheck;
    let checks = json!([
        {"name": "unexplained", "interval": "1s", "balances": {}, "max": "0"},
        {"name": "negative", "interval": "1s", "sql": {"query": "SELECT 1"}, "max": "0"},
    ]);
    world.spec.plan.follow_ups.day.checks = serde_json::from_value(checks).unwrap();
    world.spec.plan.follow_ups.day.duration = std::time::Duration::from_secs(3).into();
    let outcome = world.run(Task::DayCheck).await;
    outcome.result.as_ref().unwrap();

    let (report, text) = report(&world, "day-report.json");
    let evidence = &outcome.noted["report"];
    assert_eq!(
        evidence["object"],
        world.spec.inputs.backup_object.clone().unwrap().replace(".dump", ".day-report.json")
    );
    assert_eq!((&evidence["sha256"], &evidence["bytes"]), (&json!(sha256(&text)), &json!(text.len())));
    assert_eq!((&evidence["passed"], &evidence["checks"]), (&json!(1), &json!(2)));
    let summary = evidence["summary"].as_str().unwrap();
    assert!(summary.starts_with("1 of 2 checks passed (negative "), "{summary}");
    assert!(summary.contains("; 300 users, balances 451594, 4 transactions since 20"), "{summary}");
    assert_eq!(outcome.noted["checks"], report["checks"]);

    for (field, want) in [
        ("/task", json!("DayCheck")),
        ("/migrationUID", json!(world.spec.migration_uid)),
        ("/cutoverAt", json!(cutover_at)),
        ("/statistics/users", json!(300)),
        ("/statistics/totalBalance", json!("451594")),
        ("/statistics/maxBalance", json!("3000")),
        // All of them: those before the cutover as well.
        ("/statistics/transactions/2/count", json!(303)),
        ("/usage/usersWritten", json!(4)),
        (
            "/usage/transactions",
            json!([
                {"type": "subscription_grant", "count": 1, "totalAmount": "100"},
                {"type": "usage", "count": 3, "totalAmount": "6"},
            ]),
        ),
        ("/usage/days/0/count", json!(4)),
        ("/usage/days/0/totalAmount", json!("106")),
    ] {
        assert_eq!(report.pointer(field), Some(&want), "{field} of {report:#}");
    }
    // The new schema has no such column.
    assert_eq!(report.pointer("/statistics/totalPurchased"), None);
    assert!(!String::from_utf8(text).unwrap().contains("@example.com"));
}

#[tokio::test]
async fn a_schema_that_gave_up_transactions_still_has_a_report_and_it_may_be_written_twice() {
    let mut world = World::new().await;
    world.cutover(&format!("{UP}; DROP TABLE credit_transactions")).await;
    world.spec.task = Task::WeekReview;
    for _ in 0..2 {
        let outcome = world.run(Task::WeekReview).await;
        outcome.result.as_ref().unwrap();
        let summary = outcome.noted["report"]["summary"].as_str().unwrap();
        let figures = "0 of 0 checks passed; 300 users, balances 451500, transactions since the cutover unknown";
        let users = "other users of the tables (1): subscription_credits_user_id_fkey of public.subscription_credits \
            (ForeignKey, public.user_credits); other roles are not known: no pg_stat_statements in the database";
        assert_eq!(summary, format!("{figures}; {users}"));
    }
    let (report, _) = report(&world, "week-report.json");
    assert_eq!((&report["usage"], &report["statistics"]["transactions"]), (&Value::Null, &Value::Null));
    assert_eq!(world.stored().len(), 3, "dump, statistics, one report");
}
