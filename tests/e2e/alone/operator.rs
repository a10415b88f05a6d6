//! The operator is killed or upgraded: another replica takes over, and the migration continues.

use std::panic::AssertUnwindSafe;

use credit_migration::{
    api::{DecisionKind, Phase, Step, StepState, Task},
    machine::steps::FORWARD,
};
use futures::{FutureExt, StreamExt, TryStreamExt};
use k8s_openapi::api::{coordination::v1::Lease, core::v1::Pod};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, WatchEvent, WatchParams},
};
use serde_json::json;

use crate::{
    cluster::{self, delete_pod, eventually, kill_operator, leader, other_leader, some_leader},
    harness::{APPROVERS, Setup, World, e2e},
    latch::Latch,
    migration::Migration,
};

/// Each step lasts until the leader was killed in it: by a latch, without its Job, or without a decision.
#[tokio::test]
async fn killed_in_each_step() {
    let setup = Setup { exclusive: true, up: Latch::Migrate.up(), ..Setup::default() };
    e2e("operator-killed", setup, |world| async move {
        let db = &world.db;
        let before = db.balances().await;
        world.create_probe().await;
        world.hold_jobs().await;
        let mut spec = World::own_probe();
        (spec["validation"], spec["monitoring"]) = (Latch::Validate.stage(), Latch::Monitor.stage());
        let mut killing = Killing { m: world.migrate("simplify", spec).await, steps: vec![] };
        for (step, task) in [
            (Step::Preflight, Task::Preflight),
            (Step::Baseline, Task::Backup),
            (Step::VerifyBackup, Task::VerifyBackup),
            (Step::ExportKeyUsers, Task::ExportKeyUsers),
            (Step::Rehearse, Task::Rehearse),
        ] {
            killing.kill_before(step, task).await;
        }
        killing.kill_in(Step::Approve).await;
        world.answer_probe(false).await;
        let sql = db.close(Latch::Migrate).await;
        let [validation, monitoring] = [db.close(Latch::Validate).await, db.close(Latch::Monitor).await];
        killing.m.approve().await;
        killing.kill_before(Step::BlockWrites, Task::Window).await;
        killing.kill_in(Step::Migrate).await;
        // The lock is granted when the SQL has committed, before the comparison of all balances can start.
        db.sql_waits(Latch::Migrate).await;
        let tables = db.lock_balances().await;
        drop(sql);
        killing.kill_in(Step::SwitchApplication).await;
        world.answer_probe(true).await;
        killing.kill_in(Step::UnblockWrites).await;
        drop(tables);
        killing.kill_before(Step::Validate, Task::Validate).await;
        drop(validation);
        // Jobs that are removed must leave no room for others: Validate's now, Monitor's in DayCheck.
        killing.kill_before(Step::Monitor, Task::Monitor).await;
        world.has_job(&killing.m.run_name(Task::Validate), false).await;
        world.limit_jobs(0).await;
        drop(monitoring);
        killing.m.step(Step::DayCheck).await;
        world.has_job(&killing.m.run_name(Task::Monitor), false).await;
        killing.kill_before(Step::DayCheck, Task::DayCheck).await;
        killing.kill_before(Step::WeekReview, Task::WeekReview).await;
        killing.kill_in(Step::Decide).await;
        killing.m.completed().await;
        killing.kill_before(Step::Cleanup, Task::Cleanup).await;

        let Killing { m, steps } = killing;
        m.cleaned().await;
        m.assert_new().await;
        assert_eq!(db.balances().await, before);
        // Backup shares Baseline's task, VerifyMigration ends with Migrate, Schedule with the last `Ready`: none can be
        // prolonged by itself. Two steps are not configured.
        let skipped = |s: &Step| matches!(s, Step::NotifyTeam | Step::CodeBackup);
        let held = |s: &Step| !skipped(s) && !matches!(s, Step::Backup | Step::VerifyMigration | Step::Schedule);
        let wanted: Vec<Step> = FORWARD.iter().map(|r| r.step).filter(held).chain([Step::Cleanup]).collect();
        assert_eq!(steps, wanted);
        for x in &m.status().await.steps {
            let state = if skipped(&x.name) { StepState::Skipped } else { StepState::Succeeded };
            assert_eq!((x.state, x.attempt), (state, 1), "{:?}", x.name);
        }
    })
    .await;
}

/// A migration, and the steps in which the leader was killed.
struct Killing {
    m: Migration,
    steps: Vec<Step>,
}

impl Killing {
    /// Kills the leader in a step whose Job may not start before.
    async fn kill_before(&mut self, step: Step, task: Task) {
        self.kill_in(step).await;
        self.m.world.start_job(&self.m.run_name(task)).await;
    }

    /// Kills the leader in a step that lasts. Another replica takes over in the same step.
    async fn kill_in(&mut self, step: Step) {
        self.m.step(step).await;
        kill_leader(&self.m.world.client).await;
        let status = self.m.status().await;
        let cleanup = status.steps.iter().any(|x| x.name == Step::Cleanup).then_some(Step::Cleanup);
        assert_eq!(cleanup.or(status.step), Some(step));
        self.steps.push(step);
    }
}

/// Kills the leader and waits for the next one.
async fn kill_leader(client: &Client) {
    let old = some_leader(client).await;
    let given = cluster::lease(client).await.unwrap();
    kill_operator(client, &old).await;
    other_leader(client, &old).await;
    let taken = cluster::lease(client).await.unwrap();
    // By the times in the Lease: not before it had expired.
    let silent = taken.acquire_time.unwrap().0.duration_since(given.renew_time.unwrap().0);
    let lasts = jiff::SignedDuration::from_secs(given.lease_duration_seconds.unwrap().into());
    assert!(silent >= lasts, "taken over after {silent:?}");
}

