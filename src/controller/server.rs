//! Probes and metrics on one port.
//!
//! Liveness depends on nothing outside the process. A standby replica is ready: it can take over.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use tokio::{net::TcpListener, task::JoinHandle};

use super::{Error, metrics::Metrics};
use crate::telemetry;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves until the process ends.
///
/// # Errors
/// `Listen` when the port cannot be used.
pub(super) async fn serve(
    address: SocketAddr,
    metrics: Arc<Metrics>,
) -> Result<JoinHandle<std::io::Result<()>>, Error> {
    let listener = TcpListener::bind(address).await?;
    let router = Router::new()
        .route("/livez", get(|| async { "ok" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics_text))
        .with_state(metrics);
    Ok(tokio::spawn(async move { axum::serve(listener, router).await }))
}

/// Prometheus chooses its parser by the content type.
async fn metrics_text(State(metrics): State<Arc<Metrics>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, OPEN_METRICS)], metrics.render(telemetry::now()))
}

async fn ready(State(metrics): State<Arc<Metrics>>) -> (StatusCode, String) {
    let text = metrics.waiting_for().map_or("ok, leading".into(), |what| format!("ok, waiting for {what}"));
    (StatusCode::OK, text)
}
