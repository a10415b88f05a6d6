//! Lines of the checklist that a spec does not cover. A condition and `plan` show them to approvers.

use crate::api::{Audience, Check, ContactRole, CreditMigrationSpec, OnBreach, RollbackPolicy, TriggerMode};

/// A line of the checklist that the spec does not cover.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// What the line is about.
    pub topic: Topic,
    /// The line.
    pub what: String,
    /// What to configure for it.
    pub next: String,
}

/// Topic of a line of the checklist that a spec can leave out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topic {
    /// Columns and tables that hold the credits.
    Ledger,
    /// Tag and branch of the code.
    Code,
    /// Notices to an audience.
    Notices,
    /// People to call.
    Contacts,
    /// Triggers, and the policy that lets them roll back.
    Triggers,
    /// The version that the application reports.
    Version,
    /// Verification of the rollback.
    Rollback,
    /// Validation: functions of the application.
    Functions,
    /// Validation: times and error rate.
    Performance,
    /// Validation: balances.
    Data,
    /// Monitoring: logs.
    Logs,
    /// Monitoring: key figures.
    Figures,
    /// Monitoring: a breach that rolls back.
    Breach,
    /// Checks after a day.
    Day,
    /// Checks after a week.
    Week,
}

impl CreditMigrationSpec {
    /// Lines that are not covered. None of them is an error: the team may do it by hand.
    pub fn not_covered(&self) -> Vec<Gap> {
        let mut found = Gaps(vec![]);
        found.ledger(self);
        found.code_and_notices(self);
        found.triggers(self);
        found.checks(self);
        found.0
    }
}

struct Gaps(Vec<Gap>);

impl Gaps {
    fn add(&mut self, topic: Topic, missing: bool, what: &str, next: impl Into<String>) {
        if missing {
            self.0.push(Gap { topic, what: what.to_owned(), next: next.into() });
        }
    }

    fn ledger(&mut self, spec: &CreditMigrationSpec) {
        let (balances, transactions) = (&spec.credits.balances, spec.credits.transactions.as_ref());
        for (missing, what, field) in [
            (balances.purchased_column.is_none(), "purchased credits", "balances.purchasedColumn"),
            (transactions.is_none(), "transactions: nothing explains balances after the window", "transactions"),
            (transactions.is_some_and(|t| t.type_column.is_none()), "types of transactions", "transactions.typeColumn"),
        ] {
            self.add(Topic::Ledger, missing, what, format!("set spec.credits.{field}"));
        }
    }

    fn code_and_notices(&mut self, spec: &CreditMigrationSpec) {
        self.add(
            Topic::Code,
            spec.code.is_none(),
            "tag and branch of the code",
            "set spec.code.repository, commit and secretRef",
        );
        for audience in Audience::ALL {
            self.add(
                Topic::Notices,
                !spec.notifications.reaches(*audience),
                &format!("notices to {audience}"),
                format!("add a channel with audiences: [{audience}] to spec.notifications.channels"),
            );
        }
        let has = |role: &&ContactRole| spec.notifications.contacts.iter().any(|c| c.role == **role);
        let absent: Vec<&str> = ContactRole::ALL.iter().filter(|role| !has(role)).map(|role| role.as_str()).collect();
        self.add(
            Topic::Contacts,
            !absent.is_empty(),
            &format!("emergency contacts: {}", absent.join(", ")),
            "add them to spec.notifications.contacts",
        );
    }

    fn triggers(&mut self, spec: &CreditMigrationSpec) {
        let t = &spec.rollback.triggers;
        self.add(
            Topic::Triggers,
            spec.rollback.policy == RollbackPolicy::Manual,
            "automatic rollback",
            "set spec.rollback.policy: Automatic",
        );
        for (missing, what, field) in [
            (t.balance_errors.mode == TriggerMode::Disabled, "trigger: wrong balances", "balanceErrors.mode: Enabled"),
            (
                t.payment_processing.is_none(),
                "trigger: payments fail",
                "paymentProcessing, with one of sql, http, sequence, prometheus",
            ),
            (
                t.core_function.is_none(),
                "trigger: the application cannot be used",
                "coreFunction, with one of sql, http, sequence, prometheus",
            ),
            (
                t.database_connection.mode == TriggerMode::Disabled,
                "trigger: no connection to the database",
                "databaseConnection.mode: Enabled",
            ),
            (t.error_rate.is_none(), "trigger: error rate over 5%", "errorRate.prometheus"),
        ] {
            self.add(Topic::Triggers, missing, what, format!("set spec.rollback.triggers.{field}"));
        }
    }

