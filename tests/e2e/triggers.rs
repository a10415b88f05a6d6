//! The checklist's five rollback triggers: each fires when v2 has the fault that it is meant to detect, and the old
//! version is restored.

use std::sync::Arc;

use credit_migration::api::{Phase, Step, Task};
use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::{Value, json};

use super::{
    cluster::eventually,
    harness::{APP, LASTS, Setup, World, e2e},
};

/// Runs a migration to a v2 with a fault and with this trigger alone, which starts the rollback. `provoke` runs in
/// stage Validate.
async fn fires<F>(name: &'static str, fault: Value, trigger: Value, provoke: impl FnOnce(Arc<World>) -> F)
where
    F: Future<Output = ()>,
{
    e2e(name, Setup::default(), |world| async move {
        world.patch::<ConfigMap>(APP, json!({ "data": fault })).await;
        let mut triggers = json!({"balanceErrors": {"mode": "Disabled"}, "databaseConnection": {"mode": "Disabled"}});
        json_patch::merge(&mut triggers, &trigger);
        let spec = json!({"validation": {"duration": LASTS, "checks": []}, "rollback": {"triggers": triggers}});
        let m = world.migrate("simplify", spec).await;
        m.approve().await;
        // A fault that needs no provocation may have fired by now.
        m.step(Step::Validate).await;
        provoke(world.clone()).await;
        let status = m.phase(Phase::RolledBack).await;
        let rollback = status.rollback.unwrap();
        assert_eq!(rollback.cause, "TriggerFired");
        assert!(rollback.message.starts_with(&format!("{name}: ")), "{}", rollback.message);
        assert_eq!((world.flag().await.as_str(), world.running().await.as_str()), ("v1", "v1"));
        assert_eq!(world.db.schema().await, "v1");
        // Printed, not asserted. For a fault that needs no provocation it is the time since the first measurement.
        let watched = status.steps.iter().find(|x| x.name == Step::Validate).unwrap().started_at;
        println!("{name}: rollback started after {:.1} s", rollback.started_at.duration_since(watched).as_secs_f64());
    })
    .await;
}

#[tokio::test]
async fn balance_errors() {
    let trigger = json!({"balanceErrors": {"mode": "Enabled"}});
    fires("balance-errors", json!({"V2_FAULTS": "balances"}), trigger, |world| async move {
        // Ten users are the limit: it takes one more.
        for user in 1..=11 {
            world.deduct(user, 2).await;
        }
    })
    .await;
}

#[tokio::test]
async fn payment_processing() {
    let url = |path: &str| format!("http://{APP}{path}");
    let steps = json!([
        {"name": "log in", "url": url("/login"), "method": "POST", "body": "{\"email\": \"user5@example.com\"}",
         "capture": [{"name": "token", "jsonPath": "$.token"}]},
        {"name": "pay", "url": url("/subscription/upgrade"), "method": "POST", "body": "{\"plan\": \"basic\"}",
         "headers": {"Authorization": "Bearer {{ token }}"}},
    ]);
    let trigger = json!({"paymentProcessing": {"sequence": {"steps": steps}}});
    fires("payment-processing", json!({"V2_FAULTS": "payments"}), trigger, |_| async {}).await;
}

#[tokio::test]
async fn core_function() {
    let login =
        json!({"url": format!("http://{APP}/login"), "method": "POST", "body": "{\"email\": \"user5@example.com\"}"});
    fires("core-function", json!({"V2_FAULTS": "login"}), json!({"coreFunction": {"http": login}}), |_| async {}).await;
}

/// A database that accepts no connection is tested in `runner_data`. Here all tests share one server, so the limit is
/// low instead.
#[tokio::test]
async fn database_connection() {
    let trigger = json!({"databaseConnection": {"mode": "Enabled", "maxUsed": "0.001"}});
    fires("database-connection", json!({}), trigger, |_| async {}).await;
}

#[tokio::test]
async fn error_rate() {
    let sum = |of: &str| format!("sum(rate(http_requests_total{{NAMESPACE{of}}}[10s]))");
    let query = json!({
        "url": "http://prometheus.monitoring:9090",
        "query": format!("{} / {}", sum(", code=\"500\""), sum("")),
        "samplesQuery": "sum(increase(http_requests_total{NAMESPACE}[10s]))",
    });
    e2e("error-rate", Setup::default(), |world| async move {
        world.patch::<ConfigMap>(APP, json!({"data": {"V2_FAILURE_RATE": "0.5"}})).await;
        let query = query.to_string().replace("NAMESPACE", &format!("namespace=\\\"{}\\\"", world.namespace));
        let prometheus: Value = serde_json::from_str(&query).unwrap();
        let triggers = json!({"databaseConnection": {"mode": "Disabled"}, "errorRate": {"prometheus": prometheus,
            "minimumSamples": 50}});
        let spec = json!({"validation": {"duration": LASTS, "checks": []}, "rollback": {"triggers": triggers}});
        let m = world.migrate("simplify", spec).await;
        m.approve().await;
        m.step(Step::Validate).await;
        let http = reqwest::Client::new();
        let url = format!("http://{APP}.{}/credits", world.namespace);
        // Requests go on until the rollback starts.
        let status = eventually("the rollback", async || {
            for _ in 0..20 {
                let _ = http.get(&url).bearer_auth("demo-token-1").send().await;
            }
            let status = m.status().await;
            match status.phase {
                Some(Phase::RollingBack | Phase::RolledBack) => Ok(status),
                phase => Err(format!("{phase:?} {:?}", m.run(Task::Validate).await.checks)),
            }
        })
        .await;
        let rollback = status.rollback.unwrap();
        assert!(rollback.cause == "TriggerFired" && rollback.message.starts_with("error-rate: 0."), "{rollback:?}");
        m.phase(Phase::RolledBack).await;
        m.assert_old("up,down").await;
    })
    .await;
}
