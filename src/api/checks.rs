//! Checks: what is measured, how often, against which limit, and what a breach does.

use kube::{KubeSchema, core::Duration};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Time, WorkloadRef};

/// One measurement, repeated, with a limit. Exactly one source is set.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[x_kube(
    validation = Rule::new("[has(self.sql), has(self.http), has(self.prometheus), has(self.workload)].filter(x, x).size() == 1")
        .message("exactly one of sql, http, prometheus and workload must be set"),
    validation = Rule::new("has(self.http) || has(self.workload) || has(self.max) || has(self.min) || has(self.equals)")
        .message("a limit is missing: set max, min or equals, for example max: \"0.05\""),
    validation = Rule::new("!has(self.minimumSamples) || (has(self.prometheus) && has(self.prometheus.samplesQuery))")
        .message("minimumSamples needs prometheus.samplesQuery, the query that counts the samples"),
    validation = Rule::new("!has(self.failures) || self.failures.count <= self.failures.of")
        .message("failures.count must be at most failures.of")
)]
#[serde(rename_all = "camelCase")]
pub struct Check {
    /// Name, unique in its stage; appears in conditions, events and metrics.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// A query whose first column of its first row is the value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sql: Option<SqlCheck>,
    /// A request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpCheck>,
    /// An instant query.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prometheus: Option<PrometheusCheck>,
    /// A workload whose replicas must all be available.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<WorkloadRef>,
    /// Time between two measurements.
    #[serde(default = "thirty_seconds")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s')").message("interval must be at least 1s, for example 30s"))]
    pub interval: Duration,
    /// Largest good value, a decimal number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^-?[0-9]+(\.[0-9]+)?$"))]
    pub max: Option<String>,
    /// Smallest good value, a decimal number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^-?[0-9]+(\.[0-9]+)?$"))]
    pub min: Option<String>,
    /// The only good value: a decimal number, or a text for `sql` and `http` with `jsonPath`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub equals: Option<String>,
    /// How many of the last measurements must fail before the limit counts as breached.
    #[serde(default)]
    pub failures: Failures,
    /// Fewer samples than this are NoData, which is never success.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum_samples: Option<u64>,
    /// What a breach does.
    #[serde(default)]
    pub on_breach: OnBreach,
}

/// N of M.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct Failures {
    /// Failed measurements that make a breach.
    #[schemars(range(min = 1, max = 100))]
    pub count: u32,
    /// Out of this many last measurements.
    #[schemars(range(min = 1, max = 100))]
    pub of: u32,
}

impl Default for Failures {
    fn default() -> Self {
        Self { count: 3, of: 3 }
    }
}

/// What a breach does.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum OnBreach {
    /// Starts the rollback (with `rollback.policy: Automatic`).
    Rollback,
    /// The stage does not end before the check passes, or a person decides.
    #[default]
    Hold,
    /// An event only.
    Warn,
}

/// A query on the migrated database, run read-only.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct SqlCheck {
    /// The query.
    pub query: String,
}

/// A request to the application.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct HttpCheck {
    /// Address, called from the migration's namespace without following redirects.
    #[x_kube(validation = Rule::new("self.startsWith('http://') || self.startsWith('https://')").message("url must begin with http:// or https://"))]
    pub url: String,
    /// Method.
    #[serde(default)]
    pub method: HttpMethod,
    /// JSON body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// Status code that counts as an answer; any other fails.
    #[serde(default = "ok")]
    pub expected_status: u16,
    /// JSONPath to the value in the answer; without it the value is the time to the answer in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub json_path: Option<String>,
    /// No answer within this time fails.
    #[serde(default = "five_seconds")]
    pub timeout: Duration,
}

/// HTTP method of a check.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "UPPERCASE")]
pub enum HttpMethod {
    /// GET.
    #[default]
    Get,
    /// POST.
    Post,
}

/// An instant query to a Prometheus server.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PrometheusCheck {
    /// Base address of the server.
    #[x_kube(validation = Rule::new("self.startsWith('http://') || self.startsWith('https://')").message("url must begin with http:// or https://"))]
    pub url: String,
    /// Query whose result is one number; an empty result is NoData.
    pub query: String,
    /// Query that counts the samples behind it, for `minimumSamples`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub samples_query: Option<String>,
}

/// Outcome of one measurement.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Within the limit.
    Pass,
    /// Beyond the limit.
    Fail,
    /// Could not be measured.
    Error,
    /// Measured, but there was nothing, or too few samples. Never success.
    NoData,
}

/// Where a check stands.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CheckResult {
    /// Name of the check.
    pub name: String,
    /// Last outcome.
    pub outcome: Outcome,
    /// Failed measurements among the last `failures.of`.
    pub failed: u32,
    /// The last `failures.of` measurements of a `workload` check, oldest first: `.` good, `x` failed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub recent: String,
    /// Measurements so far.
    pub measured: u64,
    /// Whether `failures.count` was reached at any time.
    pub breached: bool,
    /// Observed value and limit in words: `0.21 > 0.05, 3 of 3 samples (1204 requests)`.
    pub message: String,
    /// Time of the last measurement.
    pub at: Time,
}

fn ok() -> u16 {
    200
}
fn five_seconds() -> Duration {
    std::time::Duration::from_secs(5).into()
}
fn thirty_seconds() -> Duration {
    std::time::Duration::from_secs(30).into()
}
