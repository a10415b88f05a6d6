//! What is exposed, read as Prometheus reads it.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{migrations::FAMILIES, *};
use crate::{
    api::{CreditMigrationSpec, Phase, WindowStatus, Writes},
    shared::time::to_signed,
};

fn at(seconds: i64) -> Time {
    Time::from_second(seconds).unwrap()
}

fn spec() -> CreditMigrationSpec {
    let mut spec = crate::api::fixtures::spec();
    spec.follow_ups = Default::default();
    spec
}

/// The metrics of a migration with this status, at 10 s past 1970-01-02.
fn exposed(status: Value) -> String {
    let metrics = Metrics::default();
    let status = serde_json::from_value(status).unwrap();
    metrics.observe("shop", &CreditMigration::new("m", spec()), &status, at(86_400));
    metrics.render(at(86_410))
}

/// The lines of one family, without what all have in common.
fn family(text: &str, family: &str) -> Vec<String> {
    let start = format!("credit_migration_{family}{{namespace=\"shop\",name=\"m\"");
    let lines = text.lines().filter_map(|l| l.strip_prefix(&start));
    // A whole number has its decimal, 1.0.
    lines.map(|l| l.trim_start_matches([',', '}', ' ']).trim_end_matches(".0").to_owned()).collect()
}

/// As much as a status can have while the new version is observed.
fn rich() -> Value {
    let check = |name: &str, outcome: &str, breached: bool| {
        json!({"name": name, "outcome": outcome, "failed": 0, "measured": 1, "breached": breached,
               "message": "bob@shop.example", "at": "1970-01-02T00:00:00Z"})
    };
    let notice = |occasion: &str, state: &str| {
        json!({"notice": {"id": "1", "occasion": occasion, "at": "1970-01-02T00:00:00Z",
                          "message": "bob@shop.example", "phase": "Observing"},
               "state": state, "attempt": 1})
    };
    json!({
        "phase": "Observing", "step": "Decide", "writes": "Open",
        "approvedBy": ["bob@shop.example"],
        "conditions": [{"type": "Ready", "status": "False", "reason": "DecisionDue", "message": "bob@shop.example",
                        "lastTransitionTime": "1970-01-02T00:00:00Z"},
                       {"type": "RollbackReady", "status": "False", "reason": "WorkloadPaused", "message": "",
                        "lastTransitionTime": "1970-01-02T00:00:00Z"}],
        "steps": [{"name": "Decide", "state": "Running", "attempt": 1, "failures": 2,
                   "startedAt": "1970-01-02T00:00:05Z"}],
        "backup": {"object": "s3://b/o", "statisticsObject": "s3://b/s", "bytes": 1, "sha256": "0",
                   "pgDumpVersion": "17", "finishedAt": "1970-01-01T23:00:00Z"},
        "work": {"work": "Copy", "unit": "Bytes", "done": 5000, "total": 8000, "at": "1970-01-02T00:00:00Z"},
        "rehearsal": {"users": 1, "restoreSeconds": 1.0, "migrateSeconds": 1.0, "rollbackSeconds": 1.0,
                      "tablesEqual": 1},
        "plan": {"generation": 1, "upSha256": "u", "downSha256": "d", "expectedWindow": {"seconds": 13}},
        "schedule": {"startsAt": "1970-01-01T23:30:00Z", "present": ["bob@shop.example"]},
        "window": {"blockedAt": "1970-01-02T00:00:00Z", "unblockedAt": "1970-01-02T00:00:03Z",
                   "deadline": "1970-01-02T00:01:00Z"},
        "checks": [check("errors", "Fail", true), check("invented", "Pass", false)],
        "notices": [notice("DecisionDue", "Undelivered"), notice("DecisionDue", "Undelivered"),
                    notice("Finished", "Delivered")],
        "rollback": {"cause": "TriggerFired", "message": "bob@shop.example", "startedAt": "1970-01-02T00:00:07Z"},
    })
}

