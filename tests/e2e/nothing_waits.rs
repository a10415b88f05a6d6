//! Nothing waits in silence: what keeps a step from going on is in `Ready` within seconds, and is one Event.

use std::time::{Duration, Instant};

use credit_migration::api::{Phase, Step, Task};
use k8s_openapi::api::core::v1::{ConfigMap, ResourceQuota};
use kube::{ResourceExt, api::DeleteParams};
use serde_json::{Value, json};

use super::{
    checklist::inbox,
    cluster::{self, eventually},
    harness::{APP, FLAG, LASTS, Setup, e2e},
    migration::ready,
};

/// Within this time `Ready` names the cause.
const NAMED_WITHIN: Duration = Duration::from_secs(20);
/// Within this time triggers without a result are reported: 30 s after a result is late, and what a slow machine takes.
const UNMEASURED_WITHIN: Duration = Duration::from_secs(120);

#[tokio::test]
async fn a_refused_pod_is_named() {
    e2e("quota", Setup { replicas: 0, ..Setup::default() }, |world| async move {
        world.quota("cpu", "limits.cpu", "4").await;
        let started = Instant::now();
        let m = world.migrate("simplify", json!({})).await;
        let message = m.reason("PodNotStarted").await;
        let waited = started.elapsed();
        assert!(waited <= NAMED_WITHIN, "{waited:?}");
        let job = m.run_name(Task::Preflight);
        for part in [job.as_str(), "FailedCreate: ", "limits.cpu", "next: kubectl -n ", "describe job/"] {
            assert!(message.contains(part), "{message} lacks {part}");
        }
        m.event("PodNotStarted", "limits.cpu").await;

        // It goes on by itself.
        world.api::<ResourceQuota>().delete("cpu", &DeleteParams::default()).await.unwrap();
        let status = m.phase(Phase::AwaitingApproval).await;
        assert_eq!(status.problems, []);
        let events = world.events(&m.name).await;
        assert_eq!(events.iter().filter(|(reason, _)| reason == "PodNotStarted").count(), 1, "{events:?}");
    })
    .await;
}

