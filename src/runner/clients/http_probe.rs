//! The client of probes and checks, and the application's version.
//!
//! Redirects are not followed: they would lead to an address that the spec does not name. Texts of errors never hold
//! the URL, which may carry a key in its query.

use std::{error::Error as _, time::Duration};

use reqwest::{Certificate, Client, Response, redirect::Policy};
use serde_json::Value as Json;
use serde_json_path::JsonPath;

use crate::{
    api::{Flag, Reason, VersionProbe},
    runner::Failure,
    shared::quoted::Quoted,
};

/// Longest answer that is read.
const MAX_BODY_BYTES: usize = 1 << 20;
/// Longest wait for Prometheus and for a version.
pub(in crate::runner) const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// Sends the requests of probes and checks.
#[derive(Clone)]
pub struct Prober {
    pub(in crate::runner) client: Client,
}

/// What the application says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionAnswer {
    /// Running version.
    pub version: String,
    /// Versions that its image holds, if it says so.
    pub contains: Option<Vec<String>>,
}

/// That the application can switch to the new version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SwitchReadiness {
    /// Running version: the flag's old one.
    pub running: String,
    /// It says that it holds the old and the new version; `None` if it does not say what it holds.
    pub holds_both_versions: Option<bool>,
}

impl SwitchReadiness {
    /// In one line.
    pub fn summary(&self) -> String {
        let held = match self.holds_both_versions {
            Some(true) => "it holds both versions",
            Some(false) => "it does not hold both versions",
            None => "it does not say which versions it holds (list `contains` of its answer)",
        };
        format!("the application runs {}; {held}", self.running)
    }
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
            .map_err(|e| failed(format!("versionProbe.jsonPath {}: {e}", Quoted(&probe.json_path))))?;
        let answer = self.client.get(&probe.url).timeout(PROBE_TIMEOUT).send().await;
        let answer = answer.map_err(|e| failed(format!("the version probe got no answer: {}", cause(&e))))?;
        let status = answer.status().as_u16();
        if status != 200 {
            return Err(failed(format!("the version probe answered {status}, not 200")));
        }
        let json = body(answer).await.map_err(|e| e.to_string()).and_then(|bytes| parse(&bytes));
        let json = json.map_err(|e| failed(format!("the version probe {e}")))?;
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
    pub async fn ready_to_switch(&self, probe: &VersionProbe, flag: &Flag) -> Result<SwitchReadiness, Failure> {
        let answer = self.version(probe).await?;
        if answer.version != flag.from {
            return Err(Failure::new(
                Reason::ProbeFailed,
                format!(
                    "the application runs version {}, spec.application.flag.from is {}; next: correct one of them",
                    Quoted(&answer.version),
                    Quoted(&flag.from)
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
        Ok(SwitchReadiness { running: answer.version, holds_both_versions: answer.contains.map(|_| true) })
    }
}

/// Why a body is not there.
#[derive(Debug, thiserror::Error)]
pub(in crate::runner) enum BodyError {
    /// The application's doing.
    #[error("the answer broke off: {0}")]
    Broken(String),
    /// More than is read.
    #[error("the answer is longer than {MAX_BODY_BYTES} bytes")]
    TooLong,
}

/// The body of an answer.
pub(in crate::runner) async fn body(mut answer: Response) -> Result<Vec<u8>, BodyError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(|e| BodyError::Broken(cause(&e)))? {
        if bytes.len() + chunk.len() > MAX_BODY_BYTES {
            return Err(BodyError::TooLong);
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// Reads a body to its end and keeps nothing of it, however long it is.
pub(in crate::runner) async fn discard_body(mut answer: Response) -> Result<(), BodyError> {
    while answer.chunk().await.map_err(|e| BodyError::Broken(cause(&e)))?.is_some() {}
    Ok(())
}

pub(in crate::runner) fn parse(bytes: &[u8]) -> Result<Json, String> {
    serde_json::from_slice(bytes).map_err(|_| "the answer is no JSON".to_owned())
}

/// A client without redirects and proxies, which trusts `authorities`, or those of the system.
///
/// # Errors
/// `Internal` if TLS cannot be set up.
pub(in crate::runner) fn client(authorities: Option<Vec<Certificate>>) -> Result<Client, Failure> {
    let mut builder = Client::builder()
        .redirect(Policy::none())
        .no_proxy()
        .connect_timeout(PROBE_TIMEOUT)
        // A kept connection would go on to an old pod after a switch.
        .pool_max_idle_per_host(0)
        .user_agent("credit-migration");
    if let Some(authorities) = authorities {
        builder = builder.tls_certs_only(authorities);
    }
    builder.build().map_err(|e| Failure::new(Reason::Internal, format!("HTTP client: {}", cause(&e))))
}

/// The innermost cause. The outer ones repeat the URL.
pub(in crate::runner) fn cause(error: &reqwest::Error) -> String {
    let mut innermost: Option<&(dyn std::error::Error + 'static)> = error.source();
    while let Some(next) = innermost.and_then(std::error::Error::source) {
        innermost = Some(next);
    }
    innermost.map_or_else(|| "the request failed".to_owned(), ToString::to_string)
}
