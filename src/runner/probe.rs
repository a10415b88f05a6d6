//! Measurements: requests to the application, queries to Prometheus and to the migrated database.
//!
//! An application that cannot be reached is a bad measurement; a Prometheus or a database that cannot be reached is no
//! measurement at all. Redirects are not followed: they would lead to an address that nobody named. Texts of errors
//! never hold the URL, which may carry a key in its query.

use std::{
    error::Error as _,
    time::{Duration, Instant},
};

use reqwest::{Certificate, Client, Response, redirect::Policy};
use serde_json::Value as Json;
use serde_json_path::JsonPath;

use super::{
    Failure,
    judge::{Measurement, Value},
    postgres::{Target, classify},
    sqltext,
};
use crate::api::{Flag, HttpCheck, HttpMethod, PrometheusCheck, Reason, SqlCheck, VersionProbe};

/// Longest answer that is read.
const MAX_BODY: usize = 1 << 20;
/// Longest wait for Prometheus and for a version.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Sends the requests of probes and checks.
#[derive(Clone)]
pub struct Prober {
    client: Client,
}

/// What the application says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionAnswer {
    /// Running version.
    pub version: String,
    /// Versions that its image holds, if it says so.
    pub contains: Option<Vec<String>>,
}

impl Prober {
    /// A client without redirects and proxies.
    ///
    /// # Errors
    /// `Internal` if TLS cannot be set up.
    pub fn new() -> Result<Self, Failure> {
        Ok(Self { client: client(None)? })
    }

    /// Asks the application for its version.
    ///
    /// # Errors
    /// `ProbeFailed` with what was answered instead.
    pub async fn version(&self, probe: &VersionProbe) -> Result<VersionAnswer, Failure> {
        let failed = |what: String| {
            Failure::new(
                Reason::ProbeFailed,
                format!("{what}; next: check spec.application.versionProbe, the Service and NetworkPolicy"),
            )
        };
        let path = JsonPath::parse(&probe.json_path)
            .map_err(|e| failed(format!("versionProbe.jsonPath {:?}: {e}", probe.json_path)))?;
        let answer = self.client.get(&probe.url).timeout(TIMEOUT).send().await;
        let answer = answer.map_err(|e| failed(format!("the version probe got no answer: {}", cause(&e))))?;
        let status = answer.status().as_u16();
        if status != 200 {
            return Err(failed(format!("the version probe answered {status}, not 200")));
        }
        let json =
            body(answer).await.and_then(|bytes| parse(&bytes)).map_err(|e| failed(format!("the version probe {e}")))?;
        let version = match path.query(&json).exactly_one() {
            Ok(Json::String(text)) => text.clone(),
            Ok(value @ (Json::Number(_) | Json::Bool(_))) => value.to_string(),
            Ok(_) | Err(_) => return Err(failed(format!("{} finds no single text in the answer", probe.json_path))),
        };
        let contains = json
            .get("contains")
            .and_then(Json::as_array)
            .map(|list| list.iter().filter_map(|item| item.as_str().map(str::to_owned)).collect());
        Ok(VersionAnswer { version: version.chars().take(100).collect(), contains })
    }

    /// Whether the application runs the flag's old version and, if it says what it holds, can run the new one.
    ///
    /// # Errors
    /// `ProbeFailed`.
    pub async fn ready_to_switch(&self, probe: &VersionProbe, flag: &Flag) -> Result<String, Failure> {
        let answer = self.version(probe).await?;
        if answer.version != flag.from {
            return Err(Failure::new(
                Reason::ProbeFailed,
                format!(
                    "the application runs version {:?}, spec.application.flag.from is {:?}; next: correct one of them",
                    answer.version, flag.from
                ),
            ));
        }
        if let Some(contains) = &answer.contains
            && let Some(missing) = [&flag.from, &flag.to].into_iter().find(|version| !contains.contains(version))
        {
            return Err(Failure::new(
                Reason::ProbeFailed,
                format!(
                    "the application holds versions {}, not {missing}; next: deploy an image that holds both",
                    contains.join(", ")
                ),
            ));
        }
        Ok(answer.version)
    }

