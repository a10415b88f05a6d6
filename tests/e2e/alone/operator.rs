//! The operator dies, or is upgraded: another replica leads, and the migration goes on as if nothing had been.

use std::{
    collections::BTreeSet,
    panic::AssertUnwindSafe,
    time::{Duration, Instant},
};

use credit_migration::{
    api::{DecisionKind, Phase, Step, StepState, Task},
    machine::steps::FORWARD,
};
use futures::FutureExt;
use serde_json::json;

use crate::{
    cluster::{self, delete_pod, eventually, kill_operator, leader, other_leader},
    harness::{APPROVERS, Setup, e2e, slow},
    migration::{Migration, PATIENCE},
};

#[tokio::test]
async fn killed_in_each_step() {
    let setup = Setup { exclusive: true, up: slow(3), ..Setup::default() };
    e2e("operator-killed", setup, |world| async move {
        let before = world.db.balances().await;
        let stage = |check: &str| json!({"duration": "8s", "checks": [{"name": check, "sql": {"query": "SELECT 0"}, "interval": "1s", "max": "0"}]});
        let spec = json!({"window": {"maxDuration": "120s"}, "validation": stage("first"), "monitoring": stage("second")});
        let m = world.migrate("simplify", spec).await;
        let (mut killed, mut takeovers) = (BTreeSet::new(), vec![]);
        let begun = Instant::now();
        loop {
            assert!(begun.elapsed() < Duration::from_secs(300), "killed in {killed:?}: {:?}", m.status().await.step);
            let status = m.status().await;
            let cleanup = status.steps.iter().find(|x| x.name == Step::Cleanup).map(|x| x.state);
            if cleanup == Some(StepState::Succeeded) {
                break;
            }
            let Some(step) = cleanup.map(|_| Step::Cleanup).or(status.step) else { continue };
            if killed.insert(step) {
                let old = leader(&world.client).await.unwrap();
                let at = Instant::now();
                kill_operator(&world.client, &old).await;
                other_leader(&world.client, &old).await;
                takeovers.push(at.elapsed().as_secs_f64());
                match step {
                    Step::Approve => m.approve().await,
                    Step::Decide => drop(m.completed().await),
                    _ => {}
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        println!("killed in {killed:?}; take-over after {takeovers:.1?} s");
        let status = m.phase(Phase::Completed).await;
        m.assert_new().await;
        assert_eq!(world.db.balances().await, before);
        assert_eq!(world.db.guards().await, 0);
        // Backup is a part of Baseline's task, VerifyMigration comes with Migrate, Schedule with the last who is present: none
        // need be seen on its own. Two steps are not configured.
        let unseen = |s: &Step| {
            matches!(
                s,
                Step::Backup | Step::VerifyMigration | Step::Schedule | Step::NotifyTeam | Step::CodeBackup
            )
        };
        let seen = FORWARD.iter().map(|r| r.step).filter(|s| !unseen(s));
        let missed: Vec<Step> = seen.chain([Step::Cleanup]).filter(|s| !killed.contains(s)).collect();
        assert!(missed.is_empty(), "not killed in {missed:?}");
        for x in &status.steps {
            let skipped = matches!(x.name, Step::NotifyTeam | Step::CodeBackup);
            let state = if skipped { StepState::Skipped } else { StepState::Succeeded };
            assert_eq!((x.state, x.attempt), (state, 1), "{:?}", x.name);
        }
        let slowest = takeovers.iter().copied().fold(0.0, f64::max);
        assert!(slowest < 20.0, "a take-over took {slowest:.1} s");
    })
    .await;
}

#[tokio::test]
async fn a_leader_that_goes_hands_over_at_once() {
    e2e("handover", Setup { exclusive: true, replicas: 0, ..Setup::default() }, |world| async move {
        let m = world.migrate("simplify", json!({})).await;
        let old = leader(&world.client).await.unwrap();
        let given = cluster::lease(&world.client).await.unwrap();
        // As a drain or an upgrade does: with grace.
        let pods: kube::Api<k8s_openapi::api::core::v1::Pod> =
            kube::Api::namespaced(world.client.clone(), cluster::SYSTEM);
        pods.delete(&old, &Default::default()).await.unwrap();
        other_leader(&world.client, &old).await;
        // Taken before it ran out: it was given back, however slow this machine is.
        let taken = cluster::lease(&world.client).await.unwrap();
        assert_eq!(taken.lease_transitions, given.lease_transitions.map(|n| n + 1));
        let lasts = jiff::SignedDuration::from_secs(given.lease_duration_seconds.unwrap().into());
        assert!(
            taken.acquire_time.as_ref().unwrap().0 < given.renew_time.as_ref().unwrap().0 + lasts,
            "{given:?}, {taken:?}"
        );
        m.phase(Phase::AwaitingApproval).await;
        // Both are there again, and one leads.
        eventually("two replicas", PATIENCE, async || {
            let label = kube::api::ListParams::default().labels("app.kubernetes.io/name=credit-migration-operator");
            let n = pods.list(&label).await.map_err(|e| e.to_string())?.items.len();
            if n == 2 { Ok(()) } else { Err(format!("{n} pods")) }
        })
        .await;
        let standby = pods.list(&Default::default()).await.unwrap().items;
        let now = leader(&world.client).await.unwrap();
        let other = standby.iter().filter_map(|p| p.metadata.name.clone()).find(|n| *n != now).unwrap();
        // The loss of a standby is no loss.
        delete_pod(&world.client, cluster::SYSTEM, &other).await;
        assert_eq!(leader(&world.client).await.as_deref(), Some(now.as_str()));
    })
    .await;
}

/// Image of a task's pod.
async fn image(m: &Migration, task: Task) -> String {
    eventually(&format!("a pod of {task:?}"), PATIENCE, async || {
        let pods = m.world.pods_of(&m.run_name(task)).await;
        let image = pods.into_iter().find_map(|pod| pod.spec?.containers.into_iter().next()?.image);
        image.ok_or_else(|| "none".to_owned())
    })
    .await
}

#[tokio::test]
async fn upgraded_with_a_migration_under_way() {
    let setup = Setup { exclusive: true, up: slow(8), ..Setup::default() };
    e2e("operator-upgraded", setup, |world| async move {
        for tag in ["second", "third"] {
            cluster::tag_operator(tag);
        }
        let balances = world.db.balances().await;
        let m = world.migrate("simplify", json!({"window": {"maxDuration": "120s"}})).await;
        m.phase(Phase::AwaitingApproval).await;
        let digest = m.digest().await;
        m.decide(APPROVERS[0], DecisionKind::Approve, Some(&digest)).await.unwrap();
        m.until("the first approval", PATIENCE, |status| status.approvals.as_deref() == Some("1/2")).await;
        let upgraded = async {
            tokio::task::spawn_blocking(|| cluster::upgrade_operator("second")).await.unwrap();
            // What people approved is still the plan, and the words on it count.
            assert_eq!(m.digest().await, digest);
            m.decide(APPROVERS[1], DecisionKind::Approve, Some(&digest)).await.unwrap();
            for person in APPROVERS {
                m.decide(person, DecisionKind::Ready, Some(&digest)).await.unwrap();
            }
            m.step(Step::Migrate).await;
            let window = image(&m, Task::Window).await;
            tokio::task::spawn_blocking(|| cluster::upgrade_operator("third")).await.unwrap();
            let watched = image(&m, Task::Validate).await;
            // The image that was approved in the window, that of the present operator after it.
            assert!(window.ends_with(":dev") && watched.ends_with(":third"), "{window}, {watched}");
            m.completed().await;
            m.cleaned().await;
            for step in m.status().await.steps.iter().filter(|step| step.state != StepState::Skipped) {
                assert_eq!((step.state, step.attempt), (StepState::Succeeded, 1), "{:?}", step.name);
            }
        };
        let upgraded = AssertUnwindSafe(upgraded).catch_unwind().await;
        // Before anything can fail: the other tests have the image as built.
        tokio::task::spawn_blocking(|| cluster::upgrade_operator("dev")).await.unwrap();
        upgraded.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        m.assert_new().await;
        assert_eq!(world.db.balances().await, balances);
    })
    .await;
}
