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
    config::{ConfigError, Faults, Settings, Version},
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
    failing: Failing,
    faults: Faults,
    idle_sessions: u16,
    probe: Option<(String, String)>,
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
            failing: Failing { share, seen: AtomicU64::new(0) },
            faults: settings.faults(),
            idle_sessions: if version == Version::V2 { settings.v2_idle_sessions } else { 0 },
            probe: settings
                .probe_email
                .clone()
                .map(|email| (email, settings.probe_password.clone().unwrap_or_default())),
            metrics: Arc::default(),
        })
    }

    /// Holds the sessions that `V2_IDLE_SESSIONS` asks for; never returns.
    pub async fn hold_idle_sessions(&self) {
        self.database.hold_idle(self.idle_sessions.into()).await;
    }

    /// Whether this password goes with this email. Only the probe's user has one.
    fn may_log_in(&self, email: &str, password: Option<&str>) -> bool {
        match &self.probe {
            Some((probe, expected)) if probe == email => {
                !expected.is_empty() && password.is_some_and(|given| same(given.as_bytes(), expected.as_bytes()))
            }
            _ => true,
        }
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

/// Compares in a time that does not depend on how much of the two is the same.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

#[derive(Deserialize)]
struct LoginRequest {
    email: String,
    password: Option<String>,
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
    if app.faults.login {
        return Err(Failure::Injected);
    }
    if !app.may_log_in(&request.email, request.password.as_deref()) {
        return Err(Failure::Unauthorized);
    }
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
    app.database.write(&Deduct { token, amount, reason, spared: app.faults.balances.into() }).await.map(Json)
}

async fn upgrade(
    State(app): State<Arc<App>>,
    Bearer(token): Bearer,
    Json(request): Json<UpgradeRequest>,
) -> Result<Json<Balance>, Failure> {
    // A charge comes before its grant: what was not paid for is never granted. A refund when the grant fails
    // is the provider's part, which is not simulated.
    let paid = !app.faults.payments;
    app.metrics.count_payment(paid);
    if !paid {
        return Err(Failure::PaymentRefused);
    }
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
    match app.failing.next() {
        true => Failure::Injected.into_response(),
        false => next.run(request).await,
    }
}

/// Picks the requests that fail on purpose: evenly spread and exactly the share asked for, without dice.
struct Failing {
    share: f64,
    seen: AtomicU64,
}

impl Failing {
    fn next(&self) -> bool {
        let seen = self.seen.fetch_add(1, Ordering::Relaxed) as f64;
        ((seen + 1.0) * self.share).floor() > (seen * self.share).floor()
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(0.0, 0)]
    #[case(0.01, 10)]
    #[case(0.25, 250)]
    #[case(1.0, 1000)]
    fn faults_are_exactly_the_share(#[case] share: f64, #[case] expected: usize) {
        let failing = Failing { share, seen: AtomicU64::new(0) };
        assert_eq!((0..1000).filter(|_| failing.next()).count(), expected);
    }

    fn app(version: &str, faults: &str) -> App {
        let faults = format!("--v2-faults={faults}");
        let probe = ["--probe-email=probe@example.com", "--probe-password=secret"];
        let arguments =
            ["test", "--database-url=postgres://127.0.0.1:9/none", "--credit-system-version", version, &faults];
        App::new(&Settings::parse_from(arguments.into_iter().chain(probe))).unwrap()
    }

    #[rstest]
    #[case::right("probe@example.com", Some("secret"), true)]
    #[case::wrong("probe@example.com", Some("secres"), false)]
    #[case::longer("probe@example.com", Some("secrets"), false)]
    #[case::none("probe@example.com", None, false)]
    #[case::test_data_has_no_password("user1@example.com", None, true)]
    #[tokio::test]
    async fn only_the_probe_user_has_a_password(
        #[case] email: &str,
        #[case] given: Option<&str>,
        #[case] expected: bool,
    ) {
        assert_eq!(app("v1", "").may_log_in(email, given), expected);
    }

    // None of these gets as far as the database, which is not there: v1 answers 503.
    #[rstest]
    #[case("v2", "login", "/login", json!({"email": "user1@example.com"}), 500)]
    #[case("v1", "login", "/login", json!({"email": "user1@example.com"}), 503)]
    #[case("v1", "", "/login", json!({"email": "probe@example.com", "password": "wrong"}), 401)]
    #[case("v2", "payments", "/subscription/upgrade", json!({"plan": "pro"}), 502)]
    #[case("v1", "payments", "/subscription/upgrade", json!({"plan": "pro"}), 503)]
    #[tokio::test]
    async fn faults_answer_before_the_database_is_asked(
        #[case] version: &str,
        #[case] faults: &str,
        #[case] path: &str,
        #[case] body: Value,
        #[case] expected: u16,
    ) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let served = tokio::spawn(axum::serve(listener, router(Arc::new(app(version, faults)))).into_future());
        let client = reqwest::Client::builder().no_proxy().tls_certs_only([]).build().unwrap();
        let request = client.post(format!("{url}{path}")).bearer_auth("none").json(&body);
        assert_eq!(request.send().await.unwrap().status(), expected);
        let metrics = client.get(format!("{url}/metrics")).send().await.unwrap().text().await.unwrap();
        let refused = u8::from(expected == 502);
        assert!(metrics.contains(&format!("payments_total{{result=\"refused\"}} {refused}\n")), "{metrics}");
        served.abort();
    }
}
