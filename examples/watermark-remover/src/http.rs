//! Routes and handlers: from HTTP to a value in [`crate::work`] and back.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use axum::{
    Json, Router,
    extract::{FromRequestParts, State},
    http::{StatusCode, header, request::Parts},
    middleware,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    config::{ConfigError, Settings, Version},
    database::Database,
    failure::Failure,
    ledger::{Balance, Credits, Login},
    metrics::{self, Metrics},
    work::{Deduct, LogIn, Ping, ShowCredits, Upgrade},
};

const MAX_AMOUNT: i64 = 1_000_000;
const MAX_REASON: usize = 200;

/// What all requests share.
pub struct App {
    database: Database,
    version: Version,
    rollback_enabled: bool,
    faults: Faults,
    metrics: Arc<Metrics>,
}

impl App {
    /// Builds the application from its settings.
    pub fn new(settings: &Settings) -> Result<Self, ConfigError> {
        let version = settings.credit_system_version;
        let share = if version == Version::V2 { settings.v2_failure_rate } else { 0.0 };
        Ok(Self {
            database: Database::new(settings)?,
            version,
            rollback_enabled: settings.enable_rollback,
            faults: Faults { share, seen: AtomicU64::new(0) },
            metrics: Arc::default(),
        })
    }
}

/// All routes. Probes and scrapes are not counted in the metrics: they would dilute the error rate.
pub fn router(app: Arc<App>) -> Router {
    let credits = Router::new()
        .route("/credits", get(credits))
        .route("/credits/deduct", post(deduct))
        .route("/subscription/upgrade", post(upgrade))
        .route_layer(middleware::from_fn_with_state(app.clone(), fail_on_purpose));
    credits
        .route("/login", post(login))
        .route_layer(middleware::from_fn_with_state(app.metrics.clone(), metrics::count))
        .route("/version", get(version))
        .route("/healthz", get(healthz))
        .route("/livez", get(async || "ok"))
        .route("/metrics", get(scrape))
        .with_state(app)
}

/// The token of an `Authorization: Bearer` header.
struct Bearer(String);

impl<S: Sync> FromRequestParts<S> for Bearer {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        let value = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = value.and_then(|value| value.strip_prefix("Bearer "));
        token.map(|token| Self(token.to_owned())).ok_or(Failure::Unauthorized)
    }
}

#[derive(Deserialize)]
struct LoginRequest {
    email: String,
}

#[derive(Deserialize)]
struct DeductRequest {
    amount: i64,
    reason: String,
}

#[derive(Deserialize)]
struct UpgradeRequest {
    plan: String,
}

async fn login(State(app): State<Arc<App>>, Json(request): Json<LoginRequest>) -> Result<Json<Login>, Failure> {
    app.database.read(&LogIn { email: request.email }).await.map(Json)
}

async fn credits(State(app): State<Arc<App>>, Bearer(token): Bearer) -> Result<Json<Credits>, Failure> {
    app.database.read(&ShowCredits { version: app.version, token }).await.map(Json)
}

async fn deduct(
    State(app): State<Arc<App>>,
    Bearer(token): Bearer,
    Json(request): Json<DeductRequest>,
) -> Result<Json<Balance>, Failure> {
    let DeductRequest { amount, reason } = request;
    if !(1..=MAX_AMOUNT).contains(&amount) {
        return Err(Failure::BadRequest("amount must be from 1 to 1000000"));
    }
    if reason.len() > MAX_REASON {
        return Err(Failure::BadRequest("reason must not be longer than 200 bytes"));
    }
    app.database.write(&Deduct { token, amount, reason }).await.map(Json)
}

async fn upgrade(
    State(app): State<Arc<App>>,
    Bearer(token): Bearer,
    Json(request): Json<UpgradeRequest>,
) -> Result<Json<Balance>, Failure> {
    app.database.write(&Upgrade { version: app.version, token, plan: request.plan }).await.map(Json)
}

async fn version(State(app): State<Arc<App>>) -> Json<Value> {
    let contains = Version::ALL.map(|version| version.to_string());
    Json(json!({ "running": app.version.to_string(), "contains": contains, "rollback_enabled": app.rollback_enabled }))
}

/// Ready while a session answers; a read-only database is healthy.
async fn healthz(State(app): State<Arc<App>>) -> Result<&'static str, Failure> {
    app.database.read(&Ping).await.map(|()| "ok")
}

async fn scrape(State(app): State<Arc<App>>) -> Response {
    match app.metrics.encode() {
        Ok(text) => ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
            .into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn fail_on_purpose(
    State(app): State<Arc<App>>,
    request: axum::extract::Request,
    next: middleware::Next,
) -> Response {
    match app.faults.next() {
        true => Failure::Injected.into_response(),
        false => next.run(request).await,
    }
}

/// Picks the requests that fail on purpose: evenly spread and exactly the share asked for, without dice.
struct Faults {
    share: f64,
    seen: AtomicU64,
}

impl Faults {
    fn next(&self) -> bool {
        let seen = self.seen.fetch_add(1, Ordering::Relaxed) as f64;
        ((seen + 1.0) * self.share).floor() > (seen * self.share).floor()
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(0.0, 0)]
    #[case(0.01, 10)]
    #[case(0.25, 250)]
    #[case(1.0, 1000)]
    fn faults_are_exactly_the_share(#[case] share: f64, #[case] expected: usize) {
        let faults = Faults { share, seen: AtomicU64::new(0) };
        assert_eq!((0..1000).filter(|_| faults.next()).count(), expected);
    }
}
