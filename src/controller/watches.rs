//! When to look: watches on what a migration owns and refers to. Objects are read live by `observe`, so only metadata is watched.

use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::{apps::v1::Deployment, batch::v1::Job, core::v1::ConfigMap};
use kube::{
    Api, Resource, ResourceExt,
    core::{DeserializeGuard, PartialObjectMeta},
    runtime::{
        Controller,
        controller::Config,
        reflector::{ObjectRef, Store},
        watcher,
    },
};
use tracing::debug;

use super::{Context, error_policy, reconcile};
use crate::api::{CreditMigration, MigrationDecision, MigrationRun};

type Guarded = DeserializeGuard<CreditMigration>;

/// Migrations handled at the same time; unbounded costs memory and latency with thousands of objects.
const CONCURRENCY: u16 = 16;

/// Runs the controller until a signal.
pub(super) async fn run(ctx: Arc<Context>) {
    let client = ctx.client.clone();
    let all = watcher::Config::default();
    let controller = Controller::new(Api::<Guarded>::all(client.clone()), all.clone())
        .with_config(Config::default().concurrency(CONCURRENCY));
    let store = controller.store();

    let jobs = watcher::Config::default().labels(super::jobs::MANAGED_SELECTOR);
    let (by_config_map, by_deployment) = (store.clone(), store);
    controller
        .watches(Api::<PartialObjectMeta<MigrationRun>>::all(client.clone()), all.clone(), by_label)
        .watches(Api::<PartialObjectMeta<Job>>::all(client.clone()), jobs, by_label)
        .watches(
            Api::<DeserializeGuard<MigrationDecision>>::all(client.clone()),
            all.clone(),
            |d: DeserializeGuard<MigrationDecision>| {
                let namespace = d.namespace().unwrap_or_default();
                d.0.ok().map(|d| ObjectRef::new(&d.spec.migration).within(&namespace))
            },
        )
        .watches(Api::<PartialObjectMeta<ConfigMap>>::all(client.clone()), all.clone(), move |m| {
            naming(&by_config_map, &m, refers_to_config_map)
        })
        .watches(Api::<PartialObjectMeta<Deployment>>::all(client), all, move |m| {
            naming(&by_deployment, &m, refers_to_deployment)
        })
        .shutdown_on_signal()
        .run(reconcile, error_policy, ctx)
        .for_each(|result| async move {
            if let Err(error) = result {
                debug!(%error, "reconciler");
            }
        })
        .await;
}

/// The migration that a run or Job carries in its label.
fn by_label<K: Resource + Clone>(object: PartialObjectMeta<K>) -> Option<ObjectRef<Guarded>> {
    let meta = &object.metadata;
    let name = meta.labels.as_ref()?.get(super::jobs::MIGRATION_LABEL)?;
    Some(ObjectRef::new(name).within(meta.namespace.as_deref()?))
}

/// Migrations of the object's namespace that name it.
fn naming<K>(
    store: &Store<Guarded>,
    object: &PartialObjectMeta<K>,
    refers: fn(&CreditMigration, &str) -> bool,
) -> Vec<ObjectRef<Guarded>> {
    let (Some(name), namespace) = (object.metadata.name.as_deref(), object.metadata.namespace.as_deref()) else {
        return vec![];
    };
    store
        .state()
        .iter()
        .filter_map(|m| m.0.as_ref().ok())
        .filter(|m| m.metadata.namespace.as_deref() == namespace && refers(m, name))
        .map(|m| ObjectRef::new(&m.name_any()).within(namespace.unwrap_or_default()))
        .collect()
}

fn refers_to_config_map(m: &CreditMigration, name: &str) -> bool {
    let sql = &m.spec.migration;
    [&sql.up.config_map_key_ref, &sql.down.config_map_key_ref, &m.spec.application.flag.config_map_key_ref]
        .iter()
        .any(|r| r.name == name)
}

fn refers_to_deployment(m: &CreditMigration, name: &str) -> bool {
    let checks = m.spec.validation.checks.iter().chain(&m.spec.monitoring.checks).filter_map(|c| c.workload.as_ref());
    m.spec.application.workloads.iter().chain(checks).any(|w| w.name == name)
}

/// Ends with SIGTERM or SIGINT.
pub(super) async fn shutdown() {
    use tokio::signal::unix::{SignalKind, signal};
    match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(mut term), Ok(mut int)) => {
            tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
        }
        // Without handlers the default action ends the process, which is what is wanted.
        _ => std::future::pending().await,
    }
}
