//! Window pods that are killed, and one that is started twice: the SQL takes effect once.

use credit_migration::api::{DecisionKind, Phase, Task, WindowState};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt, api::PostParams};
use serde_json::{Value, json};

use super::{
    cluster::{self, eventually},
    harness::{APPROVERS, LASTS, Setup, World, e2e},
    latch::Latch,
};

/// Sends SIGKILL to a run's process as soon as there is one.
async fn kill(world: &World, run: &str) {
    eventually(&format!("a process of {run}"), async || {
        let killed = cluster::kill(&[("MIGRATION_RUN", run), ("MIGRATION_NAMESPACE", &world.namespace)], "runner");
        if killed > 0 { Ok(()) } else { Err("none".into()) }
    })
    .await;
}

/// A world in which the up SQL waits for [`Latch::Migrate`].
fn latched() -> Setup {
    Setup { up: Latch::Migrate.up(), ..Setup::default() }
}

#[tokio::test]
async fn killed_before_its_transaction() {
    e2e("killed-before", latched(), |world| async move {
        let before = world.db.balances().await;
        let m = world.migrate("simplify", json!({})).await;
        let closed = world.db.close(Latch::Migrate).await;
        m.approve().await;
        kill(&world, &m.run_name(Task::Window)).await;
        assert_eq!(world.db.ledger().await, "");
        drop(closed);
        m.completed().await;
        m.assert_new().await;
        assert_eq!(world.db.balances().await, before);
        m.cleaned().await;
    })
    .await;
}

#[tokio::test]
async fn killed_during_its_transaction() {
    e2e("killed-during", latched(), |world| async move {
        let before = world.db.balances().await;
        let m = world.migrate("simplify", json!({})).await;
        let closed = world.db.close(Latch::Migrate).await;
        m.approve().await;
        world.db.sql_waits(Latch::Migrate).await;
        kill(&world, &m.run_name(Task::Window)).await;
        assert_eq!(world.db.ledger().await, "");
        // The server may continue the statement of the killed client; it must not take effect.
        drop(closed);
        m.completed().await;
        m.assert_new().await;
        assert_eq!(world.db.balances().await, before);
        m.cleaned().await;
    })
    .await;
}

#[tokio::test]
async fn deleted_after_its_transaction() {
    e2e("killed-after", Setup::default(), |world| async move {
        let before = world.db.balances().await;
        world.create_probe().await;
        let m = world.migrate("simplify", World::own_probe()).await;
        m.phase(Phase::AwaitingApproval).await;
        world.answer_probe(false).await;
        m.approve().await;
        eventually("the commit", async || match world.db.ledger().await.as_str() {
            "up" => Ok(()),
            other => Err(format!("ledger: {other:?}")),
        })
        .await;
        let pods = world.pods_of(&m.run_name(Task::Window)).await;
        assert!(world.db.writes_blocked().await);
        cluster::delete_pod(&world.client, &world.namespace, &pods[0].name_any()).await;
        world.answer_probe(true).await;
        m.completed().await;
        m.assert_new().await;
        assert_eq!(world.db.balances().await, before);
        m.cleaned().await;
    })
    .await;
}

#[tokio::test]
async fn killed_during_rollback() {
    e2e("killed-back", Setup::default(), |world| async move {
        world.create_probe().await;
        let mut spec = World::own_probe();
        spec["monitoring"] = json!({"duration": LASTS});
        let m = world.migrate("simplify", spec).await;
        m.approve().await;
        m.phase(Phase::Monitoring).await;
        let balance = world.deduct(1, 1).await;
        world.answer_probe(false).await;
        m.decide(APPROVERS[0], DecisionKind::Rollback, None).await.unwrap();
        m.window(Task::RollbackWindow, "blocked writes", |p| p.state >= WindowState::Blocked).await;
        kill(&world, &m.run_name(Task::RollbackWindow)).await;
        world.answer_probe(true).await;
        m.phase(Phase::RolledBack).await;
        m.assert_old("up,down").await;
        assert_eq!(world.running().await, "v1");
        assert_eq!(world.db.balances().await[&1], balance);
        m.cleaned().await;
    })
    .await;
}

/// Creates a copy of a pod that the Job does not know, as a cluster may start one while the first still runs. Returns
/// its name.
async fn twin(world: &World, pod: &Pod) -> String {
    let copy = serde_json::to_value(pod).unwrap();
    let mut labels = copy["metadata"]["labels"].as_object().unwrap().clone();
    labels.retain(|name, _| !name.contains("job-name") && !name.contains("controller-uid"));
    // Named like the Job controller's pods: the admission policy lets no other pod report on the run.
    let name = format!("{}-twin2", pod.name_any().rsplit_once('-').unwrap().0);
    let env: Vec<Value> = copy["spec"]["containers"][0]["env"].as_array().unwrap().clone();
    assert!(env.iter().any(|e| e["name"] == "MIGRATION_RUN"), "{env:?}");
    let twin = json!({"metadata": {"name": name, "labels": labels}, "spec": copy["spec"]});
    let mut twin: Pod = serde_json::from_value(twin).unwrap();
    let spec = twin.spec.as_mut().unwrap();
    spec.node_name = None;
    // The API server mounts the token and chooses the volume's name.
    spec.volumes.as_mut().unwrap().retain(|v| !v.name.starts_with("kube-api-access"));
    for mount in spec.containers.iter_mut().filter_map(|c| c.volume_mounts.as_mut()) {
        mount.retain(|m| !m.name.starts_with("kube-api-access"));
    }
    // No one else creates a runner's pod.
    let controller = cluster::client(Some("system:serviceaccount:kube-system:job-controller")).await;
    let pods: Api<Pod> = Api::namespaced(controller, &world.namespace);
    pods.create(&PostParams::default(), &twin).await.unwrap();
    name
}

#[tokio::test]
async fn started_twice() {
    e2e("twice", latched(), |world| async move {
        let before = world.db.balances().await;
        let m = world.migrate("simplify", json!({})).await;
        let closed = world.db.close(Latch::Migrate).await;
        m.approve().await;
        world.db.sql_waits(Latch::Migrate).await;
        let pods = world.pods_of(&m.run_name(Task::Window)).await;
        let name = twin(&world, &pods[0]).await;
        eventually("the twin", async || {
            let pod = world.api::<Pod>().get(&name).await.map_err(|e| e.to_string())?;
            let phase = pod.status.and_then(|s| s.phase).unwrap_or_default();
            if phase == "Running" { Ok(()) } else { Err(phase) }
        })
        .await;
        assert!(world.db.writes_blocked().await);
        drop(closed);
        m.completed().await;
        m.assert_new().await;
        assert_eq!(world.db.balances().await, before);
        // It waited for the first pod, found the window finished, and reported that.
        eventually("the twin's end", async || {
            let pod = world.api::<Pod>().get(&name).await.map_err(|e| e.to_string())?;
            let phase = pod.status.and_then(|s| s.phase).unwrap_or_default();
            if phase == "Succeeded" { Ok(()) } else { Err(phase) }
        })
        .await;
        let progress = m.run(Task::Window).await.window.unwrap();
        assert_eq!(progress.state, WindowState::Unblocked);
        assert_eq!(progress.comparison.map(|c| c.unexplained), Some(0), "the twin's report replaced the evidence");
        m.cleaned().await;
        m.assert_new().await;
    })
    .await;
}
