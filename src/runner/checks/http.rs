//! Requests to the application, and the percentile of their times.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use serde_json::Value as Json;
use serde_json_path::JsonPath;

use super::evaluator::{Measurement, Value};
use crate::{
    api::{HttpCheck, HttpMethod},
    runner::clients::http_probe::{BodyError, Prober, body, cause, discard_body, parse},
};

/// Times that a percentile is taken of.
const MAX_RESPONSE_TIMES: usize = 100;

/// The last times to an answer, in milliseconds.
#[derive(Clone, Debug, Default)]
pub struct ResponseTimes(VecDeque<f64>);

impl ResponseTimes {
    /// Takes one more in; the oldest of more than 100 goes.
    pub fn add(&mut self, milliseconds: f64) {
        self.0.push_back(milliseconds);
        while self.0.len() > MAX_RESPONSE_TIMES {
            self.0.pop_front();
        }
    }

    /// How many there are.
    pub fn samples(&self) -> f64 {
        f64::from(u32::try_from(self.0.len()).unwrap_or(u32::MAX))
    }

    /// The smallest of the times that `percent` of them do not exceed (nearest rank). `None` without any.
    pub fn percentile(&self, percent: u8) -> Option<f64> {
        let mut sorted: Vec<f64> = self.0.iter().copied().collect();
        sorted.sort_by(f64::total_cmp);
        let rank = (usize::from(percent) * sorted.len()).div_ceil(100).max(1);
        sorted.get(rank - 1).copied()
    }
}

/// One request.
pub(super) struct HttpRequest<'a> {
    pub method: HttpMethod,
    pub url: &'a str,
    pub headers: &'a [(String, String)],
    pub body: Option<String>,
    pub timeout: Duration,
    /// Whether the answer's body is used.
    pub wants_body: bool,
}

/// The whole answer; without a body unless it is wanted.
pub(super) struct HttpAnswer {
    pub status: u16,
    pub bytes: Vec<u8>,
    pub milliseconds: f64,
}

/// Sends a request and reads the answer to its end. `Err` is `Bad` without an answer, `Error` if there is nothing to
/// send.
pub(super) async fn send(prober: &Prober, request: HttpRequest<'_>) -> Result<HttpAnswer, Measurement> {
    let HttpRequest { method, url, headers, body: text, timeout, wants_body } = request;
    let client = &prober.client;
    let mut builder = match method {
        HttpMethod::Get => client.get(url),
        HttpMethod::Post => client.post(url),
        HttpMethod::Put => client.put(url),
        HttpMethod::Patch => client.patch(url),
        HttpMethod::Delete => client.delete(url),
    };
    if let Some(text) = text {
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type")) {
            builder = builder.header("content-type", "application/json");
        }
        builder = builder.body(text);
    }
    for (name, value) in headers {
        builder = builder.header(name, value);
    }
    let unusable = |e: reqwest::Error| Measurement::Error(format!("the request cannot be made: {}", cause(&e)).into());
    let request = builder.timeout(timeout).build().map_err(unusable)?;
    let started = Instant::now();
    let answer = client.execute(request).await.map_err(|e| match e.is_timeout() {
        true => Measurement::Failed(format!("no answer within {} s", timeout.as_secs_f64())),
        false => Measurement::Failed(format!("no answer: {}", cause(&e))),
    })?;
    let status = answer.status().as_u16();
    // The answer counts when it is there as a whole.
    let read = if wants_body { body(answer).await } else { discard_body(answer).await.map(|()| Vec::new()) };
    let bytes = read.map_err(|why| match why {
        BodyError::Broken(_) => Measurement::Failed(why.to_string()),
        // That we do not read as much is not the application's fault.
        BodyError::TooLong => Measurement::Error(why.to_string().into()),
    })?;
    Ok(HttpAnswer { status, bytes, milliseconds: started.elapsed().as_secs_f64() * 1000.0 })
}

/// One request of an `http` check. The value is what `jsonPath` finds, the percentile of the last times, or the
/// milliseconds to the answer if `wants_time`.
pub async fn measure(prober: &Prober, check: &HttpCheck, wants_time: bool, times: &mut ResponseTimes) -> Measurement {
    let path = match check.json_path.as_deref().map(JsonPath::parse).transpose() {
        Ok(path) => path,
        Err(error) => return Measurement::Error(format!("jsonPath: {error}").into()),
    };
    let request = HttpRequest {
        method: check.method,
        url: &check.url,
        headers: &[],
        body: check.body.clone(),
        timeout: check.timeout.into(),
        wants_body: path.is_some(),
    };
    let answer = match send(prober, request).await {
        Ok(answer) => answer,
        Err(other) => {
            if matches!(other, Measurement::Failed(_)) {
                // Otherwise the percentile would be that of the requests that went well. A refused connection, which
                // takes no time, is not a fast answer.
                times.add(Duration::from(check.timeout).as_secs_f64() * 1000.0);
            }
            return other;
        }
    };
    if answer.status != check.expected_status {
        return Measurement::Failed(format!("status {}, not {}", answer.status, check.expected_status));
    }
    let milliseconds = |number: f64| Value::Number(format!("{number:.1}"));
    if let Some(percent) = check.percentile {
        times.add(answer.milliseconds);
        let value = milliseconds(times.percentile(percent).unwrap_or(answer.milliseconds));
        return Measurement::Value { value, samples: Some(times.samples()) };
    }
    let Some(path) = path else {
        let value = if wants_time { milliseconds(answer.milliseconds) } else { Value::Answered };
        return Measurement::Value { value, samples: None };
    };
    let json = match parse(&answer.bytes) {
        Ok(json) => json,
        Err(detail) => return Measurement::Failed(detail),
    };
    match path.query(&json).exactly_one() {
        Ok(Json::String(text)) => Measurement::Value { value: Value::of_text(text), samples: None },
        Ok(value @ (Json::Number(_) | Json::Bool(_))) => {
            Measurement::Value { value: Value::of_text(&value.to_string()), samples: None }
        }
        _ => Measurement::NoData("jsonPath finds no single value in the answer".into()),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::of_none(0, 95, None)]
    #[case::of_one(1, 95, Some(1.0))]
    #[case::smallest(20, 1, Some(1.0))]
    #[case::just_below(20, 95, Some(19.0))]
    #[case::just_above(20, 96, Some(20.0))]
    #[case::median_of_even(4, 50, Some(2.0))]
    #[case::largest(100, 100, Some(100.0))]
    #[case::only_the_last_hundred(150, 50, Some(100.0))]
    fn nearest_rank(#[case] n: u32, #[case] percent: u8, #[case] want: Option<f64>) {
        let mut times = ResponseTimes::default();
        // Ascending: of 150 the last hundred are 51 to 150.
        (1..=n).for_each(|time| times.add(f64::from(time)));
        assert_eq!(times.percentile(percent), want);
        assert!(times.samples() <= 100.0);
    }

    #[test]
    fn the_order_of_arrival_does_not_matter() {
        let mut times = ResponseTimes::default();
        [9.0, 1.0, 5.0].into_iter().for_each(|time| times.add(time));
        assert_eq!([1, 34, 67].map(|percent| times.percentile(percent)), [Some(1.0), Some(5.0), Some(9.0)]);
    }
}
