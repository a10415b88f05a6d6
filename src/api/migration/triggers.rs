//! The checklist's five rollback triggers, each of which is a check; and the checks of each stage.

use kube::{KubeSchema, core::Duration};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::{
    BalancesCheck, BalancesComparison, Check, ConnectionCheck, CreditMigrationSpec, Failures, HttpCheck, OnBreach,
    PrometheusCheck, SequenceCheck, SqlCheck, Task,
};

/// What starts a rollback, in addition to checks with `onBreach: Rollback`. Measured in the validation and monitoring
/// stages.
///
/// At the default interval of 3 s and with 3 of 3 failures the rollback starts within 15 s.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Triggers {
    /// Time between measurements.
    #[serde(default = "three_seconds")]
    #[x_kube(
        validation = Rule::new("duration(self) >= duration('1s')")
            .message("interval must be at least 1s, for example 3s")
    )]
    pub interval: Duration,
    /// How many of the last measurements must fail: `count` out of `of`, by default 3 out of 3.
    #[serde(default)]
    pub failures: Failures,
    /// The balances of too many users are unexplained. Enabled by default: it needs the database only.
    #[serde(default)]
    pub balance_errors: BalanceErrors,
    /// Payments fail. Enabled when it has a source: exactly one of `sql`, `http`, `sequence` and `prometheus`. Measure
    /// the fraction of successful attempts, and return no value (NoData) after few attempts: the trigger rolls back on
    /// its own, also at night.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payment_processing: Option<TriggerSource>,
    /// The application cannot be used. Enabled when it has a source: exactly one of `sql`, `http`, `sequence` and
    /// `prometheus`. For example a `sequence` that logs in and reads the credits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub core_function: Option<TriggerSource>,
    /// The database accepts no connection, or nearly no more. Enabled by default.
    #[serde(default)]
    pub database_connection: DatabaseConnection,
    /// Too many requests fail. Enabled when it has a source: `prometheus`, with failed requests divided by all
    /// requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_rate: Option<ErrorRate>,
}

impl Default for Triggers {
    fn default() -> Self {
        Self {
            interval: three_seconds(),
            failures: Failures::default(),
            balance_errors: BalanceErrors::default(),
            payment_processing: None,
            core_function: None,
            database_connection: DatabaseConnection::default(),
            error_rate: None,
        }
    }
}

/// Whether a trigger that needs no source is measured. `On` and `Off` would be booleans in YAML 1.1.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum TriggerMode {
    /// Measured.
    #[default]
    Enabled,
    /// Not measured.
    Disabled,
}

/// The balances of too many users are unexplained.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct BalanceErrors {
    /// Whether it is measured.
    pub mode: TriggerMode,
    /// Largest number of users with an unexplained balance that passes. 10, the checklist's value.
    pub max_users: u32,
}

impl Default for BalanceErrors {
    fn default() -> Self {
        Self { mode: TriggerMode::Enabled, max_users: 10 }
    }
}

/// The database accepts no connection, or nearly no more.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct DatabaseConnection {
    /// Whether it is measured.
    pub mode: TriggerMode,
    /// Largest used fraction of `max_connections` that passes, 0 to 1.
    #[schemars(regex(pattern = r"^(0(\.[0-9]+)?|1(\.0+)?)$"))]
    pub max_used: String,
}

impl Default for DatabaseConnection {
    fn default() -> Self {
        Self { mode: TriggerMode::Enabled, max_used: "0.95".into() }
    }
}

/// What a trigger measures (exactly one of `sql`, `http`, `sequence` and `prometheus`), and which values pass.
///
/// It rolls back on its own, also at night: without attempts it must have no value (NoData) instead of a failing one.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[x_kube(
    validation = Rule::new("[has(self.sql), has(self.http), has(self.sequence), has(self.prometheus)].filter(x, \
        x).size() == 1")
        .message("exactly one of sql, http, sequence and prometheus must be set"),
    validation = Rule::new("(has(self.http) && !has(self.http.jsonPath) && !has(self.http.percentile)) || \
        has(self.sequence) || has(self.max) || has(self.min) || has(self.equals)")
        .message("a limit is missing: set max, min or equals, for example min: \"0.5\"; without it any value of \
            http.jsonPath or http.percentile would do"),
    validation = Rule::new("!has(self.max) || !has(self.min) || double(self.min) <= double(self.max)")
        .message("min must be at most max: no value would be good"),
    validation = Rule::new("!has(self.equals) || has(self.sql) || (has(self.http) && has(self.http.jsonPath)) || \
        self.equals.matches('^-?[0-9]+([.][0-9]+)?$')")
        .message("equals must be a decimal number, for example \"0\": only sql and http.jsonPath give texts"),
    // Only the last 100 times are stored: a larger minimum would never be reached.
    validation = Rule::new("!has(self.minimumSamples) || !has(self.http) || self.minimumSamples <= 100")
        .message("minimumSamples of http.percentile must be at most 100: the percentile is that of the last 100 times"),
    validation = Rule::new("!has(self.prometheus) || (has(self.prometheus.samplesQuery) && has(self.minimumSamples))")
        .message("a trigger with prometheus needs samplesQuery, the query that counts the attempts, and \
            minimumSamples, for example 20: otherwise one failed attempt at night starts a rollback"),
    validation = Rule::new("!has(self.minimumSamples) || has(self.prometheus) || (has(self.http) && \
        has(self.http.percentile))")
        .message("minimumSamples needs prometheus or http.percentile: other sources count no samples; let a query of \
            sql give NULL when there are too few")
)]
#[serde(rename_all = "camelCase")]
pub struct TriggerSource {
    /// A query on the migrated database. The value is the first column of its first row. NULL or no row is NoData,
    /// which never starts a rollback: return NULL without attempts.
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
    /// An instant query to Prometheus. The value is its result. Needs `samplesQuery` and `minimumSamples`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prometheus: Option<PrometheusCheck>,
    /// Largest value that passes, a decimal number in quotes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40), regex(pattern = r"^-?[0-9]+(\.[0-9]+)?$"))]
    pub max: Option<String>,
    /// Smallest value that passes, a decimal number in quotes. At most `max`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40), regex(pattern = r"^-?[0-9]+(\.[0-9]+)?$"))]
    pub min: Option<String>,
    /// The only value that passes: a decimal number in quotes, or a text for `sql` and `http` with `jsonPath`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub equals: Option<String>,
    /// With fewer samples the outcome is NoData. Samples are what `prometheus.samplesQuery` counts, or the response
    /// times of `http.percentile`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub minimum_samples: Option<u64>,
}

