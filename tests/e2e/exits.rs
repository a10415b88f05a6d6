//! Writes are blocked only when it is known that the window, or the rollback, can end: what is in the way is named with
//! writes open, and the migration continues by itself when it is gone.

use std::{panic::AssertUnwindSafe, process::Command};

use credit_migration::api::{CreditMigrationStatus, DecisionKind, MigrationDecision, Phase, Step, Writes};
use futures::FutureExt;
use k8s_openapi::api::{
    admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding},
    apps::v1::Deployment,
    core::v1::{ConfigMap, Pod, ResourceQuota},
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    core::Selector,
};
use serde_json::json;

use super::{
    cluster::{eventually, remove_image, tag_image},
    harness::{APP, APPROVERS, FLAG, LASTS, Setup, World, e2e},
    latch::Latch,
    migration::{Migration, condition, ready},
};

/// A bare pod with the labels of the application's pods.
async fn create_foreign_pod(world: &World, name: &str) {
    let deployment = world.api::<Deployment>().get(APP).await.unwrap();
    let template = deployment.spec.unwrap().template;
    let labels = template.metadata.unwrap().labels;
    let pod = json!({"metadata": {"name": name, "labels": labels}, "spec": template.spec});
    world.create_object::<Pod>(pod).await;
}

/// Removes the flag's ConfigMap and creates it again, mutable, with the same data.
async fn create_flag_again(world: &World) {
    let maps = world.api::<ConfigMap>();
    let data = maps.get(APP).await.unwrap().data;
    maps.delete(APP, &DeleteParams::default()).await.unwrap();
    let map = serde_json::from_value(json!({"metadata": {"name": APP}, "data": data})).unwrap();
    eventually("the flag's ConfigMap", async || {
        maps.create(&PostParams::default(), &map).await.map(drop).map_err(|e| e.to_string())
    })
    .await;
}

/// A policy that refuses every update of the flag's ConfigMap while `meanwhile` runs.
async fn frozen_flag(world: &World, meanwhile: impl Future<Output = ()>) {
    frozen_flag_unless(world, "false", meanwhile).await;
}

/// A policy that refuses updates of the flag's ConfigMap while `meanwhile` runs, except those for which the CEL
/// expression is true.
async fn frozen_flag_unless(world: &World, allowed: &str, meanwhile: impl Future<Output = ()>) {
    let (policies, bindings) = (
        Api::<ValidatingAdmissionPolicy>::all(world.client.clone()),
        Api::<ValidatingAdmissionPolicyBinding>::all(world.client.clone()),
    );
    let name = format!("freeze-{}", world.namespace);
    let policy = json!({"metadata": {"name": name}, "spec": {
        "failurePolicy": "Fail",
        "matchConstraints": {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": world.namespace}},
            "resourceRules": [{
                "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"], "operations": ["UPDATE"],
                "resourceNames": [APP],
            }],
        },
        "validations": [{"expression": allowed, "message": "the flag is frozen"}],
    }});
    let binding = json!({"metadata": {"name": name}, "spec": {"policyName": name, "validationActions": ["Deny"]}});
    policies.create(&PostParams::default(), &serde_json::from_value(policy).unwrap()).await.unwrap();
    bindings.create(&PostParams::default(), &serde_json::from_value(binding).unwrap()).await.unwrap();
    let meanwhile = AssertUnwindSafe(meanwhile).catch_unwind().await;
    // First of all: a migration could not be rolled back, and the namespace would stay.
    bindings.delete(&name, &DeleteParams::default()).await.unwrap();
    policies.delete(&name, &DeleteParams::default()).await.unwrap();
    if let Err(panic) = meanwhile {
        std::panic::resume_unwind(panic);
    }
}

/// No window was started.
fn assert_open(status: &CreditMigrationStatus) {
    assert_eq!((status.writes, status.window.as_ref()), (Some(Writes::Open), None), "{:?}", ready(status));
}

/// Approved and refused by a gate, with writes open.
async fn refused(m: &Migration, reason: &str, names: &str) {
    let message = m.reason(reason).await;
    assert!(message.contains(names) && message.contains("next: kubectl"), "{message}");
    assert_open(&m.status().await);
    assert_eq!(m.world.db.schema().await, "v1");
    m.world.db.writable().await.unwrap();
}

