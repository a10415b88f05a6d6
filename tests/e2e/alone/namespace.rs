//! The namespace goes while the window waits for the switch. The operator is away: it would order the switch at once, and
//! from there on nobody goes back alone.

use std::time::Duration;

use k8s_openapi::api::{apps::v1::Deployment, core::v1::Namespace};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::json;

use credit_migration::api::{CreditMigration, Task, WindowState};

use crate::{
    cluster::{SYSTEM, eventually, leader},
    harness::{Setup, e2e, slow},
    migration::PATIENCE,
};

#[tokio::test]
async fn deleted_after_the_commit() {
    let setup = Setup { exclusive: true, up: slow(10), ..Setup::default() };
    e2e("deleted-namespace", setup, |world| async move {
        let before = world.db.balances().await;
        let m = world.migrate("simplify", json!({"window": {"maxDuration": "300s"}})).await;
        m.approve().await;
        m.window(Task::Window, "the blocked gate", |p| p.state == WindowState::Blocked).await;
        let operator: Api<Deployment> = Api::namespaced(world.client.clone(), SYSTEM);
        let scale = async |replicas: i32| {
            let patch = json!({"spec": {"replicas": replicas}});
            operator.patch("credit-migration-operator", &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
        };
        scale(0).await;
        let migrated =
            std::panic::AssertUnwindSafe(m.window(Task::Window, "the commit", |p| p.state == WindowState::Migrated));
        let migrated = futures::FutureExt::catch_unwind(migrated).await;

        let namespaces: Api<Namespace> = Api::all(world.client.clone());
        namespaces.delete(&world.namespace, &DeleteParams::default()).await.unwrap();
        let ended = async || {
            let ledger = world.db.ledger().await;
            if ledger == "up,down" && !world.db.gate_closed().await { Ok(()) } else { Err(ledger) }
        };
        let reverted = std::panic::AssertUnwindSafe(eventually("the way back", PATIENCE, ended));
        let reverted = futures::FutureExt::catch_unwind(reverted).await;
        // Before anything can fail: the other tests need an operator.
        scale(2).await;
        eventually("a leader", Duration::from_secs(60), async || {
            leader(&world.client).await.ok_or("nobody leads".to_owned())
        })
        .await;
        assert!(migrated.is_ok() && reverted.is_ok());
        assert_eq!(world.db.schema().await, "v1");
        world.db.writable().await.unwrap();
        assert_eq!(world.db.balances().await, before);

        // The finalizer keeps the namespace: no pod can be made for what is left to do (docs/emergency.md).
        // Not before it is being deleted itself, which comes after the pods: until then the operator puts the finalizer back.
        eventually("its deletion", PATIENCE, async || {
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
