//! Checks and probes: an application and a Prometheus that answer as configured, and the real database.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use axum::{
    Router,
    http::{StatusCode, Uri},
    routing::get,
};
use credit_migration::{
    api::{Check, CheckOutcome, Flag, Reason, Time, VersionProbe},
    runner::{
        checks::{Source, SourceContext, evaluator::CheckEvaluator},
        clients::http_probe::Prober,
        report::Progress,
    },
};
use serde_json::{Value, json};

use crate::harness::World;

/// Every tenth request is not answered.
async fn hangs_now_and_then() {
    static REQUESTS: AtomicU64 = AtomicU64::new(0);
    if REQUESTS.fetch_add(1, Ordering::SeqCst).is_multiple_of(10) {
        std::future::pending().await
    }
}

/// Serves on a port of its own; returns the base address.
async fn serve() -> String {
    let prometheus = |uri: Uri| async move {
        let result = match uri.query().unwrap() {
            "query=rate" => json!([{"metric": {}, "value": [1, "0.21"]}]),
            "query=count" => json!([{"metric": {}, "value": [1, "1204"]}]),
            "query=nan" => json!([{"metric": {}, "value": [1, "NaN"]}]),
            "query=many" => {
                json!([{"metric": {"a": "1"}, "value": [1, "1"]}, {"metric": {"a": "2"}, "value": [1, "1"]}])
            }
            _ => json!([]),
        };
        axum::Json(json!({"status": "success", "data": {"resultType": "vector", "result": result}}))
    };
    let version = || async { axum::Json(json!({"running": "v1", "contains": ["v1", "v2"], "users": 7})) };
    let router = Router::new()
        .route("/api/v1/query", get(prometheus))
        .route("/version", get(version))
        .route("/away", get(|| async { (StatusCode::FOUND, [("location", "/version")]) }))
        .route("/long", get(|| async { "x".repeat(2 << 20) }))
        .route("/hangs-now-and-then", get(hangs_now_and_then))
        .route("/slow", get(|| async { tokio::time::sleep(Duration::from_secs(5)).await }));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    base
}

#[tokio::test]
async fn every_source_is_measured() {
    let (world, base) = (World::new().await, serve().await);
    let http = |path: &str| json!({"url": format!("{base}{path}"), "timeout": "300ms"});
    let prometheus = |query: &str| json!({"url": base, "query": query, "samplesQuery": "count"});
    let sql = |query: &str| json!({"query": query});
    let cases = [
        (
            "sum",
            json!({"sql": sql("SELECT sum(balance) FROM user_credits"), "equals": "451500"}),
            CheckOutcome::Pass,
            "451500 = 451500",
        ),
        ("above", json!({"sql": sql("SELECT 11"), "max": "10"}), CheckOutcome::Fail, "11 > 10"),
        ("null", json!({"sql": sql("SELECT NULL"), "max": "10"}), CheckOutcome::NoData, "NULL"),
        (
            "write",
            json!({"sql": sql("DELETE FROM user_credits RETURNING 1"), "max": "10"}),
            CheckOutcome::Error,
            "25006",
        ),
        ("two", json!({"sql": sql("SELECT 1; SELECT 2"), "max": "10"}), CheckOutcome::Error, "more than one statement"),
        (
            "rows",
            json!({"sql": sql("SELECT 5, repeat('x', 1000), generate_series(1, 100000000)"), "max": "5"}),
            CheckOutcome::Pass,
            "5 <= 5",
        ),
        ("commit", json!({"sql": sql("COMMIT"), "max": "10"}), CheckOutcome::Error, "COMMIT"),
        ("answered", json!({"http": http("/version")}), CheckOutcome::Pass, "answered"),
        ("fast", json!({"http": http("/version"), "max": "250"}), CheckOutcome::Pass, "<= 250"),
        (
            "path",
            json!({"http": {"url": format!("{base}/version"), "jsonPath": "$.users"}, "min": "8"}),
            CheckOutcome::Fail,
            "7 < 8",
        ),
        (
            "no-path",
            json!({"http": {"url": format!("{base}/version"), "jsonPath": "$.other"}, "min": "8"}),
            CheckOutcome::NoData,
            "no single value",
        ),
        ("long", json!({"http": http("/long")}), CheckOutcome::Pass, "answered"),
        (
            "long-path",
            json!({"http": {"url": format!("{base}/long"), "jsonPath": "$.a"}, "min": "8"}),
            CheckOutcome::Error,
            "longer than 1048576 bytes",
        ),
        ("redirect", json!({"http": http("/away")}), CheckOutcome::Fail, "status 302, not 200"),
        (
            "p95",
            json!({"http": {"url": format!("{base}/version"), "percentile": 95}, "max": "250", "minimumSamples": 3}),
            CheckOutcome::Pass,
            "(3 samples)",
        ),
        (
            "p95-few",
            json!({"http": {"url": format!("{base}/version"), "percentile": 95}, "max": "250", "minimumSamples": 100}),
            CheckOutcome::NoData,
            "samples, at least 100 needed",
        ),
        (
            "p95-wrong",
            json!({"http": {"url": format!("{base}/away"), "percentile": 95}, "max": "250"}),
            CheckOutcome::Fail,
            "status 302, not 200",
        ),
        ("connection", json!({"connection": {}, "max": "0.95"}), CheckOutcome::Pass, "<= 0.95"),
        ("balances", json!({"balances": {}, "max": "10"}), CheckOutcome::NoData, "has no cutover"),
        (
            "statements",
            json!({"statements": {}, "max": "50"}),
            CheckOutcome::NoData,
            "next: put it into shared_preload_libraries",
        ),
        ("slow", json!({"http": http("/slow")}), CheckOutcome::Fail, "no answer within 0.3 s"),
        ("down", json!({"http": {"url": "http://127.0.0.1:1/"}}), CheckOutcome::Fail, "no answer"),
        (
            "rate",
            json!({"prometheus": prometheus("rate"), "max": "0.05", "minimumSamples": 100}),
            CheckOutcome::Fail,
            "0.21 > 0.05 (1204 samples)",
        ),
        (
            "few",
            json!({"prometheus": prometheus("rate"), "max": "0.05", "minimumSamples": 2000}),
            CheckOutcome::NoData,
            "1204 samples, at least 2000",
        ),
        ("empty", json!({"prometheus": prometheus("empty"), "max": "1"}), CheckOutcome::NoData, "no result"),
        ("nan", json!({"prometheus": prometheus("nan"), "max": "1"}), CheckOutcome::NoData, "NaN"),
        ("many", json!({"prometheus": prometheus("many"), "max": "1"}), CheckOutcome::Error, "2 results"),
        (
            "dead",
            json!({"prometheus": {"url": "http://127.0.0.1:1", "query": "x"}, "max": "1"}),
            CheckOutcome::Error,
            "no answer",
        ),
    ];
    let checks: Vec<Check> = cases
        .iter()
        .map(|(name, rest, ..)| {
            let mut check = rest.clone();
            check["name"] = json!(name);
            check["interval"] = json!("1s");
            serde_json::from_value(check).unwrap()
        })
        .collect();
    let mut with_the_controllers = checks.clone();
    with_the_controllers.push(serde_json::from_value(json!({"name": "job", "job": {"image": "i"}})).unwrap());
    let results = world.watched(&with_the_controllers, 3).await;
    let measured: Vec<_> = results.iter().map(|result| &result.name).collect();
    assert_eq!(measured, checks.iter().map(|check| &check.name).collect::<Vec<_>>(), "in the manifest's order");
    for ((_, _, outcome, words), result) in cases.into_iter().zip(&results) {
        assert_eq!(result.outcome, outcome, "{result:?}");
        assert!(result.message.contains(words), "{result:?}");
        assert_eq!(result.breached, outcome == CheckOutcome::Fail, "{result:?}");
    }
    assert_eq!(world.count("SELECT count(*) FROM user_credits").await, 300);
}

