//! The ServiceAccount of a migration's pods and its rights.

use k8s_openapi::api::{
    core::v1::ServiceAccount,
    rbac::v1::{RoleBinding, RoleRef, Subject},
};
use kube::ResourceExt;

use super::meta;
use crate::api::{CreditMigration, runner_name};

/// ServiceAccount of a migration's pods.
pub fn service_account(migration: &CreditMigration) -> ServiceAccount {
    ServiceAccount { metadata: meta(runner_name(&migration.name_any()), migration, None), ..Default::default() }
}

/// Binds that ServiceAccount to one of the runner's ClusterRoles, in this namespace only. `suffix` distinguishes
/// bindings: it is empty for the role that every task needs.
pub fn role_binding(migration: &CreditMigration, cluster_role: &str, suffix: &str) -> RoleBinding {
    let name = runner_name(&migration.name_any());
    RoleBinding {
        metadata: meta(format!("{name}{suffix}"), migration, None),
        role_ref: RoleRef {
            api_group: Some("rbac.authorization.k8s.io".into()),
            kind: "ClusterRole".into(),
            name: cluster_role.into(),
        },
        subjects: Some(vec![Subject {
            kind: "ServiceAccount".into(),
            name,
            namespace: migration.namespace(),
            ..Default::default()
        }]),
    }
}
