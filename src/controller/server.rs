//! Probes and metrics on one port.
//!
//! Liveness depends on nothing outside the process. A standby replica is ready: it can take over.

use std::{net::SocketAddr, sync::Arc};

use axum::{Router, extract::State, http::StatusCode, routing::get};
use tokio::{net::TcpListener, task::JoinHandle};

use super::{Error, metrics::Metrics};

/// Serves until the process ends. `Err` when the port cannot be had.
pub(super) async fn serve(
    address: SocketAddr,
    metrics: Arc<Metrics>,
) -> Result<JoinHandle<std::io::Result<()>>, Error> {
    let listener = TcpListener::bind(address).await?;
    let router = Router::new()
        .route("/livez", get(|| async { "ok" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(|State(m): State<Arc<Metrics>>| async move { m.render(crate::telemetry::now()) }))
        .with_state(metrics);
    Ok(tokio::spawn(async move { axum::serve(listener, router).await }))
}

async fn ready(State(metrics): State<Arc<Metrics>>) -> (StatusCode, String) {
    let text = metrics.standing_by_for().map_or("ok, leading".into(), |what| format!("ok, standing by for {what}"));
    (StatusCode::OK, text)
}