fn check(value: Value) -> Check {
    serde_json::from_value(value).unwrap()
}

#[tokio::test]
async fn what_was_not_answered_is_in_the_percentile() {
    let (world, base) = (World::new().await, serve().await);
    let http = json!({"url": format!("{base}/hangs-now-and-then"), "timeout": "300ms", "percentile": 95});
    let p95 = check(json!({"name": "p95", "http": http, "max": "250", "interval": "10ms", "minimumSamples": 15}));
    // The last one is answered.
    let results = world.watched(&[p95], 15).await;
    assert_eq!(results[0].outcome, CheckOutcome::Fail, "{results:?}");
    assert!(results[0].message.contains(" > 250 (1"), "{results:?}");
}

#[tokio::test]
async fn a_slow_query_delays_no_trigger() {
    let world = World::new().await;
    let context = world.context(&Progress::default());
    let source_context = SourceContext::new(&context).unwrap();
    let interval = Duration::from_secs(25);
    let long = check(json!({"name": "long", "sql": {"query": "SELECT pg_sleep(20)"}, "equals": ""}));
    let mut long_source = Source::new(&long, &source_context);
    let mut under_way = std::pin::pin!(long_source.measure(&long, interval, &source_context));
    for (query, outcome) in [("SELECT 1", CheckOutcome::Pass), ("SELECT 1 FROM pg_sleep(20)", CheckOutcome::Error)] {
        let trigger = check(json!({"name": "payment-processing", "sql": {"query": query}, "max": "1"}));
        let mut source = Source::new(&trigger, &source_context);
        for _ in 0..2 {
            let measured = tokio::select! {
                measured = source.measure(&trigger, interval, &source_context) => measured,
                other = &mut under_way => panic!("{other:?} first"),
            };
            assert_eq!(
                CheckEvaluator::new(&trigger, None).record(&measured, Time::UNIX_EPOCH).outcome,
                outcome,
                "{measured:?}"
            );
        }
    }
}

#[tokio::test]
async fn the_version_is_asked_for() {
    let (base, prober) = (serve().await, Prober::new().unwrap());
    let probe =
        |path: &str, json_path: &str| VersionProbe { url: format!("{base}{path}"), json_path: json_path.to_owned() };
    let flag = |from: &str, to: &str| -> Flag {
        serde_json::from_value(json!({"configMapKeyRef": {"name": "a", "key": "b"}, "from": from, "to": to})).unwrap()
    };
    let good = probe("/version", "$.running");
    let readiness = prober.ready_to_switch(&good, &flag("v1", "v2")).await.unwrap();
    assert_eq!(readiness.holds_both_versions, Some(true));
    assert_eq!(readiness.summary(), "the application runs v1; it holds both versions");
    for (probe, from, to, words) in [
        (&good, "v0", "v2", "runs version \"v1\", spec.application.flag.from is \"v0\""),
        (&good, "v1", "v3", "holds versions v1, v2, not v3"),
        (&probe("/away", "$.running"), "v1", "v2", "answered 302"),
        (&probe("/version", "$.nothing"), "v1", "v2", "no single text"),
        (&probe("/version", "$["), "v1", "v2", "jsonPath"),
    ] {
        let failure = prober.ready_to_switch(probe, &flag(from, to)).await.unwrap_err();
        assert_eq!(failure.reason, Reason::ProbeFailed);
        assert!(failure.message.contains(words), "{failure}");
    }
}