/// Too many requests fail.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[x_kube(
    validation = Rule::new("has(self.prometheus.samplesQuery)")
        .message("errorRate.prometheus needs samplesQuery, the query that counts the requests")
)]
#[serde(rename_all = "camelCase")]
pub struct ErrorRate {
    /// Query for failed requests divided by all requests, 0 to 1. A 503 for writes that are paused in the window is not
    /// a failure: exclude it, for example `code=~"5..", code!="503"`.
    pub prometheus: PrometheusCheck,
    /// Largest fraction that passes. 0.05, the checklist's value.
    #[serde(default = "five_percent")]
    #[schemars(regex(pattern = r"^(0(\.[0-9]+)?|1(\.0+)?)$"))]
    pub max: String,
    /// With fewer requests the outcome is NoData.
    #[serde(default = "hundred")]
    #[schemars(range(min = 1))]
    pub minimum_samples: u64,
}

/// Longest wait for a response in a trigger, whatever its `timeout`.
pub const LONGEST_ANSWER: std::time::Duration = std::time::Duration::from_secs(2);

/// Names of the triggers' checks, in the checklist's order. No other check may have one of them.
pub const TRIGGERS: [&str; 5] =
    ["balance-errors", "payment-processing", "core-function", "database-connection", "error-rate"];

