//! Counts and times requests for Prometheus.

use std::{sync::Arc, time::Instant};

use axum::{
    extract::{MatchedPath, Request, State},
    http::Method,
    middleware::Next,
    response::Response,
};
use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::Registry,
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    path: String,
    method: &'static str,
    code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Payment {
    result: &'static str,
}

/// The metrics of this process.
pub struct Metrics {
    registry: Registry,
    payments: Family<Payment, Counter>,
    requests: Family<Labels, Counter>,
    duration: Family<Labels, Histogram>,
}

impl Default for Metrics {
    fn default() -> Self {
        const SECONDS: [f64; 11] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5];
        let mut registry = Registry::default();
        let requests = Family::<Labels, Counter>::default();
        let duration = Family::<Labels, Histogram>::new_with_constructor(|| Histogram::new(SECONDS));
        let payments = Family::<Payment, Counter>::default();
        // There from the start: a rate over a series that does not exist yet is nothing, and not 0.
        for result in ["paid", "refused"] {
            drop(payments.get_or_create(&Payment { result }));
        }
        registry.register("payments", "Charges by what the payment provider answered", payments.clone());
        registry.register("http_requests", "Requests by path, method and code", requests.clone());
        registry.register("http_request_duration_seconds", "Time to answer a request", duration.clone());
        Self { registry, payments, requests, duration }
    }
}

impl Metrics {
    /// Counts a charge.
    pub fn count_payment(&self, paid: bool) {
        self.payments.get_or_create(&Payment { result: if paid { "paid" } else { "refused" } }).inc();
    }

    /// All metrics in Prometheus' text format.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// Middleware that counts the request that passes through. Labels come from the route, never from the caller: a scan of
/// random paths must not fill the memory.
pub async fn count(State(metrics): State<Arc<Metrics>>, path: MatchedPath, request: Request, next: Next) -> Response {
    let method = match *request.method() {
        Method::GET => "GET",
        Method::POST => "POST",
        _ => "other",
    };
    let start = Instant::now();
    let response = next.run(request).await;
    let labels = Labels { path: path.as_str().to_owned(), method, code: response.status().as_u16() };
    metrics.requests.get_or_create(&labels).inc();
    metrics.duration.get_or_create(&labels).observe(start.elapsed().as_secs_f64());
    response
}
