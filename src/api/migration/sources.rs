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

/// A request to the application. Another status than `expectedStatus`, or no answer within `timeout`, fails.
///
/// The value is what `jsonPath` finds in the answer; with `percentile` that percentile of the last times to the answer, in
/// milliseconds; else the milliseconds to the whole answer, if there is a limit. Without any of them it passes when it is answered.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[x_kube(validation = Rule::new("!has(self.percentile) || !has(self.jsonPath)").message("percentile is one of times, jsonPath a value of the answer: set one of them"))]
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
    /// The good status code; any other fails.
    #[serde(default = "ok")]
    #[schemars(range(min = 100, max = 599))]
    pub expected_status: u16,
    /// JSONPath (RFC 9535) to the value in the answer, for example `$.balance`. Needs `max`, `min` or `equals`. Without it the value is
    /// the time to the answer in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub json_path: Option<String>,
    /// No answer within this time fails.
    #[serde(default = "five_seconds")]
    #[x_kube(validation = Rule::new("duration(self) > duration('0s') && duration(self) <= duration('1m')").message("timeout must be more than 0s and at most 1m, for example 5s"))]
    pub timeout: Duration,
    /// The value is this percentile of the last 100 times to the answer, in milliseconds: 95 for p95. Needs a limit, for example
    /// `max: "100"`. Not with `jsonPath`.
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

/// Requests one after another. All must answer as expected; the value is the time of all of them in milliseconds.
///
/// `url`, `headers`, `body` and `equals` are MiniJinja templates: `{{ NAME }}` is a value that an earlier step captured,
/// `{{ secret.KEY }}` a key of `secretRef`.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct SequenceCheck {
    /// Secret with credentials, for `{{ secret.KEY }}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<NameRef>,
    /// The requests. `url`, `headers`, `body` and `equals` are MiniJinja templates: `{{ NAME }}` is a value that an earlier step captured,
    /// `{{ secret.KEY }}` a key of `secretRef`.
    #[schemars(length(min = 1, max = 16))]
    pub steps: Vec<HttpStep>,
}

/// One request of a sequence.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct HttpStep {
    /// Name; stands in messages.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Address, called from the migration's namespace without following redirects.
    #[schemars(length(max = 2048))]
    #[x_kube(validation = Rule::new("self.startsWith('http://') || self.startsWith('https://')").message("url must begin with http:// or https://"))]
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
    /// Status code of a good answer; any other fails.
    #[serde(default = "ok")]
    #[schemars(range(min = 100, max = 599))]
    pub expected_status: u16,
    /// What must be in the answer.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub expect: Vec<Expectation>,
    /// Values that later steps use, as `{{ NAME }}`.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub capture: Vec<Capture>,
    /// No answer within this time fails.
    #[serde(default = "five_seconds")]
    #[x_kube(validation = Rule::new("duration(self) > duration('0s') && duration(self) <= duration('1m')").message("timeout must be more than 0s and at most 1m, for example 5s"))]
    pub timeout: Duration,
}

/// What must be in an answer.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Expectation {
    /// JSONPath (RFC 9535) to one value.
    #[schemars(length(min = 1, max = 256))]
    pub json_path: String,
    /// Its only good value; that there is one suffices when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub equals: Option<String>,
}

/// What later steps use.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Capture {
    /// Its name there.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z_][a-zA-Z0-9_]*$"))]
    pub name: String,
    /// JSONPath (RFC 9535) to one value.
    #[schemars(length(min = 1, max = 256))]
    pub json_path: String,
}

/// Balances against the cut-over, explained by the transactions since.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct BalancesCheck {
    /// `Users`: the value is the number of users whose balance is not that of the cut-over plus their transactions since. `Total`: how far
    /// the sum of balances is from that of the cut-over, in percent.
    #[serde(default)]
    pub compare: BalancesComparison,
}

/// What is compared.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum BalancesComparison {
    /// Each user. The value is the number of users whose balance is not that of the cut-over plus their transactions since.
    #[default]
    Users,
    /// The sum. The value is how far the sum of balances is from that of the cut-over, in percent.
    Total,
}

/// Lines in the logs of a workload's pods. The value is their number since the last measurement; the samples are all lines.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct LogsCheck {
    /// The workload.
    pub workload: WorkloadRef,
    /// Container; the only one, or the default one, when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub container: Option<String>,
    /// Regular expression of a line that counts. By default lines with the word ERROR, FATAL or PANIC.
    #[serde(default = "error")]
    #[schemars(length(min = 1, max = 256))]
    pub pattern: String,
}

/// A new connection to the database. That there is none fails; the value is the used part of `max_connections`, 0 to 1.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct ConnectionCheck {}

/// Time of statements, by the extension `pg_stat_statements`. The value is the mean time in milliseconds since the last
/// measurement; the samples are the calls.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct StatementsCheck {
    /// Statements whose text has this in it; those on the table of balances when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub containing: Option<String>,
}

/// The team's own image. Exit code 0 passes, any other fails.
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
    /// Longest run; a longer one fails.
    #[serde(default = "one_minute")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('1h')").message("timeout must be between 1s and 1h, for example 1m"))]
    pub timeout: Duration,
}

/// An instant query to a Prometheus server.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PrometheusCheck {
    /// Base address of the server.
    #[x_kube(validation = Rule::new("self.startsWith('http://') || self.startsWith('https://')").message("url must begin with http:// or https://"))]
    pub url: String,
    /// Query whose result is one number; an empty result and NaN are NoData.
    pub query: String,
    /// Query that counts the samples behind it, for `minimumSamples`: for example `sum(increase(http_requests_total[1m]))`.
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