    fn checks(&mut self, spec: &CreditMigrationSpec) {
        // The team's own checks: a trigger says when to roll back, not when all is well.
        let (validate, monitor) = (&spec.validation.checks, &spec.monitoring.checks);
        self.add(
            Topic::Version,
            spec.application.version_probe.is_none(),
            "the version that the application reports",
            "set spec.application.versionProbe.url",
        );
        self.add(
            Topic::Rollback,
            spec.migration.verify_down.is_none(),
            "a query that verifies the rollback",
            "set spec.migration.verifyDown",
        );
        let own = |checks: &[Check], of: fn(&Check) -> bool| checks.iter().any(of);
        let in_validation = [
            (
                Topic::Functions,
                own(validate, |c| c.sequence.is_some() || c.job.is_some()),
                "validation: login, display, deduction, upgrade",
                "a check with sequence or job",
            ),
            (
                Topic::Performance,
                own(validate, timed),
                "validation: response time below 100 ms",
                "a check with http.percentile: 95 and max: \"100\"",
            ),
            (
                Topic::Performance,
                own(validate, |c| c.statements.is_some() && c.max.is_some()),
                "validation: time of statements below 50 ms",
                "a check with statements and max: \"50\"",
            ),
            (
                Topic::Performance,
                own(validate, rated),
                "validation: error rate below 0.1%",
                "a check with prometheus and max: \"0.001\"",
            ),
            (
                Topic::Data,
                own(validate, |c| c.balances.is_some()),
                "validation: sum of balances",
                "a check with balances",
            ),
        ];
        for (topic, there, what, check) in in_validation {
            self.add(topic, !there, what, format!("add {check} to spec.validation.checks"));
        }
        let in_monitoring = [
            (
                Topic::Logs,
                own(monitor, |c| c.logs.is_some()),
                "monitoring: errors in the logs",
                "a check with logs and max: \"0\"",
            ),
            (
                Topic::Figures,
                own(monitor, |c| c.sql.is_some() || c.prometheus.is_some() || c.http.is_some()),
                "monitoring: key figures",
                "a check with sql, prometheus or http",
            ),
            (
                Topic::Breach,
                own(monitor, |c| c.on_breach == OnBreach::Rollback),
                "monitoring: a breach that rolls back",
                "a check with onBreach: Rollback",
            ),
        ];
        for (topic, there, what, check) in in_monitoring {
            self.add(topic, !there, what, format!("add {check} to spec.monitoring.checks"));
        }
        for (topic, empty, what, field) in [
            (
                Topic::Day,
                spec.follow_ups.day.checks.is_empty(),
                "after a day: complaints, conversion, performance, use",
                "day",
            ),
            (
                Topic::Week,
                spec.follow_ups.week.checks.is_empty(),
                "after a week: goals, satisfaction, stability",
                "week",
            ),
        ] {
            self.add(
                topic,
                empty,
                what,
                format!(
                    "add checks to spec.followUps.{field}.checks; \
                 without them the report has users, balances and transactions"
                ),
            );
        }
    }
}

/// Whether it limits the response time: an http check without `jsonPath`, or a quantile from Prometheus.
fn timed(c: &Check) -> bool {
    let time = c.http.as_ref().is_some_and(|h| h.json_path.is_none())
        || c.prometheus.as_ref().is_some_and(|p| p.query.contains("quantile"));
    time && c.max.is_some()
}

/// Largest limit that can be an error rate, as a fraction or in percent: the checklist's is 0.1 %.
const LARGEST_RATE: f64 = 0.1;

