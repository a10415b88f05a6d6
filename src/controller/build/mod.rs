//! Objects that the controller creates, built from plain values, one function per kind of object. Pure.
//!
//! Called by `apply`; `watches` selects what is made here. Imports `api` and `machine`.

mod check_job;
mod rbac;
mod run_job;
#[cfg(test)]
mod tests;
mod volumes;

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::{Resource, ResourceExt};

use crate::api::{CreditMigration, MIGRATION_LABEL, TASK_LABEL, Task, UID_LABEL};

pub use check_job::check_job;
pub use rbac::{role_binding, service_account};
pub(super) use run_job::resources;
pub use run_job::{job, run};

/// Selector for everything that the controller creates.
pub const MANAGED_SELECTOR: &str = "app.kubernetes.io/managed-by=credit-migration-operator";

fn labels(name: &str, uid: &str, task: Option<Task>) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::from([
        ("app.kubernetes.io/name".to_owned(), "credit-migration-runner".to_owned()),
        ("app.kubernetes.io/managed-by".to_owned(), super::MANAGER.to_owned()),
        (MIGRATION_LABEL.to_owned(), name.to_owned()),
        (UID_LABEL.to_owned(), uid.to_owned()),
    ]);
    labels.extend(task.map(|t| (TASK_LABEL.to_owned(), t.slug().to_owned())));
    labels
}

fn owner<K: Resource<DynamicType = ()>>(object: &K) -> Vec<OwnerReference> {
    object.controller_owner_ref(&()).into_iter().collect()
}

fn meta(name: String, migration: &CreditMigration, task: Option<Task>) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: migration.namespace(),
        labels: Some(labels(&migration.name_any(), &migration.uid().unwrap_or_default(), task)),
        owner_references: Some(owner(migration)),
        ..Default::default()
    }
}
