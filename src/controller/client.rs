//! The client of the Kubernetes API.

use std::time::Duration;

use kube::{Client, Config, client::ClientBuilder};

use super::{Error, metrics::Metrics};

/// A client whose requests are timed and time out, and whose answers show the server's clock. Without a read time-out
/// the operator would hang with the API server.
///
/// # Errors
/// `Config` without a cluster's configuration, `Kube` when it cannot be used.
pub(super) async fn connect(metrics: &Metrics) -> Result<Client, Error> {
    let mut config = Config::infer().await?;
    config.connect_timeout = Some(Duration::from_secs(5));
    // Longer than the time-out of a watch (290 s), so that an idle watch is not cut before the server ends it.
    config.read_timeout = Some(Duration::from_secs(295));
    config.default_retry = false;
    Ok(ClientBuilder::try_from(config)?.with_layer(&metrics.requests()).with_layer(&metrics.server_clock()).build())
}
