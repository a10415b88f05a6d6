//! Sequences against an application that logs in, shows credits and takes some.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use axum::{
    Json, Router,
    extract::State,
    http::{HeaderMap, StatusCode},
    routing::{get, post},
};
use credit_migration::api::{Check, CheckOutcome, CheckResult, mounts};
use serde_json::{Value, json};

use crate::harness::World;

/// Credits by token; a token that starts with `greedy` pays twice.
type Credits = Arc<Mutex<HashMap<String, i64>>>;

fn token(headers: &HeaderMap) -> Result<String, StatusCode> {
    let value = headers.get("authorization").and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    value.map(str::to_owned).ok_or(StatusCode::UNAUTHORIZED)
}

async fn login(State(credits): State<Credits>, Json(body): Json<Value>) -> Result<Json<Value>, StatusCode> {
    if body["password"] != "pass\"word" {
        return Err(StatusCode::UNAUTHORIZED);
    }
    let token = format!("{}-token", body["user"].as_str().unwrap());
    credits.lock().unwrap().entry(token.clone()).or_insert(40);
    Ok(Json(json!({"session": {"token": token}})))
}

async fn show(State(credits): State<Credits>, headers: HeaderMap) -> Result<Json<Value>, StatusCode> {
    let token = token(&headers)?;
    let credits = credits.lock().unwrap();
    Ok(Json(json!({"balance": credits.get(&token).ok_or(StatusCode::UNAUTHORIZED)?})))
}

async fn deduct(
    State(credits): State<Credits>,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> Result<Json<Value>, StatusCode> {
    let token = token(&headers)?;
    let factor = if token.starts_with("greedy") { 2 } else { 1 };
    let mut credits = credits.lock().unwrap();
    let balance = credits.get_mut(&token).ok_or(StatusCode::UNAUTHORIZED)?;
    *balance -= body["amount"].as_i64().unwrap() * factor;
    Ok(Json(json!({"balance": *balance})))
}

async fn serve() -> (String, Credits) {
    let credits = Credits::default();
    let router = Router::new()
        .route("/login", post(login))
        .route("/credits", get(show).patch(deduct))
        .with_state(credits.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (base, credits)
}

/// Log in, read, take one, read again.
fn purchase(base: &str, user: &str) -> Value {
    let bearer = json!({"Authorization": "Bearer {{ token }}"});
    json!({"secretRef": {"name": "probe-user"}, "steps": [
        {"name": "login", "url": format!("{base}/login"), "method": "POST",
         "body": format!("{{\"user\": \"{user}\", \"password\": {{{{ secret.password | tojson }}}}}}"),
         "capture": [{"name": "token", "jsonPath": "$.session.token"}]},
        {"name": "before", "url": format!("{base}/credits"), "headers": bearer,
         "expect": [{"jsonPath": "$.balance"}], "capture": [{"name": "before", "jsonPath": "$.balance"}]},
        {"name": "deduct", "url": format!("{base}/credits"), "method": "PATCH", "headers": bearer,
         "body": "{\"amount\": 1}"},
        {"name": "after", "url": format!("{base}/credits"), "headers": bearer,
         "expect": [{"jsonPath": "$.balance", "equals": "{{ before - 1 }}"}]},
    ]})
}

async fn measured(world: &World, sequence: Value, more: Value) -> CheckResult {
    let mut check = json!({"name": "purchase", "interval": "1s", "sequence": sequence});
    check.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let check: Check = serde_json::from_value(check).unwrap();
    world.watched(&[check], 2).await.remove(0)
}

#[tokio::test]
async fn values_go_from_step_to_step() {
    let (world, (base, credits)) = (World::new().await, serve().await);
    world.mount(&mounts::secret("probe-user", "password"), "pass\"word\n");
    let result = measured(&world, purchase(&base, "ann"), json!({})).await;
    assert_eq!((result.outcome, result.message.as_str()), (CheckOutcome::Pass, "answered as expected"));
    assert_eq!(credits.lock().unwrap()["ann-token"], 38);
    // With a limit the value is the time.
    let result = measured(&world, purchase(&base, "bob"), json!({"max": "5000"})).await;
    assert!(result.outcome == CheckOutcome::Pass && result.message.contains("<= 5000"), "{result:?}");
    let result = measured(&world, purchase(&base, "bob"), json!({"max": "0"})).await;
    assert!(result.outcome == CheckOutcome::Fail && result.message.contains("> 0"), "{result:?}");
}

#[tokio::test]
async fn the_step_that_failed_is_named_and_nothing_else() {
    let (world, (base, credits)) = (World::new().await, serve().await);
    world.mount(&mounts::secret("probe-user", "password"), "pass\"word");
    let edited = |step: usize, edit: Value| {
        let mut sequence = purchase(&base, "greedy");
        sequence["steps"][step].as_object_mut().unwrap().extend(edit.as_object().unwrap().clone());
        sequence
    };
    let cases = [
        (
            edited(0, json!({})),
            CheckOutcome::Fail,
            "step \"after\": $.balance is another value (2 characters), not what was wanted (2 characters)",
        ),
        (edited(0, json!({"expectedStatus": 201})), CheckOutcome::Fail, "step \"login\": status 200, not 201"),
        (
            edited(0, json!({"body": "{\"user\": \"greedy\", \"password\": \"wrong\"}"})),
            CheckOutcome::Fail,
            "step \"login\": status 401, not 200",
        ),
        (
            edited(1, json!({"capture": [{"name": "before", "jsonPath": "$.credits"}]})),
            CheckOutcome::Fail,
            "step \"before\": $.credits finds no single value",
        ),
        (
            edited(1, json!({"expect": [{"jsonPath": "$.balance", "equals": "-1000"}]})),
            CheckOutcome::Fail,
            "characters), not \"-1000\"",
        ),
        (edited(2, json!({"url": "http://127.0.0.1:1/"})), CheckOutcome::Fail, "step \"deduct\": no answer"),
        (
            edited(2, json!({"body": "{{ unknown }}"})),
            CheckOutcome::Error,
            "step \"deduct\": template of body, line 1: undefined value",
        ),
        (
            edited(0, json!({"body": "{{ secret.other }}"})),
            CheckOutcome::Error,
            "step \"login\": template of body, line 1: undefined value",
        ),
    ];
    for (sequence, outcome, words) in cases {
        let result = measured(&world, sequence, json!({})).await;
        assert_eq!(result.outcome, outcome, "{result:?}");
        assert!(
            result.message.starts_with(words) || result.message.contains(words),
            "{} lacks {words}",
            result.message
        );
        for hidden in ["pass\"word", "-token", "\"user\""] {
            assert!(!result.message.contains(hidden), "{}", result.message);
        }
    }
    assert!(credits.lock().unwrap()["greedy-token"] < 40);
}

/// A template that cannot be rendered must not leave half a purchase behind: nothing of its own step is sent.
#[tokio::test]
async fn what_cannot_be_checked_is_not_sent() {
    let (world, (base, credits)) = (World::new().await, serve().await);
    world.mount(&mounts::secret("probe-user", "password"), "pass\"word");
    let mut sequence = purchase(&base, "carl");
    sequence["steps"][2]["expect"] = json!([{"jsonPath": "$.balance", "equals": "{{ befor - 1 }}"}]);
    let result = measured(&world, sequence, json!({})).await;
    assert_eq!(result.outcome, CheckOutcome::Error, "{result:?}");
    assert_eq!(credits.lock().unwrap()["carl-token"], 40);
}
