//! The namespace is deleted while the window waits for the switch. The operator is stopped: it would order the switch
//! at once, and from then on the runner does not roll back by itself.

use std::panic::AssertUnwindSafe;

use futures::FutureExt;
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Namespace, Pod},
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde_json::json;

use credit_migration::api::{CreditMigration, Task, WindowState};

use crate::{
    cluster::{SYSTEM, eventually, some_leader},
    harness::{Setup, e2e},
    latch::Latch,
};

#[tokio::test]
async fn deleted_after_the_commit() {
    let setup = Setup { exclusive: true, up: Latch::Migrate.up(), ..Setup::default() };
    e2e("deleted-namespace", setup, |world| async move {
        let before = world.db.balances().await;
        let m = world.migrate("simplify", json!({})).await;
        let closed = world.db.close(Latch::Migrate).await;
        m.approve().await;
        m.window(Task::Window, "blocked writes", |p| p.state == WindowState::Blocked).await;
        let operator: Api<Deployment> = Api::namespaced(world.client.clone(), SYSTEM);
        let scale = async |replicas: i32| {
            let patch = json!({"spec": {"replicas": replicas}});
            operator.patch("credit-migration-operator", &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
        };
        scale(0).await;
        let away = async {
            let pods: Api<Pod> = Api::namespaced(world.client.clone(), SYSTEM);
            eventually("the end of the operator", async || {
                let left = pods.list(&ListParams::default()).await.map_err(|e| e.to_string())?.items.len();
                if left == 0 { Ok(()) } else { Err(format!("{left} pods")) }
            })
            .await;
            drop(closed);
            m.window(Task::Window, "the commit", |p| p.state == WindowState::Migrated).await;

            let namespaces: Api<Namespace> = Api::all(world.client.clone());
            namespaces.delete(&world.namespace, &DeleteParams::default()).await.unwrap();
            eventually("the rollback", async || {
                let ledger = world.db.ledger().await;
                if ledger == "up,down" && !world.db.writes_blocked().await { Ok(()) } else { Err(ledger) }
            })
            .await;
        };
        let away = AssertUnwindSafe(away).catch_unwind().await;
        // First of all restore the operator, which the other tests need.
        scale(2).await;
        some_leader(&world.client).await;
        away.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        assert_eq!(world.db.schema().await, "v1");
        world.db.writable().await.unwrap();
        assert_eq!(world.db.balances().await, before);

        // The finalizer blocks the deletion of the namespace: no pod can be created for the remaining steps
        // (docs/emergency.md). It is removed only once the migration is being deleted, after the pods: until then the
        // operator would add it again.
        eventually("its deletion", async || {
            m.get().await.metadata.deletion_timestamp.map(drop).ok_or("not yet".to_owned())
        })
        .await;
        let free = json!({"metadata": {"finalizers": null}});
        let migrations = world.api::<CreditMigration>();
        migrations.patch(&m.get().await.name_any(), &PatchParams::default(), &Patch::Merge(&free)).await.unwrap();
        m.gone().await;
    })
    .await;
}
