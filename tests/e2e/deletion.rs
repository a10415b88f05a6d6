//! Deletion in each phase: afterwards writes are unblocked, the triggers are removed, and the object is gone. From the
//! start of the window to the decision only a deleted namespace deletes; others learn which decision comes first.

use credit_migration::api::{Phase, Step};
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, api::DeleteParams};
use serde_json::json;

use super::{
    cluster::{self, eventually},
    harness::{LASTS, Setup, World, e2e},
    latch::Latch,
    migration::Migration,
};

/// A deletion is refused, and the refusal names the decision to make first.
async fn refused(m: &Migration, verb: &str) {
    let why = m.try_delete().await.expect_err("it was deleted without a decision").to_string();
    assert!(why.contains("a deletion would decide") && why.contains(verb), "{why}");
}

#[tokio::test]
async fn before_the_window() {
    e2e("deleted-early", Setup { replicas: 0, ..Setup::default() }, |world| async move {
        let before = world.db.fingerprint().await;
        for (n, wanted) in
            [Step::Preflight, Step::Baseline, Step::VerifyBackup, Step::Rehearse, Step::Approve].into_iter().enumerate()
        {
            let m = world.migrate(&format!("simplify-{n}"), json!({})).await;
            m.until(&format!("{wanted:?}"), |s| s.step.is_some_and(|now| now >= wanted)).await;
            let labels = format!("namespace=\"{}\",name=\"{}\"", world.namespace, m.name);
            eventually("its metrics", async || {
                let exposed = cluster::metrics(&world.client).await?;
                if exposed.contains(&labels) { Ok(()) } else { Err(exposed) }
            })
            .await;
            m.delete().await;
            m.gone().await;
            assert_eq!(world.db.triggers().await, 0, "triggers are left after deletion in {wanted:?}");
            assert_eq!(world.db.fingerprint().await, before, "deleted in {wanted:?}");
            let copies = format!("SELECT count(*) FROM pg_database WHERE datname = '{}_rehearsal'", world.db.name);
            assert_eq!(world.db.count(&copies).await, 0, "a copy is left after deletion in {wanted:?}");
        }
        world.db.writable().await.unwrap();
        // Otherwise an alert on a deleted migration would never end.
        let series = format!("namespace=\"{}\"", world.namespace);
        eventually("its metrics to go", async || {
            let exposed = cluster::metrics(&world.client).await?;
            exposed.lines().find(|l| l.contains(&series)).map_or(Ok(()), |l| Err(l.to_owned()))
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn with_its_namespace() {
    e2e("deleted-with", Setup { replicas: 0, ..Setup::default() }, |world| async move {
        let m = world.migrate("simplify", json!({})).await;
        m.phase(Phase::AwaitingApproval).await;
        let namespaces: Api<Namespace> = Api::all(world.client.clone());
        namespaces.delete(&world.namespace, &DeleteParams::default()).await.unwrap();
        // No Cleanup can start there: the migration goes, the triggers stay, and refuse nothing.
        m.gone().await;
        eventually("the namespace to go", async || match namespaces.get_opt(&world.namespace).await {
            Ok(None) => Ok(()),
            Ok(Some(namespace)) => Err(format!("{:?}", namespace.status)),
            Err(e) => Err(e.to_string()),
        })
        .await;
        assert!(world.db.triggers().await > 0);
        world.db.writable().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn while_the_sql_runs() {
    e2e("deleted-sql", Setup { up: Latch::Migrate.up(), ..Setup::default() }, |world| async move {
        let before = world.db.balances().await;
        let m = world.migrate("simplify", json!({})).await;
        let _closed = world.db.close(Latch::Migrate).await;
        m.approve().await;
        m.step(Step::Migrate).await;
        world.db.sql_waits(Latch::Migrate).await;
        refused(&m, "abort simplify").await;
        m.delete_with_namespace().await;
        m.gone().await;
        // The SQL was cancelled: it still waits for the latch.
        m.assert_old("").await;
        assert_eq!(world.db.triggers().await, 0);
        assert_eq!(world.db.balances().await, before);
        assert_eq!(world.running().await, "v1");
    })
    .await;
}

#[tokio::test]
async fn while_the_application_is_switched() {
    e2e("deleted-switch", Setup::default(), |world| async move {
        let m = world.migrate("simplify", World::never_switched()).await;
        m.approve().await;
        m.switched().await;
        refused(&m, "abort simplify").await;
        m.delete_with_namespace().await;
        m.gone().await;
        m.assert_old("up,down").await;
        assert_eq!(world.db.triggers().await, 0);
        assert_eq!(world.running().await, "v1");
    })
    .await;
}

#[tokio::test]
async fn while_monitoring() {
    e2e("deleted-late", Setup::default(), |world| async move {
        let m = world.migrate("simplify", json!({"monitoring": {"duration": LASTS}})).await;
        m.approve().await;
        m.phase(Phase::Monitoring).await;
        refused(&m, "rollback simplify").await;
        m.delete_with_namespace().await;
        m.gone().await;
        m.assert_new().await;
        assert_eq!(world.db.triggers().await, 0);
    })
    .await;
}