impl Triggers {
    /// The checks of the triggers that are enabled.
    pub fn checks(&self) -> Vec<Check> {
        let Self {
            interval,
            failures,
            balance_errors,
            payment_processing,
            core_function,
            database_connection,
            error_rate,
        } = self;
        let [balance, payment, core, connection, rate] = TRIGGERS.map(|name| Check {
            interval: *interval,
            failures: failures.clone(),
            on_breach: OnBreach::Rollback,
            ..Check::named(name)
        });
        let sourced = |check: Check, source: &Option<TriggerSource>| {
            source.clone().map(|source| {
                let TriggerSource { sql, mut http, mut sequence, prometheus, max, min, equals, minimum_samples } =
                    source;
                // An application that hangs must be detected as soon as one that fails.
                let steps = sequence.iter_mut().flat_map(|s| &mut s.steps).map(|step| &mut step.timeout);
                for timeout in http.iter_mut().map(|http| &mut http.timeout).chain(steps) {
                    *timeout = (*timeout).min(LONGEST_ANSWER.into());
                }
                Check { sql, http, sequence, prometheus, max, min, equals, minimum_samples, ..check }
            })
        };
        [
            (balance_errors.mode == TriggerMode::Enabled).then(|| Check {
                balances: Some(BalancesCheck { compare: BalancesComparison::Users }),
                max: Some(balance_errors.max_users.to_string()),
                ..balance
            }),
            sourced(payment, payment_processing),
            sourced(core, core_function),
            (database_connection.mode == TriggerMode::Enabled).then(|| Check {
                connection: Some(ConnectionCheck {}),
                max: Some(database_connection.max_used.clone()),
                ..connection
            }),
            error_rate.as_ref().map(|e| Check {
                prometheus: Some(e.prometheus.clone()),
                max: Some(e.max.clone()),
                minimum_samples: Some(e.minimum_samples),
                ..rate
            }),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

impl CreditMigrationSpec {
    /// Checks of a stage, by the task that measures them: first the triggers', then its own.
    pub fn checks_of(&self, task: Task) -> Vec<Check> {
        // An approver decides then: a breach is reported, and starts no rollback.
        if let Some(follow_up) = self.follow_ups.of(task) {
            return follow_up.checks.clone();
        }
        let own = match task {
            Task::Validate => &self.validation.checks,
            Task::Monitor => &self.monitoring.checks,
            _ => return vec![],
        };
        self.rollback.triggers.checks().into_iter().chain(own.iter().cloned()).collect()
    }

    /// The checks of all stages, each with its field of the spec. The triggers', which two stages measure, are listed
    /// once.
    pub fn all_checks(&self) -> Vec<(&'static str, Check)> {
        let triggers = self.rollback.triggers.checks();
        [
            ("spec.rollback.triggers", &triggers),
            ("spec.validation.checks", &self.validation.checks),
            ("spec.monitoring.checks", &self.monitoring.checks),
            ("spec.followUps.day.checks", &self.follow_ups.day.checks),
            ("spec.followUps.week.checks", &self.follow_ups.week.checks),
        ]
        .into_iter()
        .flat_map(|(field, checks)| checks.iter().map(move |check| (field, check.clone())))
        .collect()
    }
}

fn three_seconds() -> Duration {
    std::time::Duration::from_secs(3).into()
}
fn five_percent() -> String {
    "0.05".into()
}
fn hundred() -> u64 {
    100
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn triggers(value: Value) -> Triggers {
        serde_json::from_value(value).unwrap()
    }

    fn names(checks: &[Check]) -> Vec<&str> {
        checks.iter().map(|c| c.name.as_str()).collect()
    }

    #[test]
    fn on_by_default_where_the_source_is_there() {
        let checks = triggers(json!({})).checks();
        assert_eq!(names(&checks), ["balance-errors", "database-connection"]);
        assert_eq!(checks[0].max.as_deref(), Some("10"), "the checklist's ten users");
        for c in &checks {
            assert_eq!((c.on_breach, &c.failures), (OnBreach::Rollback, &Failures { count: 3, of: 3 }), "{}", c.name);
        }
        let off = json!({"balanceErrors": {"mode": "Disabled"}, "databaseConnection": {"mode": "Disabled"}});
        assert_eq!(triggers(off).checks(), []);
    }

    #[test]
    fn all_five_of_the_checklist() {
        let http = json!({"http": {"url": "http://shop/pay"}});
        let query = json!({"url": "http://prometheus", "query": "a", "samplesQuery": "b"});
        let rate = json!({"prometheus": query});
        let all = json!({"interval": "1s", "paymentProcessing": http, "coreFunction": http, "errorRate": rate});
        let checks = triggers(all).checks();
        assert_eq!(names(&checks), TRIGGERS);
        let rate = &checks[4];
        assert_eq!((rate.max.as_deref(), rate.minimum_samples), (Some("0.05"), Some(100)));
        assert!(checks.iter().all(|c| std::time::Duration::from(c.interval).as_secs() == 1));
    }

    /// At night or right after the window there may be few or no attempts: that is no value, and never a failing one.
    #[test]
    fn a_trigger_says_nothing_without_enough_samples() {
        let query = json!({"url": "http://prometheus", "query": "a", "samplesQuery": "b"});
        let source = json!({"prometheus": query, "min": "0.5", "minimumSamples": 20});
        let p95 = json!({"http": {"url": "http://shop", "percentile": 95}, "max": "500", "minimumSamples": 10});
        let checks = triggers(json!({"paymentProcessing": source, "coreFunction": p95})).checks();
        let of = |name: &str| checks.iter().find(|c| c.name == name).unwrap();
        assert_eq!(of("payment-processing").minimum_samples, Some(20));
        assert_eq!(of("core-function").minimum_samples, Some(10));
    }

    /// Three measurements, a response that takes 2 s, and a second for the report; one is left for the controller.
    #[test]
    fn fifteen_seconds_suffice_at_default_intervals() {
        let t = triggers(json!({}));
        let interval = std::time::Duration::from(t.interval).as_secs();
        assert!(interval * u64::from(t.failures.count) + LONGEST_ANSWER.as_secs() + 1 < 15);
        // Whatever the timeouts say.
        let slow = json!({"url": "http://shop", "timeout": "30s"});
        let step = json!({"name": "a", "url": "http://shop", "timeout": "30s"});
        let hangs = json!({"coreFunction": {"http": slow}, "paymentProcessing": {"sequence": {"steps": [step]}}});
        let checks = triggers(hangs).checks();
        let of = |name: &str| checks.iter().find(|c| c.name == name).unwrap().clone();
        let waits =
            [of("core-function").http.unwrap().timeout, of("payment-processing").sequence.unwrap().steps[0].timeout];
        assert!(waits.into_iter().all(|t| std::time::Duration::from(t) == LONGEST_ANSWER));
    }

    #[test]
    fn they_are_measured_in_two_stages() {
        let mut spec = crate::api::fixtures::spec();
        spec.rollback.triggers = Triggers::default();
        let both = ["balance-errors", "database-connection"];
        assert_eq!(names(&spec.checks_of(Task::Validate)), both);
        assert_eq!(names(&spec.checks_of(Task::Monitor)), ["balance-errors", "database-connection", "errors"]);
        assert_eq!(spec.checks_of(Task::DayCheck), []);
        assert_eq!(spec.checks_of(Task::Backup), []);
    }
}