/// Whether it limits a fraction of the requests: neither a time nor a number of something.
fn rated(c: &Check) -> bool {
    let max = c.max.as_ref().and_then(|max| max.parse::<f64>().ok());
    c.prometheus.as_ref().is_some_and(|p| !p.query.contains("quantile")) && max.is_some_and(|max| max <= LARGEST_RATE)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::fixtures::spec;

    fn names(spec: &CreditMigrationSpec) -> Vec<String> {
        spec.not_covered().into_iter().map(|g| g.what).collect()
    }

    #[test]
    fn a_bare_spec_leaves_out_what_needs_a_source() {
        let all = spec().not_covered();
        for what in [
            "tag and branch of the code",
            "notices to StatusPage",
            "emergency contacts: DBA, BackendLead, DevOps, ProductManager, CTO",
            "trigger: wrong balances",
            "trigger: payments fail",
            "a query that verifies the rollback",
            "validation: sum of balances",
            "monitoring: errors in the logs",
            "after a week: goals, satisfaction, stability",
        ] {
            assert!(all.iter().any(|g| g.what == what), "{what}: {all:?}");
        }
        assert!(all.iter().all(|g| g.next.contains("spec.")), "{all:?}");
        // What is configured is not listed.
        for what in ["monitoring: key figures", "monitoring: a breach that rolls back", "automatic rollback"] {
            assert!(all.iter().all(|g| g.what != what), "{what}");
        }
    }

    #[rstest::rstest]
    #[case(
        "/code",
        json!({"repository": "https://git.example.com/a.git", "commit": "a".repeat(40), "secretRef": {"name": "git"}}),
        "tag and branch of the code"
    )]
    #[case("/rollback/triggers/balanceErrors/mode", json!("Enabled"), "trigger: wrong balances")]
    #[case(
        "/rollback/triggers/coreFunction",
        json!({"http": {"url": "http://shop/"}}),
        "trigger: the application cannot be used"
    )]
    #[case(
        "/validation/checks",
        json!([{"name": "total", "balances": {"compare": "Total"}, "max": "1"}]),
        "validation: sum of balances"
    )]
    #[case(
        "/validation/checks",
        json!([{"name": "p95", "http": {"url": "http://shop/", "percentile": 95}, "max": "100"}]),
        "validation: response time below 100 ms"
    )]
    #[case(
        "/validation/checks",
        json!([{"name": "p95", "max": "100",
            "prometheus": {"url": "http://p", "query": "histogram_quantile(0.95, a)"}}]),
        "validation: response time below 100 ms"
    )]
    #[case(
        "/validation/checks",
        json!([{"name": "rate", "prometheus": {"url": "http://p", "query": "a / b"}, "max": "0.001"}]),
        "validation: error rate below 0.1%"
    )]
    #[case(
        "/notifications/channels",
        json!([{"name": "t", "audiences": ["Support", "Team"],
            "slack": {"urlSecretRef": {"name": "s", "key": "url"}}}]),
        "notices to Team"
    )]
    #[case("/migration/verifyDown", json!("SELECT true"), "a query that verifies the rollback")]
    #[case(
        "/notifications/channels",
        json!([{"name": "t", "audiences": ["Team"],
            "slack": {"urlSecretRef": {"name": "s", "key": "url"}}}]),
        "notices to Team"
    )]
    fn what_is_configured_is_covered(#[case] path: &str, #[case] value: serde_json::Value, #[case] what: &str) {
        assert!(names(&spec()).iter().any(|w| w == what));
        let mut object = serde_json::to_value(spec()).unwrap();
        let (parent, key) = path.rsplit_once('/').unwrap();
        object.pointer_mut(parent).unwrap()[key] = value;
        let changed = serde_json::from_value(object).unwrap();
        assert!(names(&changed).iter().all(|w| w != what), "{:?}", names(&changed));
    }

    #[rstest::rstest]
    #[case("/credits/balances/purchasedColumn", &["purchased credits"])]
    #[case("/credits/transactions/typeColumn", &["types of transactions"])]
    #[case("/credits/transactions", &["transactions: nothing explains balances after the window"])]
    fn what_a_ledger_has_not_is_not_covered(#[case] path: &str, #[case] wanted: &[&str]) {
        let ledger = |spec: &CreditMigrationSpec| {
            let gaps = spec.not_covered().into_iter().filter(|gap| gap.topic == Topic::Ledger);
            gaps.map(|gap| gap.what).collect::<Vec<_>>()
        };
        assert!(ledger(&spec()).is_empty());
        let mut object = serde_json::to_value(spec()).unwrap();
        *object.pointer_mut(path).unwrap() = serde_json::Value::Null;
        assert_eq!(ledger(&serde_json::from_value(object).unwrap()), wanted);
    }

    /// Configuration that resembles the line and does not cover it.
    #[rstest::rstest]
    #[case(
        "/validation/checks",
        json!([{"name": "p95", "http": {"url": "http://shop/", "percentile": 95}}]),
        "validation: response time below 100 ms"
    )]
    #[case(
        "/validation/checks",
        json!([{"name": "pods", "prometheus": {"url": "http://p", "query": "count(up)"}, "min": "3"}]),
        "validation: error rate below 0.1%"
    )]
    #[case(
        "/validation/checks",
        json!([{"name": "p95", "max": "0.1",
            "prometheus": {"url": "http://p", "query": "histogram_quantile(0.95, a)"}}]),
        "validation: error rate below 0.1%"
    )]
    #[case(
        "/validation/checks",
        json!([{"name": "queue", "prometheus": {"url": "http://p", "query": "sum(a)"}, "max": "100"}]),
        "validation: error rate below 0.1%"
    )]
    #[case(
        "/notifications/channels",
        json!([{"name": "t", "audiences": ["Team", "Support"],
            "slack": {"urlSecretRef": {"name": "s", "key": "url"}}}]),
        "notices to Support"
    )]
    fn what_only_looks_like_it_is_not_covered(
        #[case] path: &str,
        #[case] value: serde_json::Value,
        #[case] what: &str,
    ) {
        let mut object = serde_json::to_value(spec()).unwrap();
        let (parent, key) = path.rsplit_once('/').unwrap();
        object.pointer_mut(parent).unwrap()[key] = value;
        let changed = serde_json::from_value(object).unwrap();
        assert!(names(&changed).iter().any(|w| w == what), "{:?}", names(&changed));
    }

    #[test]
    fn nothing_is_left_when_all_is_there() {
        let mut spec = serde_json::to_value(crate::api::fixtures::spec()).unwrap();
        let step = json!({"name": "a", "url": "http://shop"});
        let source = json!({"sequence": {"steps": [step]}});
        let slack = json!({"urlSecretRef": {"name": "a", "key": "b"}});
        let channel = |n, audience: &str| json!({"name": format!("c{n}"), "audiences": [audience], "slack": slack});
        let audiences = ["Team", "Support", "Users", "Social", "StatusPage"];
        let channels: Vec<_> = audiences.iter().enumerate().map(|(n, audience)| channel(n, audience)).collect();
        let roles = ["DBA", "BackendLead", "DevOps", "ProductManager", "CTO"];
        let contacts: Vec<_> =
            roles.iter().map(|r| json!({"role": r, "name": "a", "phone": "1", "duty": "b"})).collect();
        let any = json!([{"name": "a", "sql": {"query": "SELECT 0"}, "max": "0"}]);
        for (path, value) in [
            ("code", json!({"repository": "ssh://git/x", "commit": "0", "secretRef": {"name": "git"}})),
            (
                "notifications",
                json!({
                    "channels": channels,
                    "contacts": contacts,
                }),
            ),
            (
                "rollback",
                json!({"triggers": {
                    "paymentProcessing": source, "coreFunction": source,
                    "errorRate": {"prometheus": {"url": "http://p", "query": "a", "samplesQuery": "b"}},
                }}),
            ),
            (
                "validation",
                json!({"duration": "1m", "checks": [
                    {"name": "functions", "sequence": {"steps": [step]}},
                    {"name": "p95", "http": {"url": "http://shop", "percentile": 95}, "max": "100"},
                    {"name": "queries", "statements": {}, "max": "50"},
                    {"name": "balances", "balances": {}, "max": "0"},
                    {"name": "rate", "prometheus": {"url": "http://p", "query": "a"}, "max": "0.001"},
                ]}),
            ),
            (
                "monitoring",
                json!({"duration": "1m", "checks": [
                    {"name": "errors", "logs": {"workload": {"kind": "Deployment", "name": "shop"}}, "max": "0"},
                    {"name": "negative", "sql": {"query": "SELECT 0"}, "max": "0", "onBreach": "Rollback"},
                ]}),
            ),
            ("followUps", json!({"day": {"checks": any}, "week": {"checks": any}})),
        ] {
            spec[path] = value;
        }
        spec["migration"]["verifyDown"] = json!("SELECT true");
        let spec: CreditMigrationSpec = serde_json::from_value(spec).unwrap();
        assert_eq!(spec.not_covered(), []);
    }
}
