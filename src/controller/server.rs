//! Probes and metrics on one port.
//!
//! Liveness depends on nothing outside the process: it fails when the runtime does not answer, or a reconciliation has
//! outlived its own time-out, which a thread that hangs cannot notice. A standby replica is ready: it can take over.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

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

/// A reconciliation that runs for so long hangs: its own time-out is 30 s.
const HUNG: Duration = Duration::from_secs(90);

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
        .route("/livez", get(alive))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics_text))
        .with_state(metrics);
    Ok(tokio::spawn(async move { axum::serve(listener, router).await }))
}

/// Prometheus chooses its parser by the content type.
async fn metrics_text(State(metrics): State<Arc<Metrics>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, OPEN_METRICS)], metrics.render(telemetry::now()))
}

async fn alive(State(metrics): State<Arc<Metrics>>) -> (StatusCode, String) {
    alive_after(metrics.longest_running(Instant::now()))
}

/// Whether the process is alive although a reconciliation has been running for that long.
fn alive_after(longest: Duration) -> (StatusCode, String) {
    if longest <= HUNG {
        return (StatusCode::OK, "ok".into());
    }
    let text = format!("a reconciliation has been running for {} s (limit {} s)", longest.as_secs(), HUNG.as_secs());
    (StatusCode::SERVICE_UNAVAILABLE, text)
}

async fn ready(State(metrics): State<Arc<Metrics>>) -> (StatusCode, String) {
    let text = metrics.waiting_for().map_or("ok, leading".into(), |what| format!("ok, waiting for {what}"));
    (StatusCode::OK, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reconciliation_that_outlives_its_time_out_is_a_hung_process() {
        let metrics = Metrics::default();
        let later = |seconds| metrics.longest_running(Instant::now() + Duration::from_secs(seconds));
        let first = metrics.reconciling("shop", "m");
        metrics.reconciling("shop", "n").succeeded();
        assert_eq!(alive_after(later(60)).0, StatusCode::OK);
        let (code, text) = alive_after(later(100));
        assert_eq!(code, StatusCode::SERVICE_UNAVAILABLE);
        assert!(text.contains("(limit 90 s)"), "{text}");
        first.succeeded();
        assert_eq!(alive_after(later(100)).0, StatusCode::OK, "none is running");
    }
}
