//! The Kubernetes API, as the pod's service account.

use std::time::Duration;

use kube::{Client, Config};

use crate::{api::Reason, runner::Failure};

/// A client as the pod's service account (or by kubeconfig outside of a pod).
///
/// # Errors
/// `Internal` if there is no configuration.
pub(in crate::runner) async fn client() -> Result<Client, Failure> {
    let internal = |e: &dyn std::fmt::Display| Failure::new(Reason::Internal, format!("Kubernetes client: {e}"));
    let mut config = Config::infer().await.map_err(|e| internal(&e))?;
    // Without these a half-open connection would hang the window's orders for ever.
    config.connect_timeout = Some(Duration::from_secs(5));
    config.read_timeout = Some(Duration::from_secs(15));
    config.write_timeout = Some(Duration::from_secs(15));
    // The loops here retry by themselves; two layers would multiply.
    config.default_retry = false;
    Client::try_from(config).map_err(|e| internal(&e))
}