#[tokio::test]
async fn a_foreign_pod_is_named_before_the_window() {
    e2e("foreign", Setup::default(), |world| async move {
        let m = world.migrate("simplify", json!({})).await;
        m.phase(Phase::AwaitingApproval).await;
        create_foreign_pod(&world, "debug").await;
        refused(&m, "ForeignPods", "debug").await;
        m.approve().await;
        m.until("both approvals", |s| s.approvals.as_deref() == Some("2/2")).await;
        refused(&m, "ForeignPods", "debug").await;
        world.api::<Pod>().delete("debug", &DeleteParams::default().grace_period(0)).await.unwrap();
        m.completed().await;
        m.assert_new().await;
    })
    .await;
}

#[tokio::test]
async fn a_rollback_waits_with_writes_open_for_a_foreign_pod() {
    e2e("foreign-rollback", Setup::default(), |world| async move {
        let m = world.migrate("simplify", json!({"monitoring": {"duration": LASTS}})).await;
        m.approve().await;
        m.phase(Phase::Monitoring).await;
        create_foreign_pod(&world, "debug").await;
        m.until("RollbackReady", |s| condition(s, "RollbackReady") == "False ForeignPods").await;
        m.decide(APPROVERS[0], DecisionKind::Rollback, None).await.unwrap();
        let message = m.reason("ForeignPods").await;
        assert!(message.contains("writes are open"), "{message}");
        assert_open(&m.status().await);
        world.db.writable().await.unwrap();
        world.api::<Pod>().delete("debug", &DeleteParams::default().grace_period(0)).await.unwrap();
        m.phase(Phase::RolledBack).await;
        m.assert_old("up,down").await;
    })
    .await;
}

#[tokio::test]
async fn a_paused_deployment_is_named_before_the_window() {
    e2e("paused", Setup::default(), |world| async move {
        let m = world.migrate("simplify", json!({})).await;
        m.phase(Phase::AwaitingApproval).await;
        // Before the people are present: the window waits for them, and must not start then.
        let digest = m.approve_absent().await;
        m.step(Step::Schedule).await;
        world.patch::<Deployment>(APP, json!({"spec": {"paused": true}})).await;
        m.reason("WorkloadPaused").await;
        for approver in APPROVERS {
            m.decide(approver, DecisionKind::Ready, Some(&digest)).await.unwrap();
        }
        refused(&m, "WorkloadPaused", "rollout resume").await;
        world.patch::<Deployment>(APP, json!({"spec": {"paused": false}})).await;
        m.completed().await;
        m.assert_new().await;
    })
    .await;
}

#[tokio::test]
async fn a_rollback_waits_with_writes_open_for_a_mutable_flag() {
    e2e("immutable", Setup::default(), |world| async move {
        let m = world.migrate("simplify", json!({"monitoring": {"duration": LASTS}})).await;
        m.approve().await;
        m.phase(Phase::Monitoring).await;
        m.until("RollbackReady", |s| condition(s, "RollbackReady") == "True Switchable").await;
        world.patch::<ConfigMap>(APP, json!({"immutable": true})).await;
        m.until("RollbackReady", |s| condition(s, "RollbackReady") == "False FlagConfigMapImmutable").await;
        m.decide(APPROVERS[0], DecisionKind::Rollback, None).await.unwrap();
        let message = m.reason("FlagConfigMapImmutable").await;
        assert!(message.contains("writes are open") && message.contains("next:"), "{message}");
        let status = m.status().await;
        assert_eq!((status.phase, status.writes), (Some(Phase::RollingBack), Some(Writes::Open)));
        m.assert_new().await;
        create_flag_again(&world).await;
        m.phase(Phase::RolledBack).await;
        m.assert_old("up,down").await;
        assert_eq!(world.running().await, "v1");
    })
    .await;
}

#[tokio::test]
async fn a_flag_that_refuses_every_write_is_named_before_the_window() {
    e2e("frozen", Setup::default(), |world| async move {
        let m = world.migrate("simplify", json!({})).await;
        m.phase(Phase::AwaitingApproval).await;
        frozen_flag(&world, async {
            refused(&m, "FlagWriteRefused", "the flag is frozen").await;
            m.approve().await;
            m.until("both approvals", |s| s.approvals.as_deref() == Some("2/2")).await;
            refused(&m, "FlagWriteRefused", "the flag is frozen").await;
            assert_eq!(world.flag().await, "v1");
        })
        .await;
        m.completed().await;
        m.assert_new().await;
    })
    .await;
}

