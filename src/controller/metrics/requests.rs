//! Durations of requests to the API server, measured by a layer of the client, so that none is missed.

use std::{
    task::{Context, Poll},
    time::Instant,
};

use axum::http::{Method, Request, Response, StatusCode};
use futures::future::BoxFuture;
use prometheus_client::{encoding::EncodeLabelSet, registry::Registry};
use tower::{Layer, Service};

use super::{Durations, durations};

/// Durations of requests, by verb and outcome; of a watch until its response starts.
#[derive(Clone)]
pub(in crate::controller) struct RequestDurations(Durations<Labels>);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    verb: &'static str,
    outcome: &'static str,
}

impl Default for RequestDurations {
    fn default() -> Self {
        let all = durations();
        // A family without a series is not exposed.
        let _ = all.get_or_create(&Labels { verb: "get", outcome: "success" });
        Self(all)
    }
}

impl RequestDurations {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "kubernetes_request_duration_seconds",
            "Duration of requests to the API server, by verb and outcome; of a watch until its start",
            self.0.clone(),
        );
    }
}

impl<S> Layer<S> for RequestDurations {
    type Service = Timed<S>;

    fn layer(&self, inner: S) -> Timed<S> {
        Timed { inner, durations: self.clone() }
    }
}

/// A client whose requests are timed.
#[derive(Clone)]
pub(in crate::controller) struct Timed<S> {
    inner: S,
    durations: RequestDurations,
}

impl<S, B, C> Service<Request<B>> for Timed<S>
where
    S: Service<Request<B>, Response = Response<C>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let verb = verb(request.method(), request.uri().query().unwrap_or_default());
        let timer = Timer { durations: self.durations.clone(), verb, outcome: "cancelled", started: Instant::now() };
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await;
            timer.stop(answer.as_ref().map_or("unreachable", |response| outcome(response.status())));
            answer
        })
    }
}

/// A request in progress. One that is dropped before its response, such as at a time-out, counts as cancelled.
struct Timer {
    durations: RequestDurations,
    verb: &'static str,
    outcome: &'static str,
    started: Instant,
}

impl Timer {
    fn stop(mut self, outcome: &'static str) {
        self.outcome = outcome;
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        let labels = Labels { verb: self.verb, outcome: self.outcome };
        self.durations.0.get_or_create(&labels).observe(self.started.elapsed().as_secs_f64());
    }
}

/// The verb, as in rules of RBAC; `get` is also `list`.
fn verb(method: &Method, query: &str) -> &'static str {
    match *method {
        Method::GET if query.split('&').any(|parameter| parameter.starts_with("watch=")) => "watch",
        Method::GET => "get",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "other",
    }
}

fn outcome(status: StatusCode) -> &'static str {
    match status.as_u16() {
        ..400 => "success",
        404 => "not_found",
        409 => "conflict",
        429 => "throttled",
        400..500 => "refused",
        500.. => "server_error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[rstest::rstest]
    #[case(Method::GET, "limit=500", "get")]
    #[case(Method::GET, "watch=true&timeoutSeconds=290", "watch")]
    #[case(Method::GET, "labelSelector=watch%3D", "get")]
    #[case(Method::POST, "", "create")]
    #[case(Method::DELETE, "", "delete")]
    #[case(Method::OPTIONS, "", "other")]
    fn verbs(#[case] method: Method, #[case] query: &str, #[case] wanted: &str) {
        assert_eq!(verb(&method, query), wanted);
    }

    #[rstest::rstest]
    #[case(101, "success")]
    #[case(201, "success")]
    #[case(403, "refused")]
    #[case(404, "not_found")]
    #[case(409, "conflict")]
    #[case(429, "throttled")]
    #[case(503, "server_error")]
    fn outcomes(#[case] code: u16, #[case] wanted: &str) {
        assert_eq!(outcome(StatusCode::from_u16(code).unwrap()), wanted);
    }
}
