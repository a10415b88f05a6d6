//! Command line of `controller`.

use clap::Args;

use crate::shared::admission;

/// Options of `controller`.
#[derive(Args, Clone, Debug)]
pub struct ControllerOptions {
    /// Image of the runner's pods; new migrations are pinned to it.
    #[arg(long, env = "RUNNER_IMAGE")]
    pub runner_image: String,
    /// PriorityClass of the pods that must not be preempted or evicted: of a window, and of the stages that watch for
    /// triggers. Empty: none.
    #[arg(long, default_value = "")]
    pub window_priority_class_name: String,
    /// ClusterRole that runner pods are bound to in their namespace.
    #[arg(long, default_value = "credit-migration-runner")]
    pub runner_cluster_role: String,
    /// ClusterRole that they are also bound to where a check reads logs.
    #[arg(long, default_value = "credit-migration-runner-logs")]
    pub runner_logs_cluster_role: String,
    /// Name of the ValidatingAdmissionPolicy, and of its binding, that verifies the names in decisions.
    #[arg(long, default_value = admission::DECISIONS)]
    pub decision_policy: String,
    /// Name of the Lease.
    #[arg(long, default_value = "credit-migration-operator")]
    pub lease_name: String,
    /// How long a leader that does not renew the Lease keeps it.
    #[arg(long, default_value = "15s")]
    pub lease_duration: kube::core::Duration,
    /// Address of probes and metrics.
    #[arg(long, default_value = "0.0.0.0:8080")]
    pub listen: std::net::SocketAddr,
    /// Namespace of the operator.
    #[arg(long, env = "POD_NAMESPACE", default_value = "default")]
    pub namespace: String,
    /// Name of this replica.
    #[arg(long, env = "POD_NAME", default_value = "local")]
    pub identity: String,
}