    /// One request to the application. The value is what `jsonPath` finds, or the milliseconds to the answer.
    pub async fn http(&self, check: &HttpCheck, wants_time: bool) -> Measurement {
        let path = match check.json_path.as_deref().map(JsonPath::parse).transpose() {
            Ok(path) => path,
            Err(error) => return Measurement::Error(format!("jsonPath: {error}")),
        };
        let mut request = match check.method {
            HttpMethod::Get => self.client.get(&check.url),
            HttpMethod::Post => self.client.post(&check.url),
            HttpMethod::Put => self.client.put(&check.url),
            HttpMethod::Patch => self.client.patch(&check.url),
            HttpMethod::Delete => self.client.delete(&check.url),
        };
        let limit = Duration::from(check.timeout);
        if let Some(text) = &check.body {
            request = request.header("content-type", "application/json").body(text.clone());
        }
        let request = match request.timeout(limit).build() {
            Ok(request) => request,
            Err(error) => return Measurement::Error(format!("the request cannot be made: {}", cause(&error))),
        };
        let begun = Instant::now();
        let answer = match self.client.execute(request).await {
            Ok(answer) => answer,
            Err(error) if error.is_timeout() => return Measurement::Bad(format!("no answer within {limit:?}")),
            Err(error) => return Measurement::Bad(format!("no answer: {}", cause(&error))),
        };
        let status = answer.status().as_u16();
        // The answer counts when it is there as a whole.
        let bytes = match body(answer).await {
            Ok(bytes) => bytes,
            Err(words) => return Measurement::Bad(words),
        };
        let milliseconds = begun.elapsed().as_secs_f64() * 1000.0;
        if status != check.expected_status {
            return Measurement::Bad(format!("status {status}, not {}", check.expected_status));
        }
        let Some(path) = path else {
            let value = if wants_time { Value::Number(format!("{milliseconds:.1}")) } else { Value::Answered };
            return Measurement::Value { value, samples: None };
        };
        let json = match parse(&bytes) {
            Ok(json) => json,
            Err(words) => return Measurement::Bad(words),
        };
        match path.query(&json).exactly_one() {
            Ok(Json::String(text)) => Measurement::Value { value: Value::of_text(text), samples: None },
            Ok(value @ (Json::Number(_) | Json::Bool(_))) => {
                Measurement::Value { value: Value::of_text(&value.to_string()), samples: None }
            }
            _ => Measurement::Nothing("jsonPath finds no single value in the answer".to_owned()),
        }
    }

    /// One instant query, and the one that counts its samples.
    pub async fn prometheus(&self, check: &PrometheusCheck) -> Measurement {
        let samples = match &check.samples_query {
            None => None,
            Some(query) => match self.instant(&check.url, query).await {
                Ok(text) => text.parse::<f64>().ok().filter(|n| n.is_finite()),
                Err(Measurement::Nothing(_)) => Some(0.0),
                Err(other) => return other,
            },
        };
        match self.instant(&check.url, &check.query).await {
            Ok(text) => Measurement::Value { value: Value::Number(text), samples },
            Err(other) => other,
        }
    }

    async fn instant(&self, base: &str, query: &str) -> Result<String, Measurement> {
        let url = format!("{}/api/v1/query", base.trim_end_matches('/'));
        let error = |words: String| Measurement::Error(format!("Prometheus {words}"));
        let url = reqwest::Url::parse_with_params(&url, [("query", query)]).map_err(|e| error(format!("url: {e}")))?;
        let answer = self.client.get(url).timeout(TIMEOUT).send().await;
        let answer = answer.map_err(|e| error(format!("gave no answer: {}", cause(&e))))?;
        let status = answer.status().as_u16();
        let json = body(answer).await.and_then(|bytes| parse(&bytes));
        let json = json.map_err(|e| error(format!("status {status}: {e}")))?;
        if json["status"] != "success" {
            let told: String = json["error"].as_str().unwrap_or("no error text").chars().take(200).collect();
            return Err(error(format!("status {status}: {told}")));
        }
        let result = &json["data"]["result"];
        let value = match (json["data"]["resultType"].as_str(), result.as_array().map(Vec::as_slice)) {
            (Some("scalar"), Some([_, value])) => value,
            (Some("vector"), Some([])) => return Err(Measurement::Nothing("the query has no result".to_owned())),
            (Some("vector"), Some([one])) => &one["value"][1],
            (Some("vector"), Some(many)) => {
                return Err(error(format!(
                    "query has {} results; make it one number, for example with sum()",
                    many.len()
                )));
            }
            (kind, _) => return Err(error(format!("query gives a {}, not a number", kind.unwrap_or("result")))),
        };
        value.as_str().map(str::to_owned).ok_or_else(|| error("answer holds no value".to_owned()))
    }
}

