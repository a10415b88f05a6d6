//! When to reconcile: watches on what a migration owns and refers to. `observe` reads the objects live, so only
//! metadata is watched.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::{apps::v1::Deployment, batch::v1::Job, core::v1::ConfigMap};
use kube::{
    Api, Resource, ResourceExt,
    core::{DeserializeGuard, PartialObjectMeta, error_boundary::InvalidObject},
    runtime::{
        Controller, WatchStreamExt,
        controller::{Config, Error},
        reflector::{self, ObjectRef, Store},
        watcher,
    },
};
use tracing::{Instrument, debug, error, error_span, warn};

use super::{Context, apply, metrics::Metrics, reconcile};
use crate::api::{CreditMigration, MigrationDecision, MigrationRun};

type Guarded = DeserializeGuard<CreditMigration>;

/// Reconciliations at the same time; without a limit thousands of objects would cost memory and latency.
const CONCURRENCY: u16 = 16;

/// Runs the controller until a signal.
pub(super) async fn run(ctx: Arc<Context>) {
    let client = ctx.client.clone();
    let all = watcher::Config::default();
    let (store, writer) = reflector::store();
    let (seen, reporting, metrics) = (SeenUids::default(), ctx.clone(), ctx.metrics.clone());
    let triggered = metrics.clone();
    let migrations = reflector::reflector(writer, watcher(Api::<Guarded>::all(client.clone()), all.clone()))
        .applied_objects()
        .inspect_ok(move |m| triggered.queued(&m.namespace().unwrap_or_default(), &m.name_any(), Duration::ZERO));

    let jobs = watcher::Config::default().labels(super::build::MANAGED_SELECTOR);
    let (by_config_map, by_deployment) = (store.clone(), store.clone());
    Controller::for_stream(migrations, store)
        .with_config(Config::default().concurrency(CONCURRENCY))
        .watches(
            Api::<PartialObjectMeta<MigrationRun>>::all(client.clone()),
            all.clone(),
            queued(metrics.clone(), by_label),
        )
        .watches(Api::<PartialObjectMeta<Job>>::all(client.clone()), jobs, queued(metrics.clone(), by_label))
        .watches(
            Api::<DeserializeGuard<MigrationDecision>>::all(client.clone()),
            all.clone(),
            queued(metrics.clone(), move |decision| decided(&reporting, &seen, decision)),
        )
        .watches(
            Api::<PartialObjectMeta<ConfigMap>>::all(client.clone()),
            all.clone(),
            queued(metrics.clone(), move |map| naming(&by_config_map, &map, refers_to_config_map)),
        )
        .watches(
            Api::<PartialObjectMeta<Deployment>>::all(client),
            all,
            queued(metrics.clone(), move |deployment| naming(&by_deployment, &deployment, refers_to_deployment)),
        )
        .shutdown_on_signal()
        .run(reconcile::reconcile, reconcile::error_policy, ctx.clone())
        .for_each(|result| {
            // Deleted: the next reconciliation, at the latest by its timer, does not find it.
            if let Err(Error::ObjectNotFound(gone)) = &result {
                ctx.forget(gone.namespace.as_deref().unwrap_or_default(), &gone.name);
            }
            if let Err(Error::QueueError(error)) = &result {
                metrics.watch_failed(error);
                warn!(%error, "a watch failed; it is retried");
            } else if let Err(error) = result {
                debug!(%error, "reconciler");
            }
            std::future::ready(())
        })
        .await;
}

/// A watch's mapping that records for the metrics what it triggers.
fn queued<K, T: IntoIterator<Item = ObjectRef<Guarded>>>(
    metrics: Arc<Metrics>,
    migrations_of: impl Fn(K) -> T,
) -> impl Fn(K) -> Vec<ObjectRef<Guarded>> {
    move |object| {
        let migrations: Vec<_> = migrations_of(object).into_iter().collect();
        for m in &migrations {
            metrics.queued(m.namespace.as_deref().unwrap_or_default(), &m.name, Duration::ZERO);
        }
        migrations
    }
}

/// The migration that a decision names. A decision that cannot be decoded has no effect, which is reported to its
/// author.
fn decided(
    ctx: &Arc<Context>,
    seen: &SeenUids,
    decision: DeserializeGuard<MigrationDecision>,
) -> Option<ObjectRef<Guarded>> {
    let namespace = decision.namespace().unwrap_or_default();
    match decision.0 {
        Ok(decision) => Some(ObjectRef::new(&decision.spec.migration).within(&namespace)),
        Err(invalid) => {
            if seen.insert(&invalid) {
                // The migration that it names cannot be decoded either.
                let span = error_span!("decision", namespace, decision = invalid.metadata.name.as_deref());
                span.in_scope(|| error!(error = %invalid.error, "cannot decode this MigrationDecision"));
                let ctx = ctx.clone();
                let report = async move { apply::report_undecodable::<MigrationDecision>(&ctx, &invalid).await };
                tokio::spawn(report.instrument(span));
            }
            None
        }
    }
}

/// UIDs of reported objects: the watch delivers an object again with each change and each reconnection.
#[derive(Default)]
struct SeenUids(Mutex<HashSet<String>>);

impl SeenUids {
    fn insert(&self, invalid: &InvalidObject) -> bool {
        let uid = invalid.metadata.uid.clone().unwrap_or_default();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(uid)
    }
}

/// The migration in the label of a run or Job.
fn by_label<K: Resource + Clone>(object: PartialObjectMeta<K>) -> Option<ObjectRef<Guarded>> {
    let meta = &object.metadata;
    let name = meta.labels.as_ref()?.get(crate::api::MIGRATION_LABEL)?;
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
        // Without handlers the default action ends the process, as intended.
        _ => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn decision(uid: &str, word: &str) -> Value {
        json!({
            "apiVersion": "creditmigration.io/v1alpha1",
            "kind": "MigrationDecision",
            "metadata": {"name": "d", "namespace": "shop", "uid": uid},
            "spec": {"migration": "m", "migrationUID": "1", "decision": word, "by": "ann"},
        })
    }

    #[test]
    fn an_undecodable_decision_is_reported_once() {
        let seen = SeenUids::default();
        let invalid = |uid: &str| {
            let guarded: DeserializeGuard<MigrationDecision> =
                serde_json::from_value(decision(uid, "Postpone")).unwrap();
            guarded.0.unwrap_err()
        };
        assert_eq!(
            [seen.insert(&invalid("a")), seen.insert(&invalid("a")), seen.insert(&invalid("b"))],
            [true, false, true]
        );
        let about = apply::reference::<MigrationDecision>(&invalid("a"));
        assert_eq!(
            serde_json::to_value(about).unwrap(),
            json!({
                "apiVersion": "creditmigration.io/v1alpha1", "kind": "MigrationDecision",
                "name": "d", "namespace": "shop", "uid": "a",
            })
        );
    }
}