#[tokio::test]
async fn two_breaches_are_two_events() {
    e2e("breaches", Setup::default(), |world| async move {
        let check = |name: &str| {
            json!({"name": name, "interval": "1s", "onBreach": "Warn", "max": "0", "sql": {"query": "SELECT 1"}})
        };
        let validation = json!({"duration": "30s", "checks": [check("first"), check("second")]});
        let m = world.migrate("simplify", json!({"validation": validation})).await;
        m.approve().await;
        m.step(Step::Monitor).await;
        let events = world.events(&m.name).await;
        let breaches: Vec<_> = events.iter().filter(|(reason, _)| reason == "CheckBreached").collect();
        assert_eq!(breaches.len(), 2, "{events:?}");
        for name in ["first: ", "second: "] {
            assert!(breaches.iter().any(|(_, note)| note.starts_with(name)), "{breaches:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_flag_that_drifts_is_set_again() {
    e2e("drift", Setup::default(), |world| async move {
        let flag = json!({"onDrift": "Restore"});
        let spec = json!({"application": {"flag": flag}, "validation": {"duration": LASTS}});
        let m = world.migrate("simplify", spec).await;
        m.approve().await;
        m.step(Step::Validate).await;
        world.patch::<ConfigMap>(APP, json!({"data": {FLAG: "v1"}})).await;
        eventually("the flag", async || match world.flag().await.as_str() {
            "v2" => Ok(()),
            flag => Err(flag.to_owned()),
        })
        .await;
        m.event("FlagDrifted", "the operator sets it again").await;
        m.until("the end of the drift", |status| ready(status).0 != "FlagDrifted").await;
        let workload = world.running().await;
        assert_eq!(workload, "v2");
    })
    .await;
}

#[tokio::test]
async fn a_flag_that_drifts_is_left_alone_by_default() {
    e2e("drift-alert", Setup::default(), |world| async move {
        world.further_secrets().await;
        let key = |key: &str| json!({"name": "notices", "key": key});
        let slack = json!({"urlSecretRef": key("slack-url"), "caSecretRef": key("ca.crt")});
        let spec = json!({
            "schedule": {"leadTime": "0s"},
            "validation": {"duration": LASTS},
            "notifications": {"channels": [{"name": "slack", "audiences": ["Team"], "slack": slack}]},
        });
        let m = world.migrate("simplify", spec).await;
        m.approve().await;
        m.step(Step::Validate).await;
        world.patch::<ConfigMap>(APP, json!({"data": {FLAG: "v1"}})).await;
        let message = m.reason("FlagDrifted").await;
        assert!(message.contains("to set it again, next: kubectl"), "{message}");
        let notices = format!("/{}/slack", world.namespace);
        let drift = "pods that start meanwhile run the wrong version";
        let about = |all: &[Value]| all.iter().filter(|text| text.to_string().contains(drift)).count();
        eventually("the notice", async || match about(&inbox(&notices).await) {
            1 => Ok(()),
            n => Err(format!("{n} notices")),
        })
        .await;
        // The Job of the notice came after what the operator does about the flag.
        assert_eq!(world.flag().await, "v1");
        let status = m.status().await;
        assert!(status.problems.iter().any(|p| p.reason == "FlagDrifted"), "{:?}", status.problems);
        world.patch::<ConfigMap>(APP, json!({"data": {FLAG: "v2"}})).await;
        m.until("the end of the drift", |s| s.problems.is_empty() && ready(s).0 != "FlagDrifted").await;
        assert_eq!(world.running().await, "v2");
        let events = world.events(&m.name).await;
        assert_eq!(events.iter().filter(|(reason, _)| reason == "FlagDrifted").count(), 1, "{events:?}");
        assert_eq!(about(&inbox(&notices).await), 1);
    })
    .await;
}

#[tokio::test]
async fn triggers_that_no_pod_measures_are_reported() {
    e2e("unmeasured", Setup::default(), |world| async move {
        let m = world.migrate("simplify", json!({"validation": {"duration": LASTS}})).await;
        m.approve().await;
        m.step(Step::Validate).await;
        eventually("measured triggers", async || {
            let results = m.run(Task::Validate).await.checks;
            if results.iter().any(|r| r.name == "balance-errors") { Ok(()) } else { Err(format!("{results:?}")) }
        })
        .await;
        // The runner's pods have no such limit: none follows the one that is lost.
        world.quota("cpu", "limits.cpu", "4").await;
        for pod in world.pods_of(&m.run_name(Task::Validate)).await {
            cluster::delete_pod(&world.client, &world.namespace, &pod.name_any()).await;
        }
        let started = Instant::now();
        let message = m.reason("TriggersNotMeasured").await;
        let waited = started.elapsed();
        assert!(waited <= UNMEASURED_WITHIN, "{waited:?}");
        for part in ["balance-errors (", "limit 30 s", "limits.cpu", "next: kubectl"] {
            assert!(message.contains(part), "{message} lacks {part}");
        }
        m.event("TriggersNotMeasured", "no rollback starts by itself").await;
        world.api::<ResourceQuota>().delete("cpu", &DeleteParams::default()).await.unwrap();
        m.until("measured triggers", |s| s.problems.is_empty() && ready(s).0 != "TriggersNotMeasured").await;
        m.assert_new().await;
    })
    .await;
}

#[tokio::test]
async fn a_window_that_met_a_lock_is_tried_again() {
    let sample = Setup::default();
    let setup = Setup {
        up: format!("{}\nALTER TABLE reports ADD COLUMN total int;", sample.up),
        down: format!("{}\nALTER TABLE reports DROP COLUMN total;", sample.down),
        ..sample
    };
    e2e("attempts", setup, |world| async move {
        let owner = world.db.migrator();
        world.db.run(&format!("CREATE TABLE reports (id int); ALTER TABLE reports OWNER TO {owner}")).await;
        let m = world.migrate("simplify", json!({"window": {"attempts": 2}})).await;
        m.phase(Phase::AwaitingApproval).await;
        // No protected table: no session is ended for it.
        let holder = world.db.connect().await;
        holder.batch_execute("SET application_name = 'nightly report'; BEGIN; LOCK TABLE reports").await.unwrap();
        let pid: i32 = holder.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
        m.approve().await;
        let named = m.event("LockTimeout", "nightly report").await;
        assert!(named.contains(&format!("pid {pid} (role ")) && named.contains("attempt 1 of 2"), "{named}");
        let status = m.reason("Scheduled").await;
        assert!(status.contains("attempt 2 of 2 starts at"), "{status}");
        drop(holder);
        // After a minute, on the same approvals.
        let status = m.step(Step::Validate).await;
        assert_eq!(status.schedule.unwrap().failed_windows, 1);
        m.completed().await;
        m.assert_new().await;
    })
    .await;
}