/// Runs queries of checks, each in a read-only transaction, over one connection that is made again when it is lost.
pub struct SqlProber {
    target: Result<Target, Failure>,
    client: Option<tokio_postgres::Client>,
}

impl SqlProber {
    /// Connects at the first query.
    pub fn new(target: Result<Target, Failure>) -> Self {
        Self { target, client: None }
    }

    /// First column of the first row.
    pub async fn measure(&mut self, check: &SqlCheck, limit: Duration) -> Measurement {
        match tokio::time::timeout(limit + TIMEOUT, self.first_value(check, limit)).await {
            Ok(Ok(Some(text))) => Measurement::Value { value: Value::of_text(&text), samples: None },
            Ok(Ok(None)) => Measurement::Nothing("the query has no row, or NULL in its first column".to_owned()),
            Ok(Err(failure)) => {
                self.client = None;
                Measurement::Error(failure.message)
            }
            Err(_) => {
                self.client = None;
                Measurement::Error(format!("no answer of the database within {:?}", limit + TIMEOUT))
            }
        }
    }

    async fn first_value(&mut self, check: &SqlCheck, limit: Duration) -> Result<Option<String>, Failure> {
        let refused = |what: &str| Failure::new(Reason::SqlSyntaxError, format!("query: {what}"));
        match sqltext::read(&check.query) {
            Ok(statements) if statements.len() == 1 => {}
            Ok(_) => return Err(refused("more than one statement")),
            // What only our parser does not know may still be good; the server will tell.
            Err(problems) => {
                if let Some(problem) = problems.iter().find(|p| p.reason != Reason::SqlSyntaxError) {
                    return Err(refused(&problem.message));
                }
            }
        }
        if self.client.as_ref().is_none_or(tokio_postgres::Client::is_closed) {
            self.client = Some(self.target.clone()?.connect("checks").await?);
        }
        let Some(client) = &self.client else { return Ok(None) };
        let begin = format!(
            "BEGIN READ ONLY; SET LOCAL statement_timeout = {}; SET LOCAL lock_timeout = 1000",
            limit.as_millis()
        );
        client.batch_execute(&begin).await.map_err(|e| classify(&e))?;
        let rows = client.simple_query(&check.query).await.map_err(|e| classify(&e))?;
        client.batch_execute("ROLLBACK").await.map_err(|e| classify(&e))?;
        Ok(rows
            .iter()
            .find_map(|message| match message {
                tokio_postgres::SimpleQueryMessage::Row(row) => Some(row.try_get(0).ok().flatten().map(str::to_owned)),
                _ => None,
            })
            .flatten())
    }
}

async fn body(mut answer: Response) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(|e| format!("the answer broke off: {}", cause(&e)))? {
        if bytes.len() + chunk.len() > MAX_BODY {
            return Err(format!("the answer is longer than {MAX_BODY} bytes"));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

fn parse(bytes: &[u8]) -> Result<Json, String> {
    serde_json::from_slice(bytes).map_err(|_| "the answer is no JSON".to_owned())
}

/// A client without redirects and proxies, which trusts `authorities`, or those of the system.
///
/// # Errors
/// `Internal` if TLS cannot be set up.
pub(super) fn client(authorities: Option<Vec<Certificate>>) -> Result<Client, Failure> {
    let mut builder = Client::builder()
        .redirect(Policy::none())
        .no_proxy()
        .connect_timeout(TIMEOUT)
        // A kept connection would go on to an old pod after a switch.
        .pool_max_idle_per_host(0)
        .user_agent("credit-migration");
    if let Some(authorities) = authorities {
        builder = builder.tls_certs_only(authorities);
    }
    builder.build().map_err(|e| Failure::new(Reason::Internal, format!("HTTP client: {}", cause(&e))))
}

/// The innermost cause. The outer ones repeat the URL.
pub(super) fn cause(error: &reqwest::Error) -> String {
    let mut innermost: Option<&(dyn std::error::Error + 'static)> = error.source();
    while let Some(next) = innermost.and_then(std::error::Error::source) {
        innermost = Some(next);
    }
    innermost.map_or_else(|| "the request failed".to_owned(), ToString::to_string)
}
