//! Sources of checks: what is measured.

use std::collections::BTreeMap;

use kube::{KubeSchema, core::Duration};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::{NameRef, WorkloadRef};

/// A query on the migrated database, run read-only.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct SqlCheck {
    /// The query.
    pub query: String,
}

/// A request to the application. Any status other than `expectedStatus`, or no response within `timeout`, fails.
///
/// The value is the one at `jsonPath` in the response; with `percentile` that percentile of the last response times, in
/// milliseconds; otherwise the response time in milliseconds, if there is a limit. Without any of them it passes if
/// there is a response.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[x_kube(
    validation = Rule::new("!has(self.percentile) || !has(self.jsonPath)")
        .message("percentile is about response times, jsonPath about a value of the response: set one of them")
)]
#[serde(rename_all = "camelCase")]
pub struct HttpCheck {
    /// Address, called from the migration's namespace without following redirects.
    #[x_kube(
        validation = Rule::new("self.startsWith('http://') || self.startsWith('https://')")
            .message("url must start with http:// or https://")
    )]
    pub url: String,
    /// Method.
    #[serde(default)]
    pub method: HttpMethod,
    /// JSON body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// Expected status code; any other fails.
    #[serde(default = "ok")]
    #[schemars(range(min = 100, max = 599))]
    pub expected_status: u16,
    /// JSONPath (RFC 9535) of the value in the response, for example `$.balance`. Needs `max`, `min` or `equals`.
    /// Without it the value is the response time in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub json_path: Option<String>,
    /// No response within this time fails.
    #[serde(default = "five_seconds")]
    #[x_kube(
        validation = Rule::new("duration(self) > duration('0s') && duration(self) <= duration('1m')")
            .message("timeout must be more than 0s and at most 1m, for example 5s")
    )]
    pub timeout: Duration,
    /// The value is this percentile of the last 100 response times, in milliseconds: 95 for p95. Needs a limit, for
    /// example `max: "100"`. Cannot be combined with `jsonPath`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub percentile: Option<u8>,
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
    /// PUT.
    Put,
    /// PATCH.
    Patch,
    /// DELETE.
    Delete,
}

/// Consecutive requests. Every response must be as expected. The value is their total time in milliseconds.
///
/// `url`, `headers`, `body` and `equals` are MiniJinja templates: `{{ NAME }}` is a value that an earlier step has
/// captured, `{{ secret.KEY }}` a key of `secretRef`.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct SequenceCheck {
    /// Secret with credentials, for `{{ secret.KEY }}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<NameRef>,
    /// The requests. `url`, `headers`, `body` and `equals` are MiniJinja templates: `{{ NAME }}` is a value that an
    /// earlier step has captured, `{{ secret.KEY }}` a key of `secretRef`.
    #[schemars(length(min = 1, max = 16))]
    pub steps: Vec<HttpStep>,
}

/// One request of a sequence.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct HttpStep {
    /// Name; part of messages.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Address, called from the migration's namespace without following redirects.
    #[schemars(length(max = 2048))]
    #[x_kube(
        validation = Rule::new("self.startsWith('http://') || self.startsWith('https://')")
            .message("url must start with http:// or https://")
    )]
    pub url: String,
    /// Method.
    #[serde(default)]
    pub method: HttpMethod,
    /// Headers.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub headers: BTreeMap<String, String>,
    /// JSON body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// Expected status code; any other fails.
    #[serde(default = "ok")]
    #[schemars(range(min = 100, max = 599))]
    pub expected_status: u16,
    /// Values that the response must have.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub expect: Vec<Expectation>,
    /// Values that later steps use, as `{{ NAME }}`.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub capture: Vec<Capture>,
    /// No response within this time fails.
    #[serde(default = "five_seconds")]
    #[x_kube(
        validation = Rule::new("duration(self) > duration('0s') && duration(self) <= duration('1m')")
            .message("timeout must be more than 0s and at most 1m, for example 5s")
    )]
    pub timeout: Duration,
}

/// A value that a response must have.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Expectation {
    /// JSONPath (RFC 9535) of one value.
    #[schemars(length(min = 1, max = 256))]
    pub json_path: String,
    /// Expected value; any value suffices when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub equals: Option<String>,
}

/// A value that later steps use.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Capture {
    /// Its name in these steps.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z_][a-zA-Z0-9_]*$"))]
    pub name: String,
    /// JSONPath (RFC 9535) of one value.
    #[schemars(length(min = 1, max = 256))]
    pub json_path: String,
}

/// Balances compared with those of the cutover and explained by the transactions since.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct BalancesCheck {
    /// `Users`: the value is the number of users whose balance differs from that of the cutover plus their transactions
    /// since. `Total`: the value is the difference between the sum of balances and that of the cutover, in percent.
    #[serde(default)]
    pub compare: BalancesComparison,
}

/// What is compared.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum BalancesComparison {
    /// Each user. The value is the number of users whose balance differs from that of the cutover plus their
    /// transactions since.
    #[default]
    Users,
    /// The sum. The value is the difference between the sum of balances and that of the cutover, in percent.
    Total,
}

/// Log lines of a workload's pods. The value is the number of matching lines since the last measurement; samples are
/// all lines.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct LogsCheck {
    /// The workload.
    pub workload: WorkloadRef,
    /// Container; the only or the default one when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub container: Option<String>,
    /// Regular expression of matching lines. By default lines with the word ERROR, FATAL or PANIC.
    #[serde(default = "error")]
    #[schemars(length(min = 1, max = 256))]
    pub pattern: String,
}

/// A new connection to the database. No connection fails. The value is the used fraction of `max_connections`, 0 to 1.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct ConnectionCheck {}

/// Execution time of statements, from the extension `pg_stat_statements`. The value is the mean in milliseconds since
/// the last measurement; samples are the calls.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct StatementsCheck {
    /// Text that the statements contain; the name of the table of balances when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub containing: Option<String>,
}

/// An image of the team. Exit code 0 passes, any other fails.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct JobCheck {
    /// Image.
    #[schemars(length(min = 1, max = 1024))]
    pub image: String,
    /// Command; the image's own when empty.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub command: Vec<String>,
    /// Arguments.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub args: Vec<String>,
    /// Secrets whose keys become environment variables.
    #[serde(default)]
    #[schemars(length(max = 8))]
    pub env_from_secrets: Vec<NameRef>,
    /// Time limit; a longer run fails.
    #[serde(default = "one_minute")]
    #[x_kube(
        validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('1h')")
            .message("timeout must be between 1s and 1h, for example 1m")
    )]
    pub timeout: Duration,
}

/// An instant query to a Prometheus server.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PrometheusCheck {
    /// Base address of the server.
    #[x_kube(
        validation = Rule::new("self.startsWith('http://') || self.startsWith('https://')")
            .message("url must start with http:// or https://")
    )]
    pub url: String,
    /// Query with one number as its result; an empty result and NaN are NoData.
    pub query: String,
    /// Query that counts the samples, for `minimumSamples`: for example `sum(increase(http_requests_total[1m]))`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub samples_query: Option<String>,
}

fn ok() -> u16 {
    200
}
fn five_seconds() -> Duration {
    std::time::Duration::from_secs(5).into()
}
fn one_minute() -> Duration {
    std::time::Duration::from_secs(60).into()
}
fn error() -> String {
    r"\b(ERROR|FATAL|PANIC)\b".into()
}
