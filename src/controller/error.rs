//! How a reconciliation, or the controller itself, fails.

use std::time::Duration;

/// What ends the controller.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused or could not be reached.
    #[error("Kubernetes API: {0}")]
    Kube(#[from] kube::Error),
    /// No configuration for a cluster was found.
    #[error("no cluster configuration: {0}")]
    Config(#[from] kube::config::InferConfigError),
    /// The port for probes and metrics cannot be used.
    #[error("cannot listen: {0}")]
    Listen(#[from] std::io::Error),
    /// Another replica leads now.
    #[error("lost the lease; another replica leads now")]
    LeaseLost,
    /// Neither names nor reports are proven.
    #[error("{0}; next: helm upgrade with admissionPolicies.install=true")]
    AdmissionPolicyMissing(String),
    /// An object of the name exists and is not ours.
    #[error("{kind} {name} exists and does not belong to this migration; next: rename or delete it")]
    NotOwned {
        /// Kind of the object.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The live object differs from the one that was decided on.
    #[error("the object changed meanwhile; decided again")]
    Conflict,
    /// One reconciliation took too long.
    #[error("reconciliation took longer than {0:?}")]
    Timeout(Duration),
}