#[rstest::rstest]
#[case::said_by_the_runner(Some(1100), Some(1150), 60.0)]
#[case::the_runner_is_silent(None, Some(1120), 100.0)]
#[case::no_window(None, None, 0.0)]
fn blocked_writes_grow_older(#[case] blocked: Option<i64>, #[case] deadline: Option<i64>, #[case] seconds: f64) {
    let spec = crate::api::fixtures::spec();
    assert_eq!(to_signed(spec.window.max_duration).as_secs(), 60);
    let window = WindowStatus { blocked_at: blocked.map(at), deadline: deadline.map(at), ..WindowStatus::default() };
    let status = CreditMigrationStatus {
        writes: Some(Writes::Blocked),
        window: Some(window),
        ..CreditMigrationStatus::default()
    };
    let metrics = Metrics::default();
    // No matter how often it is observed.
    for now in [1100, 1160] {
        metrics.observe("shop", &CreditMigration::new("m", spec.clone()), &status, at(now));
    }
    let line = format!("credit_migration_writes_blocked_seconds{{namespace=\"shop\",name=\"m\"}} {seconds:.1}\n");
    assert!(metrics.render(at(1160)).contains(&line), "{}", metrics.render(at(1160)));
}

#[rstest::rstest]
#[case("phase", &["phase=\"Observing\"} 1"])]
#[case("reason", &["phase=\"Observing\",reason=\"DecisionDue\"} 1"])]
#[case("stalled", &["0"])]
#[case("rollback_ready", &["status=\"True\"} 0", "status=\"False\"} 1", "status=\"Unknown\"} 0"])]
#[case("step_started_timestamp_seconds", &["step=\"Decide\"} 86405"])]
#[case("step_failures", &["step=\"Decide\"} 2"])]
#[case("work_done", &["work=\"Copy\",unit=\"Bytes\"} 5000"])]
#[case("work_total", &["work=\"Copy\",unit=\"Bytes\"} 8000"])]
#[case("writes_blocked_seconds", &["0"])]
#[case("window_limit_seconds", &["60"])]
#[case("window_expected_seconds", &["13"])]
#[case("window_seconds", &["3"])]
#[case::writes_are_open("window_deadline_timestamp_seconds", &[])]
#[case("window_starts_timestamp_seconds", &["84600"])]
#[case("backup_timestamp_seconds", &["82800"])]
#[case("backup_max_age_seconds", &["86400"])]
#[case::only_checks_of_the_spec("check_breached", &["check=\"errors\"} 1"])]
#[case("check_outcome", &["check=\"errors\",outcome=\"Fail\"} 1"])]
#[case("notices", &[
    "occasion=\"DecisionDue\",state=\"Undelivered\"} 2",
    "occasion=\"Finished\",state=\"Delivered\"} 1",
])]
#[case("follow_up_due_timestamp_seconds", &["follow_up=\"day\"} 172803", "follow_up=\"week\"} 691203"])]
#[case("decision_due_timestamp_seconds", &["86405"])]
#[case("rollbacks_total", &["1"])]
#[case("rollback_started_timestamp_seconds", &["cause=\"TriggerFired\"} 86407"])]
fn a_status_is_exposed(#[case] name: &str, #[case] lines: &[&str]) {
    assert_eq!(family(&exposed(rich()), name), lines);
}

#[test]
fn what_is_not_true_any_more_is_not_exposed() {
    let mut ended = rich();
    ended["phase"] = json!("Completed");
    ended["step"] = json!("Decide");
    let text = exposed(ended);
    for name in ["check_outcome", "check_breached", "follow_up_due_timestamp_seconds", "decision_due_timestamp_seconds"]
    {
        assert_eq!(family(&text, name), Vec::<String>::new(), "{name}");
    }
    let mut reported = rich();
    let report = json!({"object": "s3://b/r", "bytes": 1, "sha256": "0", "passed": 1, "checks": 1, "summary": "",
                        "takenAt": "1970-01-02T00:00:00Z"});
    reported["dayReport"] = report;
    let due = family(&exposed(reported), "follow_up_due_timestamp_seconds");
    assert_eq!(due, ["follow_up=\"week\"} 691203"]);
}

