//! How a reconciliation, or the controller itself, fails.

use std::{fmt, time::Duration};

use prometheus_client::encoding::{EncodeLabelValue, LabelValueEncoder};

/// What ends the controller.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused a request or could not be reached.
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
    /// Neither names nor reports are authenticated.
    #[error("{0}; next: helm upgrade with admissionPolicies.install=true")]
    AdmissionPolicyMissing(String),
    /// An object with this name exists and has another owner.
    #[error("{kind} {name} exists and does not belong to this migration; next: rename or delete it")]
    NotOwned {
        /// Kind of the object.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The live object differs from the one that was decided on.
    #[error("the object changed in the meantime; retried")]
    Conflict,
    /// One reconciliation took too long.
    #[error("reconciliation took longer than {} s", .0.as_secs())]
    Timeout(Duration),
}

impl Error {
    /// Its label in metrics.
    pub(super) fn class(&self) -> ErrorClass {
        match self {
            Error::Kube(_) => ErrorClass::Kubernetes,
            Error::Timeout(_) => ErrorClass::Timeout,
            Error::Conflict => ErrorClass::Conflict,
            Error::LeaseLost => ErrorClass::Lease,
            Error::NotOwned { .. } => ErrorClass::NotOwned,
            Error::Config(_) | Error::Listen(_) | Error::AdmissionPolicyMissing(_) => ErrorClass::Other,
        }
    }
}

/// Defines the classes with their labels, once each.
macro_rules! classes {
    ($($class:ident = $label:literal),+) => {
        /// Classes of errors, as metrics count them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub(super) enum ErrorClass {
            $($class),+
        }

        impl ErrorClass {
            /// All of them.
            pub(super) const ALL: &[Self] = &[$(Self::$class),+];

            fn label(self) -> &'static str {
                match self {
                    $(Self::$class => $label),+
                }
            }
        }
    };
}

classes!(
    Kubernetes = "kubernetes",
    Timeout = "timeout",
    Conflict = "conflict",
    Lease = "lease",
    NotOwned = "not_owned",
    Other = "other"
);

impl EncodeLabelValue for ErrorClass {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        self.label().encode(encoder)
    }
}
