//! Checks: what is measured, how often, against which limit, and the effect of a breach.

use kube::{KubeSchema, core::Duration};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::{
    BalancesCheck, ConnectionCheck, HttpCheck, JobCheck, LogsCheck, PrometheusCheck, SequenceCheck, SqlCheck,
    StatementsCheck, WorkloadRef,
};

/// A repeated measurement with a limit: what is measured (exactly one of `sql`, `http`, `sequence`, `prometheus`,
/// `balances`, `logs`, `connection`, `statements`, `workload` and `job`), which values pass (`max`, `min`, `equals`),
/// and what a breach does.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[x_kube(
    validation = Rule::new("[has(self.sql), has(self.http), has(self.sequence), has(self.prometheus), \
        has(self.balances), has(self.logs), has(self.connection), has(self.statements), has(self.workload), \
        has(self.job)].filter(x, x).size() == 1")
        .message("exactly one of sql, http, sequence, prometheus, balances, logs, connection, statements, workload \
            and job must be set"),
    validation = Rule::new("(has(self.http) && !has(self.http.jsonPath) && !has(self.http.percentile)) || \
        has(self.sequence) || has(self.workload) || has(self.job) || has(self.max) || has(self.min) || \
        has(self.equals)")
        .message("a limit is missing: set max, min or equals, for example max: \"0.05\"; without it any value of \
            http.jsonPath or http.percentile would do"),
    validation = Rule::new("!has(self.max) || !has(self.min) || double(self.min) <= double(self.max)")
        .message("min must be at most max: no value would be good"),
    validation = Rule::new("!has(self.equals) || has(self.sql) || (has(self.http) && has(self.http.jsonPath)) || \
        self.equals.matches('^-?[0-9]+([.][0-9]+)?$')")
        .message("equals must be a decimal number, for example \"0\": only sql and http.jsonPath give texts"),
    validation = Rule::new("!(has(self.workload) || has(self.job)) || !(has(self.max) || has(self.min) || \
        has(self.equals))")
        .message("workload and job checks take no limit: a workload is available or not, a job succeeds or fails"),
    validation = Rule::new("!has(self.minimumSamples) || (has(self.prometheus) && has(self.prometheus.samplesQuery)) \
        || (has(self.http) && has(self.http.percentile)) || has(self.statements) || has(self.logs)")
        .message("minimumSamples needs prometheus.samplesQuery, http.percentile, statements or logs: other sources \
            count no samples"),
    // Only the last 100 times are stored: a larger minimum would never be reached.
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
    /// A query on the migrated database. The value is the first column of its first row; NULL or no row is NoData.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sql: Option<SqlCheck>,
    /// A request to the application. The value is the response time in milliseconds; with `percentile` that percentile
    /// of the last 100 times; with `jsonPath` the value in the response. Without a limit it passes if `expectedStatus`
    /// arrives within `timeout`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpCheck>,
    /// Consecutive requests that can pass values on, such as the token of a login. Every response must be as expected.
    /// The value is their total time in milliseconds. Without a limit it passes if every response is as expected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<SequenceCheck>,
    /// An instant query to Prometheus. The value is its result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prometheus: Option<PrometheusCheck>,
    /// Balances compared with those of the cutover. The value is the number of users whose balance is unexplained, or
    /// the difference of the sums in percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balances: Option<BalancesCheck>,
    /// Log lines of a workload's pods. The value is the number of matching lines since the last measurement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logs: Option<LogsCheck>,
    /// A new connection to the database. The value is the used fraction of `max_connections`, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection: Option<ConnectionCheck>,
    /// Execution time of statements, from `pg_stat_statements`. The value is their mean in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub statements: Option<StatementsCheck>,
    /// A Deployment whose replicas must all be available. Takes no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<WorkloadRef>,
    /// An image of the team, run as a Job for each measurement: exit code 0 passes, any other fails. Takes no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobCheck>,
    /// Time between measurements.
    #[serde(default = "thirty_seconds")]
    #[x_kube(
        validation = Rule::new("duration(self) >= duration('1s')")
            .message("interval must be at least 1s, for example 30s")
    )]
    pub interval: Duration,
    /// Largest value that passes, a decimal number in quotes, in the unit of the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40), regex(pattern = r"^-?[0-9]+(\.[0-9]+)?$"))]
    pub max: Option<String>,
    /// Smallest value that passes, a decimal number in quotes, in the unit of the source. At most `max`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40), regex(pattern = r"^-?[0-9]+(\.[0-9]+)?$"))]
    pub min: Option<String>,
    /// The only value that passes: a decimal number in quotes, or a text for `sql` and `http` with `jsonPath`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub equals: Option<String>,
    /// How many of the last measurements must fail for a breach: `count` out of `of`, by default 3 out of 3.
    #[serde(default)]
    pub failures: Failures,
    /// With fewer samples the outcome is NoData, which never counts as success. Samples are what
    /// `prometheus.samplesQuery` counts, the response times of `http.percentile`, the calls of `statements`, the lines
    /// of `logs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum_samples: Option<u64>,
    /// Effect of a breach. `Rollback`: the rollback starts. `Hold`: the stage does not end before the check passes or
    /// an approver decides. `Warn`: an event only.
    #[serde(default)]
    pub on_breach: OnBreach,
}

impl Check {
    /// It is one of the triggers of `rollback.triggers`.
    pub fn is_trigger(&self) -> bool {
        super::TRIGGERS.contains(&self.name.as_str())
    }

    /// A check that has only a name: the caller sets source and limit.
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

    /// Whether the controller measures it, which observes Deployments and Jobs. The runner measures all others.
    pub fn by_controller(&self) -> bool {
        self.workload.is_some() || self.job.is_some()
    }
}

/// How many measurements of how many have to fail.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[x_kube(validation = Rule::new("self.count <= self.of").message("failures.count must be at most failures.of"))]
#[serde(rename_all = "camelCase")]
pub struct Failures {
    /// Number of failed measurements that are a breach.
    #[serde(default = "three")]
    #[schemars(range(min = 1, max = 100))]
    pub count: u32,
    /// Number of last measurements that are counted.
    #[serde(default = "three")]
    #[schemars(range(min = 1, max = 100))]
    pub of: u32,
}

impl Default for Failures {
    fn default() -> Self {
        Self { count: 3, of: 3 }
    }
}

/// Effect of a breach.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum OnBreach {
    /// Starts the rollback (with `rollback.policy: Automatic`).
    Rollback,
    /// The stage does not end before the check passes or an approver decides.
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
