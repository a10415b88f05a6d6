//! Checks: what is measured, how often, against which limit, and what a breach does.

use kube::{KubeSchema, core::Duration};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::{
    BalancesCheck, ConnectionCheck, HttpCheck, JobCheck, LogsCheck, PrometheusCheck, SequenceCheck, SqlCheck,
    StatementsCheck, WorkloadRef,
};

/// One measurement, repeated, with a limit: what is measured (exactly one of `sql`, `http`, `sequence`, `prometheus`, `balances`,
/// `logs`, `connection`, `statements`, `workload` and `job`), which values are good (`max`, `min`, `equals`), and what a breach does.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[x_kube(
    validation = Rule::new("[has(self.sql), has(self.http), has(self.sequence), has(self.prometheus), has(self.balances), has(self.logs), has(self.connection), has(self.statements), has(self.workload), has(self.job)].filter(x, x).size() == 1")
        .message("exactly one of sql, http, sequence, prometheus, balances, logs, connection, statements, workload and job must be set"),
    validation = Rule::new("(has(self.http) && !has(self.http.jsonPath) && !has(self.http.percentile)) || has(self.sequence) || has(self.workload) || has(self.job) || has(self.max) || has(self.min) || has(self.equals)")
        .message("a limit is missing: set max, min or equals, for example max: \"0.05\"; without it any value of http.jsonPath or http.percentile would do"),
    validation = Rule::new("!has(self.max) || !has(self.min) || double(self.min) <= double(self.max)")
        .message("min must be at most max: no value would be good"),
    validation = Rule::new("!has(self.equals) || has(self.sql) || (has(self.http) && has(self.http.jsonPath)) || self.equals.matches('^-?[0-9]+([.][0-9]+)?$')")
        .message("equals must be a decimal number, for example \"0\": only sql and http.jsonPath give texts"),
    validation = Rule::new("!(has(self.workload) || has(self.job)) || !(has(self.max) || has(self.min) || has(self.equals))")
        .message("workload and job checks take no limit: a workload is available or not, a job succeeds or fails"),
    validation = Rule::new("!has(self.minimumSamples) || (has(self.prometheus) && has(self.prometheus.samplesQuery)) || (has(self.http) && has(self.http.percentile)) || has(self.statements) || has(self.logs)")
        .message("minimumSamples needs prometheus.samplesQuery, http.percentile, statements or logs: other sources count no samples"),
    // More times are not kept: it would never have enough.
    validation = Rule::new("!has(self.minimumSamples) || !has(self.http) || self.minimumSamples <= 100")
        .message("minimumSamples of http.percentile must be at most 100: the percentile is that of the last 100 times"),
    validation = Rule::new("!has(self.job) || duration(self.interval) >= duration('10s')")
        .message("interval of a job check must be at least 10s: each measurement is a pod")
)]
#[serde(rename_all = "camelCase")]
pub struct Check {
    /// Name, unique in its stage; appears in conditions, events and metrics.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// A query on the migrated database. The value is the first column of its first row; NULL, or no row, is NoData.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sql: Option<SqlCheck>,
    /// A request to the application. The value is its time in milliseconds; with `percentile` that percentile of the last 100 times; with
    /// `jsonPath` what it finds in the answer. Without a limit it passes when `expectedStatus` comes within `timeout`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpCheck>,
    /// Requests one after another, with values carried from step to step, such as a login's token. All must answer as expected; the value
    /// is the time of all of them in milliseconds. Without a limit it passes when they do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<SequenceCheck>,
    /// An instant query to Prometheus, whose result is the value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prometheus: Option<PrometheusCheck>,
    /// Balances against those of the cut-over. The value is the number of users that nothing explains, or the sum's distance in
    /// percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balances: Option<BalancesCheck>,
    /// Lines in the logs of a workload's pods. The value is the number of those that match since the last measurement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logs: Option<LogsCheck>,
    /// A new connection to the database. The value is the used part of `max_connections`, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection: Option<ConnectionCheck>,
    /// Time of statements, by `pg_stat_statements`. The value is their mean in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub statements: Option<StatementsCheck>,
    /// A Deployment whose replicas must all be available. Takes no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<WorkloadRef>,
    /// The team's own image, run as a Job at each measurement: exit code 0 passes, any other fails. Takes no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobCheck>,
    /// Time between two measurements.
    #[serde(default = "thirty_seconds")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s')").message("interval must be at least 1s, for example 30s"))]
    pub interval: Duration,
    /// Largest good value, a decimal number in quotes, in the unit of the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40), regex(pattern = r"^-?[0-9]+(\.[0-9]+)?$"))]
    pub max: Option<String>,
    /// Smallest good value, a decimal number in quotes, in the unit of the source. At most `max`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40), regex(pattern = r"^-?[0-9]+(\.[0-9]+)?$"))]
    pub min: Option<String>,
    /// The only good value: a decimal number in quotes, or a text for `sql` and `http` with `jsonPath`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub equals: Option<String>,
    /// How many of the last measurements must fail before the limit counts as breached: `count` out of `of`, by default 3 out of 3.
    #[serde(default)]
    pub failures: Failures,
    /// Fewer samples than this are NoData, which is never success. Samples are what `prometheus.samplesQuery` counts, the times behind
    /// `http.percentile`, the calls of `statements`, the lines of `logs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum_samples: Option<u64>,
    /// What a breach does. `Rollback`: the way back begins. `Hold`: the stage does not end before the check passes, or a person decides.
    /// `Warn`: an event only.
    #[serde(default)]
    pub on_breach: OnBreach,
}

impl Check {
    /// A check with nothing but a name: source and limit are to be set.
    pub fn named(name: &str) -> Self {
        Self {
            name: name.into(),
            sql: None,
            http: None,
            sequence: None,
            prometheus: None,
            balances: None,
            logs: None,
            connection: None,
            statements: None,
            workload: None,
            job: None,
            interval: thirty_seconds(),
            max: None,
            min: None,
            equals: None,
            failures: Failures::default(),
            minimum_samples: None,
            on_breach: OnBreach::default(),
        }
    }

    /// Measured by the controller, which sees Deployments and Jobs; all others by the runner.
    pub fn by_controller(&self) -> bool {
        self.workload.is_some() || self.job.is_some()
    }
}

/// N of M.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[x_kube(validation = Rule::new("self.count <= self.of").message("failures.count must be at most failures.of"))]
#[serde(rename_all = "camelCase")]
pub struct Failures {
    /// Failed measurements that make a breach.
    #[serde(default = "three")]
    #[schemars(range(min = 1, max = 100))]
    pub count: u32,
    /// Out of this many last measurements.
    #[serde(default = "three")]
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

fn thirty_seconds() -> Duration {
    std::time::Duration::from_secs(30).into()
}
fn three() -> u32 {
    3
}
