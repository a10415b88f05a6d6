//! Instant queries to Prometheus.
//!
//! An application that cannot be reached is a bad measurement; a Prometheus that cannot be reached is no measurement at
//! all.

use std::time::Duration;

use super::evaluator::{Measurement, Value};
use crate::{
    api::PrometheusCheck,
    runner::clients::http_probe::{Prober, body, cause, parse},
};

/// One instant query, and the one that counts its samples, both within `limit`.
pub async fn measure(prober: &Prober, check: &PrometheusCheck, limit: Duration) -> Measurement {
    let answered = tokio::time::timeout(limit, both(prober, check)).await;
    answered.unwrap_or_else(|_| {
        Measurement::Error(format!("Prometheus gave no answer within {} s", limit.as_secs_f64()).into())
    })
}

async fn both(prober: &Prober, check: &PrometheusCheck) -> Measurement {
    let samples = match &check.samples_query {
        None => None,
        Some(query) => match instant(prober, &check.url, query).await {
            Ok(text) => text.parse::<f64>().ok().filter(|n| n.is_finite()),
            Err(Measurement::NoData(_)) => Some(0.0),
            Err(other) => return other,
        },
    };
    match instant(prober, &check.url, &check.query).await {
        Ok(text) => Measurement::Value { value: Value::Number(text), samples },
        Err(other) => other,
    }
}

async fn instant(prober: &Prober, base: &str, query: &str) -> Result<String, Measurement> {
    let url = format!("{}/api/v1/query", base.trim_end_matches('/'));
    let error = |detail: String| Measurement::Error(format!("Prometheus {detail}").into());
    let url = reqwest::Url::parse_with_params(&url, [("query", query)]).map_err(|e| error(format!("url: {e}")))?;
    let answer = prober.client.get(url).send().await;
    let answer = answer.map_err(|e| error(format!("gave no answer: {}", cause(&e))))?;
    let status = answer.status().as_u16();
    let json = body(answer).await.map_err(|e| e.to_string()).and_then(|bytes| parse(&bytes));
    let json = json.map_err(|e| error(format!("status {status}: {e}")))?;
    if json["status"] != "success" {
        let error_text: String = json["error"].as_str().unwrap_or("no error text").chars().take(200).collect();
        return Err(error(format!("status {status}: {error_text}")));
    }
    let result = &json["data"]["result"];
    let value = match (json["data"]["resultType"].as_str(), result.as_array().map(Vec::as_slice)) {
        (Some("scalar"), Some([_, value])) => value,
        (Some("vector"), Some([])) => return Err(Measurement::NoData("the query has no result".into())),
        (Some("vector"), Some([one])) => &one["value"][1],
        (Some("vector"), Some(many)) => {
            return Err(error(format!("query has {} results; make it one number, for example with sum()", many.len())));
        }
        (kind, _) => return Err(error(format!("query gives a {}, not a number", kind.unwrap_or("result")))),
    };
    value.as_str().map(str::to_owned).ok_or_else(|| error("answer holds no value".to_owned()))
}