#[tokio::test]
async fn a_rollback_waits_with_writes_open_for_a_flag_that_accepts_writes() {
    e2e("frozen-rollback", Setup::default(), |world| async move {
        let m = world.migrate("simplify", json!({"monitoring": {"duration": LASTS}})).await;
        m.approve().await;
        m.phase(Phase::Monitoring).await;
        m.until("RollbackReady", |s| condition(s, "RollbackReady") == "True Switchable").await;
        frozen_flag(&world, async {
            m.until("RollbackReady", |s| condition(s, "RollbackReady") == "False FlagWriteRefused").await;
            m.decide(APPROVERS[0], DecisionKind::Rollback, None).await.unwrap();
            m.phase(Phase::RollingBack).await;
            let message = m.reason("FlagWriteRefused").await;
            assert!(message.contains("writes are open") && message.contains("the flag is frozen"), "{message}");
            assert_open(&m.status().await);
            world.db.writable().await.unwrap();
            m.assert_new().await;
        })
        .await;
        m.phase(Phase::RolledBack).await;
        m.assert_old("up,down").await;
        assert_eq!(world.running().await, "v1");
    })
    .await;
}

#[tokio::test]
async fn what_a_rollback_lacks_in_the_database_is_reported_after_the_window() {
    e2e("safeguards", Setup::default(), |world| async move {
        let m = world.migrate("simplify", json!({"monitoring": {"duration": LASTS}})).await;
        m.approve().await;
        m.phase(Phase::Monitoring).await;
        m.until("RollbackReady", |s| condition(s, "RollbackReady") == "True Switchable").await;
        let root = world.db.connect().await;
        root.batch_execute("ALTER TABLE user_credits DISABLE TRIGGER credit_migration_block_writes").await.unwrap();
        m.until("RollbackReady", |s| condition(s, "RollbackReady") == "False WriteBlockMissing").await;
        m.event("WriteBlockMissing", "ENABLE ALWAYS TRIGGER").await;
        root.batch_execute(
            "ALTER TABLE user_credits ENABLE ALWAYS TRIGGER credit_migration_block_writes;
             UPDATE credit_migration.write_block SET blocked = true",
        )
        .await
        .unwrap();
        let message = m.reason("WritesRefused").await;
        assert!(message.contains("no window is open") && message.contains("next:"), "{message}");
        root.batch_execute("UPDATE credit_migration.write_block SET blocked = false").await.unwrap();
        m.until("RollbackReady", |s| condition(s, "RollbackReady") == "True Switchable").await;
    })
    .await;
}

#[tokio::test]
async fn a_quota_without_room_is_named_before_the_window() {
    e2e("quota", Setup::default(), |world| async move {
        let m = world.migrate("simplify", json!({})).await;
        m.phase(Phase::AwaitingApproval).await;
        // No task is due before the approvals.
        world.quota("tight", "requests.memory", "1Mi").await;
        let message = m.reason("QuotaExceeded").await;
        assert!(message.contains("ResourceQuota tight") && message.contains("hard is 1Mi"), "{message}");
        refused(&m, "QuotaExceeded", "requests.memory").await;
        world.api::<ResourceQuota>().delete("tight", &DeleteParams::default()).await.unwrap();
        m.approve().await;
        m.completed().await;
        m.assert_new().await;
    })
    .await;
}

#[tokio::test]
async fn another_application_than_the_approved_one_is_approved_again() {
    e2e("redeployed", Setup::default(), |world| async move {
        let m = world.migrate("simplify", json!({})).await;
        m.phase(Phase::AwaitingApproval).await;
        let digest = m.approve_absent().await;
        m.step(Step::Schedule).await;
        let template = json!({"metadata": {"annotations": {"deployed": "meanwhile"}}});
        world.patch::<Deployment>(APP, json!({"spec": {"template": template}})).await;
        m.until("another digest", |s| s.plan.as_ref().is_some_and(|p| p.digest.as_ref() != Some(&digest))).await;
        m.event("ApplicationChanged", APP).await;
        m.until("no approval", |s| s.approvals.as_deref() == Some("0/2")).await;
        m.approve().await;
        m.completed().await;
        m.assert_new().await;
    })
    .await;
}

/// The application's pods.
async fn pods(world: &World) -> Vec<Pod> {
    let selector = world.api::<Deployment>().get(APP).await.unwrap().spec.unwrap().selector;
    let selector = Selector::try_from(selector).unwrap();
    world.api::<Pod>().list(&ListParams::default().labels_from(&selector)).await.unwrap().items
}