#[tokio::test]
async fn a_terminated_leader_releases_the_lease() {
    e2e("handover", Setup { exclusive: true, replicas: 0, ..Setup::default() }, |world| async move {
        let m = world.migrate("simplify", json!({})).await;
        let old = some_leader(&world.client).await;
        let leases: Api<Lease> = Api::namespaced(world.client.clone(), cluster::SYSTEM);
        let given = leases.get("credit-migration-operator").await.unwrap();
        let of = WatchParams::default().fields("metadata.name=credit-migration-operator");
        let mut records = leases.watch(&of, &given.resource_version().unwrap()).await.unwrap().boxed();
        // With a grace period, as in a drain or an upgrade.
        let pods: Api<Pod> = Api::namespaced(world.client.clone(), cluster::SYSTEM);
        pods.delete(&old, &DeleteParams::default()).await.unwrap();
        // Released, not expired: between the two holders there is a version of the Lease without any.
        let mut holders = vec![];
        let taken = loop {
            let record = tokio::time::timeout(cluster::MAX_WAIT, records.try_next()).await.expect("no other leader");
            let Some(WatchEvent::Modified(lease)) = record.unwrap() else { panic!("the watch ended: {holders:?}") };
            let spec = lease.spec.unwrap();
            holders.push(spec.holder_identity.clone().filter(|holder| !holder.is_empty()));
            if holders.last().is_some_and(|holder| holder.as_ref().is_some_and(|h| *h != old)) {
                break spec;
            }
        };
        assert!(holders.contains(&None), "{holders:?}");
        assert_eq!(taken.lease_transitions, given.spec.unwrap().lease_transitions.map(|n| n + 1));
        m.phase(Phase::AwaitingApproval).await;
        // Two replicas run again, and one leads.
        let replicas = eventually("two replicas", async || {
            let label = ListParams::default().labels("app.kubernetes.io/name=credit-migration-operator");
            let there = pods.list(&label).await.map_err(|e| e.to_string())?.items.into_iter();
            let there =
                there.filter(|p| p.metadata.deletion_timestamp.is_none()).map(|p| p.name_any()).collect::<Vec<_>>();
            if there.len() == 2 { Ok(there) } else { Err(format!("{there:?}")) }
        })
        .await;
        let now = some_leader(&world.client).await;
        let other = replicas.iter().find(|name| **name != now).unwrap();
        // The loss of a standby changes nothing.
        delete_pod(&world.client, cluster::SYSTEM, other).await;
        assert_eq!(leader(&world.client).await.as_deref(), Some(now.as_str()));
    })
    .await;
}

/// Waits for a pod of a task; returns its image.
async fn image(m: &Migration, task: Task) -> String {
    eventually(&format!("a pod of {task:?}"), async || {
        let pods = m.world.pods_of(&m.run_name(task)).await;
        let image = pods.into_iter().find_map(|pod| pod.spec?.containers.into_iter().next()?.image);
        image.ok_or_else(|| "none".to_owned())
    })
    .await
}

#[tokio::test]
async fn upgraded_during_a_migration() {
    let setup = Setup { exclusive: true, up: Latch::Migrate.up(), ..Setup::default() };
    e2e("operator-upgraded", setup, |world| async move {
        for tag in ["second", "third"] {
            cluster::tag_operator(tag);
        }
        let balances = world.db.balances().await;
        let m = world.migrate("simplify", json!({"validation": Latch::Validate.stage()})).await;
        m.phase(Phase::AwaitingApproval).await;
        let [sql, stage] = [world.db.close(Latch::Migrate).await, world.db.close(Latch::Validate).await];
        let digest = m.digest().await;
        m.decide(APPROVERS[0], DecisionKind::Approve, Some(&digest)).await.unwrap();
        m.until("the first approval", |status| status.approvals.as_deref() == Some("1/2")).await;
        let upgraded = async {
            tokio::task::spawn_blocking(|| cluster::upgrade_operator("second")).await.unwrap();
            // The approved plan is unchanged, and decisions on it count.
            assert_eq!(m.digest().await, digest);
            m.decide(APPROVERS[1], DecisionKind::Approve, Some(&digest)).await.unwrap();
            for person in APPROVERS {
                m.decide(person, DecisionKind::Ready, Some(&digest)).await.unwrap();
            }
            m.step(Step::Migrate).await;
            let window = image(&m, Task::Window).await;
            tokio::task::spawn_blocking(|| cluster::upgrade_operator("third")).await.unwrap();
            drop(sql);
            let watched = image(&m, Task::Validate).await;
            drop(stage);
            // The approved image in the window, the current operator's image after it.
            assert!(window.ends_with(":dev") && watched.ends_with(":third"), "{window}, {watched}");
            m.completed().await;
            m.cleaned().await;
            for step in m.status().await.steps.iter().filter(|step| step.state != StepState::Skipped) {
                assert_eq!((step.state, step.attempt), (StepState::Succeeded, 1), "{:?}", step.name);
            }
        };
        let upgraded = AssertUnwindSafe(upgraded).catch_unwind().await;
        // First of all restore the image as built, which the other tests use.
        tokio::task::spawn_blocking(|| cluster::upgrade_operator("dev")).await.unwrap();
        upgraded.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        m.assert_new().await;
        assert_eq!(world.db.balances().await, balances);
    })
    .await;
}