#[test]
fn an_open_window_has_a_deadline_and_a_stalled_one_is_exposed() {
    let mut open = rich();
    open["writes"] = json!("Blocked");
    open["phase"] = json!("RollbackFailed");
    open["window"] = json!({"blockedAt": "1970-01-02T00:00:00Z", "deadline": "1970-01-02T00:01:00Z"});
    open["conditions"][0]["type"] = json!("Stalled");
    open["conditions"][0]["status"] = json!("True");
    let text = exposed(open);
    assert_eq!(family(&text, "window_deadline_timestamp_seconds"), ["86460"]);
    assert_eq!(family(&text, "writes_blocked_seconds"), ["10"]);
    assert_eq!(family(&text, "stalled"), ["1"]);
    assert_eq!(family(&text, "window_seconds"), Vec::<String>::new());
}

#[test]
fn neither_people_nor_texts_are_exposed() {
    let mut status = rich();
    status["rollback"]["cause"] = json!("said \"bob@shop.example\"\n");
    let text = exposed(status);
    assert!(!text.contains("bob") && !text.contains("s3:"), "{text}");
    assert!(text.contains("cause=\"Other\"} 86407.0\n"), "{text}");
}

/// Names of series: a rule or a panel over one that is not exposed would stay silent.
fn names(text: &str) -> BTreeSet<String> {
    // The series of a family that has none yet.
    let of_kind = |line: &str| {
        let suffixes: &[&str] = match line.rsplit(' ').next() {
            Some("counter") => &["_total"],
            Some("histogram") => &["_bucket", "_sum", "_count"],
            _ => &[""],
        };
        let family = line.split(' ').nth(2).unwrap_or_default().to_owned();
        suffixes.iter().map(move |suffix| format!("{family}{suffix}")).collect::<Vec<_>>()
    };
    if text.ends_with("# EOF\n") {
        return text.lines().filter(|l| l.starts_with("# TYPE ")).flat_map(of_kind).collect();
    }
    let parts = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    parts.filter(|p| p.starts_with("credit_migration_")).map(str::to_owned).collect()
}

#[test]
fn rules_and_dashboard_use_what_is_exposed() {
    let exposed = names(&Metrics::default().render(at(0)));
    assert!(exposed.len() > FAMILIES.len());
    let rules = names(include_str!("../../../charts/credit-migration-operator/templates/prometheusrule.yaml"));
    let dashboard =
        names(include_str!("../../../charts/credit-migration-operator/files/dashboards/credit-migrations.json"));
    for (file, used) in [("prometheusrule.yaml", &rules), ("credit-migrations.json", &dashboard)] {
        assert!(used.len() > 5, "{file}: {used:?}");
        let unknown: Vec<&String> = used.difference(&exposed).collect();
        assert!(unknown.is_empty(), "{file}: {unknown:?}");
    }
    // An alert is followed up there. Of a histogram one of its series is enough.
    let histogram = |name: &str| {
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
        family.unwrap_or(name).to_owned()
    };
    let shown: BTreeSet<String> = dashboard.iter().map(|name| histogram(name)).collect();
    let absent: Vec<&String> = exposed.iter().filter(|name| !shown.contains(&histogram(name))).collect();
    assert!(absent.is_empty(), "not on the dashboard: {absent:?}");
}

/// Those of the schema, which has all.
fn phases() -> BTreeSet<String> {
    let schema = serde_json::to_value(schemars::schema_for!(Phase)).unwrap();
    let variants = schema["oneOf"].as_array().unwrap();
    variants.iter().map(|v| v["const"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn rules_name_phases_that_there_are() {
    let rules = include_str!("../../../charts/credit-migration-operator/templates/prometheusrule.yaml");
    let listed = rules.split("phase=").skip(1).map(|p| p.trim_start_matches('~').split('"').nth(1).unwrap());
    let named: BTreeSet<String> = listed.flat_map(|l| l.split('|')).map(str::to_owned).collect();
    let ends = ["Completed", "RolledBack", "Cancelled"].map(str::to_owned);
    // A phase that no rule names could last for ever without an alert.
    assert_eq!(&phases() - &named, BTreeSet::from(ends));
    assert_eq!(&named - &phases(), BTreeSet::new());
}