/// Their names, in order.
async fn pod_names(world: &World) -> Vec<String> {
    let mut names: Vec<String> = pods(world).await.iter().map(ResourceExt::name_any).collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_deployment_paused_inside_the_window_is_back_at_once() {
    let setup = Setup { up: Latch::Migrate.up(), ..Setup::default() };
    e2e("paused-inside", setup, |world| async move {
        let m = world.migrate("simplify", json!({"window": {"maxDuration": "10m"}})).await;
        let closed = world.db.close(Latch::Migrate).await;
        m.approve().await;
        world.db.sql_waits(Latch::Migrate).await;
        let before = pod_names(&world).await;
        world.patch::<Deployment>(APP, json!({"spec": {"paused": true}})).await;
        drop(closed);
        m.switched().await;
        eventually("the flag", async || match world.flag().await.as_str() {
            "v2" => Ok(()),
            other => Err(other.to_owned()),
        })
        .await;
        m.decide(APPROVERS[0], DecisionKind::Rollback, None).await.unwrap();
        // Paused as it is: no pod was started since, so there is none to replace.
        m.phase(Phase::RolledBack).await;
        m.assert_old("up,down").await;
        assert_eq!(pod_names(&world).await, before);
        let deployment = world.api::<Deployment>().get(APP).await.unwrap();
        assert_eq!(deployment.spec.unwrap().paused, Some(true));
        assert_eq!(world.running().await, "v1");
    })
    .await;
}

/// The window has ended long before its deadline, because of its new pods, and the old ones have stayed.
async fn rolled_back_early(m: &Migration, before: &[String], why: &str) {
    let status = m.phase(Phase::RolledBack).await;
    let rollback = status.rollback.unwrap();
    assert_eq!(rollback.cause, "RolloutFailed", "{}", rollback.message);
    assert!(rollback.message.contains(why), "{}", rollback.message);
    m.assert_old("up,down").await;
    assert_eq!(pod_names(&m.world).await, before, "the pods of the old version were never replaced");
}

#[tokio::test]
async fn a_new_version_that_crashes_ends_the_window_early() {
    e2e("crashing", Setup::default(), |world| async move {
        // The application ends at once with a version that it does not know; a probe would find that out before.
        let application = json!({"flag": {"to": "v9"}, "versionProbe": null});
        let patch = json!({"window": {"maxDuration": "10m"}, "application": application});
        let m = world.migrate("simplify", patch).await;
        m.phase(Phase::AwaitingApproval).await;
        let before = pod_names(&world).await;
        m.approve().await;
        rolled_back_early(&m, &before, "CrashLoopBackOff").await;
    })
    .await;
}

#[tokio::test]
async fn an_image_that_cannot_be_pulled_ends_the_window_early() {
    e2e("no-image", Setup::default(), |world| async move {
        let image = tag_image(APP, &world.namespace);
        let container = json!({"name": APP, "image": image});
        let template = json!({"spec": {"template": {"spec": {"containers": [container]}}}});
        let deployments = world.api::<Deployment>();
        deployments.patch(APP, &PatchParams::default(), &Patch::Strategic(&template)).await.unwrap();
        let m = world.migrate("simplify", json!({"window": {"maxDuration": "10m"}})).await;
        m.phase(Phase::AwaitingApproval).await;
        let before = eventually("pods of that image alone", async || {
            let images = pods(&world).await.into_iter().map(|pod| (pod.name_any(), pod.spec.unwrap().containers));
            let (names, images): (Vec<_>, Vec<_>) = images.map(|(name, c)| (name, c[0].image.clone())).unzip();
            if images == [Some(image.clone())] { Ok(names) } else { Err(format!("{images:?}")) }
        })
        .await;
        remove_image(&image);
        m.approve().await;
        rolled_back_early(&m, &before, "ImagePull").await;
    })
    .await;
}

#[tokio::test]
async fn pods_that_are_refused_end_the_window_early() {
    let setup = Setup { up: Latch::Migrate.up(), ..Setup::default() };
    e2e("refused-pods", setup, |world| async move {
        let m = world.migrate("simplify", json!({"window": {"maxDuration": "10m"}})).await;
        let closed = world.db.close(Latch::Migrate).await;
        m.approve().await;
        world.db.sql_waits(Latch::Migrate).await;
        let before = pod_names(&world).await;
        // Less than the application's present pod has requested already.
        world.quota("tight", "requests.memory", "1Mi").await;
        drop(closed);
        rolled_back_early(&m, &before, "exceeded quota: tight").await;
        world.api::<ResourceQuota>().delete("tight", &DeleteParams::default()).await.unwrap();
        m.cleaned().await;
    })
    .await;
}

/// The dry runs are accepted, so that nothing is known before writes are blocked.
#[tokio::test]
async fn a_rollback_whose_switch_is_refused_is_given_up_at_the_deadline() {
    e2e("given-up", Setup::default(), |world| async move {
        // Enough for the window of the new version, and short enough to wait for in that of the rollback.
        let spec = json!({"window": {"maxDuration": "90s"}, "monitoring": {"duration": LASTS}});
        let m = world.migrate("simplify", spec).await;
        m.approve().await;
        m.phase(Phase::Monitoring).await;
        let operator = "request.userInfo.username.startsWith('system:serviceaccount:')";
        let allowed = format!("object.data['{FLAG}'] == 'v2' || (request.dryRun && {operator})");
        frozen_flag_unless(&world, &allowed, async {
            let dry_run = PatchParams { dry_run: true, ..PatchParams::default() };
            let old = Patch::Merge(json!({"data": {FLAG: "v1"}}));
            eventually("the policy", async || match world.api::<ConfigMap>().patch(APP, &dry_run, &old).await {
                Err(refusal) if refusal.to_string().contains("the flag is frozen") => Ok(()),
                other => Err(format!("{other:?}")),
            })
            .await;
            m.decide(APPROVERS[0], DecisionKind::Rollback, None).await.unwrap();
            let status = m.until("RollbackFailed", |s| s.phase == Some(Phase::RollbackFailed)).await;
            let (reason, message) = ready(&status);
            assert_eq!((reason.as_str(), status.writes), ("RollbackNotStarted", Some(Writes::Open)), "{message}");
            for part in ["could not be switched back to v1 within 90s", "writes are open again", "next: kubectl"] {
                assert!(message.contains(part), "{message} lacks {part}");
            }
            m.event("EffectRefused", "the flag is frozen").await;
            m.event("RollbackNotStarted", "").await;
            assert_eq!(world.db.ledger().await, "up");
            m.assert_new().await;
        })
        .await;
        m.decide(APPROVERS[0], DecisionKind::Rollback, None).await.unwrap();
        m.until("RolledBack", |s| s.phase == Some(Phase::RolledBack)).await;
        m.assert_old("up,down").await;
        assert_eq!(world.running().await, "v1");
    })
    .await;
}

#[tokio::test]
async fn a_rollback_that_would_wait_weeks_later_is_named_and_not_ordered() {
    e2e("observing", Setup::default(), |world| async move {
        let m =
            world.migrate("simplify", json!({"followUps": {"day": {"after": LASTS}, "week": {"after": "48h"}}})).await;
        m.approve().await;
        m.phase(Phase::Observing).await;
        m.until("RollbackReady", |s| condition(s, "RollbackReady").starts_with("True")).await;
        world.patch::<ConfigMap>(APP, json!({"immutable": true})).await;
        m.until("RollbackReady", |s| condition(s, "RollbackReady") == "False FlagConfigMapImmutable").await;
        m.event("FlagConfigMapImmutable", APP).await;
        let plugin = Command::new(env!("CARGO_BIN_EXE_kubectl-creditmigration"))
            .args(["rollback", &m.name, "-n", &world.namespace, "--confirm", "--reason", "e2e"])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&plugin.stderr).into_owned();
        for part in ["the rollback would not work now, and is not ordered: FlagConfigMapImmutable", "--force"] {
            assert!(!plugin.status.success() && said.contains(part), "{said} lacks {part}");
        }
        let decisions = world.api::<MigrationDecision>().list(&ListParams::default()).await.unwrap();
        assert!(decisions.iter().all(|d| d.spec.decision != DecisionKind::Rollback), "a rollback was ordered");
        let status = m.status().await;
        assert_eq!((status.phase, status.writes), (Some(Phase::Observing), Some(Writes::Open)));
        m.assert_new().await;
        create_flag_again(&world).await;
        m.until("RollbackReady", |s| condition(s, "RollbackReady").starts_with("True")).await;
    })
    .await;
}
