//! `MigrationDecision`: one person's decision on one migration. It is immutable and therefore also the record.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::named::named;

/// One person's decision on one migration.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "creditmigration.io",
    version = "v1alpha1",
    kind = "MigrationDecision",
    plural = "migrationdecisions",
    shortname = "cmdec",
    category = "credit-migrations",
    namespaced,
    derive = "PartialEq",
    doc = "One person's decision on one CreditMigration. It is immutable and therefore also the record.",
    printcolumn(name = "Migration", type_ = "string", json_path = ".spec.migration"),
    printcolumn(name = "Decision", type_ = "string", json_path = ".spec.decision"),
    printcolumn(name = "By", type_ = "string", json_path = ".spec.by"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".spec.reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(
    validation = Rule::new("self == oldSelf").message("a decision is immutable: create another one"),
    validation = Rule::new("!(self.decision in ['Approve', 'Ready', 'Keep']) || (has(self.digest) && \
        self.digest.startsWith('sha256:'))")
        .message("Approve, Ready and Keep need spec.digest: kubectl get creditmigrations NAME -o \
            jsonpath='{.status.plan.digest}'")
)]
#[serde(rename_all = "camelCase")]
pub struct MigrationDecisionSpec {
    /// Name of the `CreditMigration` in the same namespace.
    #[schemars(length(min = 1, max = 253))]
    pub migration: String,
    /// `metadata.uid` of that migration: a decision does not carry over to a new object of the same name.
    #[serde(rename = "migrationUID")]
    #[schemars(length(min = 1, max = 64))]
    pub migration_uid: String,
    /// What is decided.
    pub decision: DecisionKind,
    /// User name of the person. An admission policy rejects any other name than that of the request's user.
    #[schemars(length(min = 1, max = 253))]
    pub by: String,
    /// Reason of the decision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub reason: Option<String>,
    /// `status.plan.digest` of what is approved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub digest: Option<String>,
}

/// What is decided.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecisionKind {
    /// Approve this plan. Needs the digest.
    Approve,
    /// Confirm presence for the execution. Needs the digest.
    Ready,
    /// Do not run this plan.
    Reject,
    /// Stop. Before the window nothing has changed; afterwards the change is undone.
    Abort,
    /// Roll back to the old version. One person suffices.
    Rollback,
    /// Keep the new version. Needs the digest.
    Keep,
}

named! {
    DecisionKind: Approve, Ready, Reject, Abort, Rollback, Keep
}
