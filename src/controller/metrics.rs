//! What is exposed, computed from what is persisted: whoever leads next shows the same.
//!
//! Labels are names of objects and of checks (of the spec, hence bounded), and variants of enums: never texts, people or
//! addresses. Points in time are exposed as such, in seconds since 1970, so that a rule can tell their age while nobody looks.

use std::{collections::BTreeMap, fmt::Write, sync::Mutex};

use kube::ResourceExt;

use super::Error;
use crate::{
    api::{CheckOutcome, CreditMigration, CreditMigrationSpec, CreditMigrationStatus, Phase, Step, Task, Time, Writes},
    shared::time::{saturating_add, to_signed},
};

/// Name (without its prefix), type and meaning of each family of a migration. Each has the labels `namespace` and `name`.
const FAMILIES: &[(&str, &str, &str)] = &[
    ("phase", "gauge", "1 for the phase in which the migration is."),
    ("reason", "gauge", "1 for the phase and the reason of condition Ready."),
    ("stalled", "gauge", "1 while nothing goes on without a person."),
    ("step_started_timestamp_seconds", "gauge", "When the present step was begun."),
    ("step_failures", "gauge", "Tries of the present step that failed since the plan was last changed."),
    (
        "writes_blocked_seconds",
        "gauge",
        "How long writes have been blocked by now, or may have been; 0 when they are open.",
    ),
    ("window_limit_seconds", "gauge", "Longest time for which writes may stay blocked, spec.window.maxDuration."),
    ("window_expected_seconds", "gauge", "Length of the window as the rehearsal predicts it."),
    ("window_seconds", "gauge", "How long writes were blocked in the last window that is over."),
    ("window_deadline_timestamp_seconds", "gauge", "When the open window must be over; only while writes are blocked."),
    ("window_opens_timestamp_seconds", "gauge", "First time at which the window may be opened, as planned."),
    ("backup_timestamp_seconds", "gauge", "End of the upload of the present plan's backup."),
    ("backup_max_age_seconds", "gauge", "Oldest backup with which the window is opened, spec.schedule.backupMaxAge."),
    ("check_outcome", "gauge", "1 for the last outcome of a check, while the new version is watched."),
    ("check_breached", "gauge", "1 if a check reached its limit at any time in this stage."),
    ("notices", "gauge", "Notices by occasion and by what became of them."),
    (
        "follow_up_due_timestamp_seconds",
        "gauge",
        "When a check after a day or a week is due; only while it has no report.",
    ),
    (
        "decision_due_timestamp_seconds",
        "gauge",
        "Since when a person is asked whether to keep the new version or roll back; only while that is so.",
    ),
    ("rollbacks_total", "counter", "Ways back that were begun."),
    ("rollback_started_timestamp_seconds", "gauge", "When the way back was begun, by its cause."),
];

/// Classes of failed reconciliations: each is there from the beginning, for a counter that starts at 1 has no increase.
const CLASSES: [&str; 6] = ["kubernetes", "timeout", "conflict", "lease", "foreign", "other"];

/// What is exposed.
#[derive(Default)]
pub(super) struct Metrics {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    waiting_for: Option<String>,
    leading: bool,
    reconciled: u64,
    failures: BTreeMap<&'static str, u64>,
    migrations: BTreeMap<(String, String), Seen>,
}

struct Seen {
    blocked_since: Option<Time>,
    samples: Vec<Sample>,
}

/// A value of a family, with the labels beside namespace and name.
struct Sample {
    family: &'static str,
    labels: Vec<(&'static str, String)>,
    value: f64,
}

impl Metrics {
    fn with<T>(&self, f: impl FnOnce(&mut Inner) -> T) -> T {
        // A poisoned lock still holds counters; losing them would lose the alarm.
        f(&mut self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// What this replica waits for before it leads; `None` when it leads.
    pub(super) fn standing_by_for(&self) -> Option<String> {
        self.with(|i| i.waiting_for.clone())
    }

    pub(super) fn waiting_for(&self, what: &str) {
        self.with(|i| i.waiting_for = Some(what.into()));
    }

    pub(super) fn leading(&self) {
        self.with(|i| {
            i.waiting_for = None;
            i.leading = true;
        });
    }

    pub(super) fn reconciled(&self) {
        self.with(|i| i.reconciled += 1);
    }

    pub(super) fn failed(&self, error: &Error) {
        let class = match error {
            Error::Kube(_) => "kubernetes",
            Error::Timeout(_) => "timeout",
            Error::Conflict => "conflict",
            Error::LeaseLost => "lease",
            Error::NotOwned { .. } => "foreign",
            Error::Config(_) | Error::Listen(_) | Error::AdmissionPolicyMissing(_) => "other",
        };
        self.with(|i| *i.failures.entry(class).or_default() += 1);
    }

    /// Takes note of a migration and its status, as both are persisted.
    pub(super) fn observe(&self, namespace: &str, live: &CreditMigration, status: &CreditMigrationStatus, now: Time) {
        let seen = Seen { blocked_since: blocked_since(&live.spec, status, now), samples: samples(&live.spec, status) };
        self.with(|i| i.migrations.insert((namespace.into(), live.name_any()), seen));
    }

    pub(super) fn forget(&self, namespace: &str, name: &str) {
        self.with(|i| i.migrations.remove(&(namespace.to_owned(), name.to_owned())));
    }

    /// Prometheus text format.
    pub(super) fn render(&self, now: Time) -> String {
        let mut out = String::new();
        self.with(|i| {
            head(&mut out, "leader", "gauge", "1 if this replica leads.");
            line(&mut out, "leader", &[], f64::from(u8::from(i.leading)));
            head(&mut out, "reconciles_total", "counter", "Reconciliations without a failure.");
            line(&mut out, "reconciles_total", &[], count(i.reconciled));
            head(
                &mut out,
                "reconcile_failures_total",
                "counter",
                "Failed reconciliations, by class; each is tried again.",
            );
            for class in CLASSES {
                let n = i.failures.get(class).copied().unwrap_or_default();
                line(&mut out, "reconcile_failures_total", &[("class", class)], count(n));
            }
            for (family, kind, help) in FAMILIES {
                head(&mut out, family, kind, help);
                for ((namespace, name), seen) in &i.migrations {
                    let whose = [("namespace", namespace.as_str()), ("name", name.as_str())];
                    if *family == "writes_blocked_seconds" {
                        // Told by the clock and not by the last look: it grows while reconciliation hangs.
                        let seconds = seen.blocked_since.map_or(0.0, |t| now.duration_since(t).as_secs_f64().max(0.0));
                        line(&mut out, family, &whose, seconds);
                    }
                    for sample in seen.samples.iter().filter(|s| s.family == *family) {
                        let more = sample.labels.iter().map(|(label, value)| (*label, value.as_str()));
                        line(&mut out, family, &whose.into_iter().chain(more).collect::<Vec<_>>(), sample.value);
                    }
                }
            }
        });
        out
    }
}

fn head(out: &mut String, family: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP credit_migration_{family} {help}\n# TYPE credit_migration_{family} {kind}");
}

fn line(out: &mut String, family: &str, labels: &[(&str, &str)], value: f64) {
    let labels: Vec<String> = labels.iter().map(|(label, value)| format!("{label}=\"{value}\"")).collect();
    let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
    let _ = writeln!(out, "credit_migration_{family}{labels} {value}");
}

#[allow(clippy::cast_precision_loss, reason = "Prometheus knows no other number")]
fn count(n: u64) -> f64 {
    n as f64
}

fn moment(at: Time) -> f64 {
    at.as_duration().as_secs_f64()
}

/// Since when writes are blocked, or may be; `None` when they are open.
fn blocked_since(spec: &CreditMigrationSpec, status: &CreditMigrationStatus, now: Time) -> Option<Time> {
    // Without the runner's word they may be blocked since the order was given. Counted from now on, at each look anew, a
    // runner that cannot report would never set off the alarm.
    let window = status.window.as_ref();
    let ordered = || window.and_then(|w| w.deadline).map(|at| at - to_signed(spec.window.max_duration));
    let since = window.and_then(|w| w.blocked_at).or_else(ordered).unwrap_or(now);
    (status.writes == Some(Writes::Blocked)).then_some(since)
}

/// Label value of a text that is the name of a variant: anything else could break the format, or tell what it must not.
fn variant(text: &str) -> String {
    let one = !text.is_empty() && text.len() <= 63 && text.chars().all(|c| c.is_ascii_alphanumeric());
    if one { text.into() } else { "Other".into() }
}

/// All that does not change by itself as time goes by.
fn samples(spec: &CreditMigrationSpec, status: &CreditMigrationStatus) -> Vec<Sample> {
    let mut all = vec![];
    let mut add = |family, labels: &[(&'static str, &str)], value| {
        let labels = labels.iter().map(|(label, value)| (*label, (*value).to_owned())).collect();
        all.push(Sample { family, labels, value });
    };
    let seconds = |d: kube::core::Duration| std::time::Duration::from(d).as_secs_f64();
    let phase = status.phase.unwrap_or(Phase::Preparing);
    let phase_name = format!("{phase:?}");
    let condition = |kind: &str| status.conditions.iter().find(|c| c.type_ == kind);
    let watched = matches!(phase, Phase::Validating | Phase::Monitoring | Phase::Observing);

    add("phase", &[("phase", &phase_name)], 1.0);
    if let Some(ready) = condition("Ready") {
        add("reason", &[("phase", &phase_name), ("reason", &variant(&ready.reason))], 1.0);
    }
    add("stalled", &[], f64::from(u8::from(condition("Stalled").is_some_and(|c| c.status == "True"))));
    let step = status.step.and_then(|now| status.steps.iter().find(|x| x.name == now));
    if let Some(step) = step {
        let name = format!("{:?}", step.name);
        add("step_started_timestamp_seconds", &[("step", &name)], moment(step.started_at));
        add("step_failures", &[("step", &name)], f64::from(step.failures));
    }

    add("window_limit_seconds", &[], seconds(spec.window.max_duration));
    if let Some(r) = &status.rehearsal {
        add("window_expected_seconds", &[], r.expected_window_seconds);
    }
    let window = status.window.as_ref();
    if let Some((from, to)) = window.and_then(|w| Some((w.blocked_at?, w.released_at?))) {
        add("window_seconds", &[], to.duration_since(from).as_secs_f64().max(0.0));
    }
    if let (Some(at), Some(Writes::Blocked)) = (window.and_then(|w| w.deadline), status.writes) {
        add("window_deadline_timestamp_seconds", &[], moment(at));
    }
    if let Some(at) = status.schedule.as_ref().and_then(|s| s.starts_at) {
        add("window_opens_timestamp_seconds", &[], moment(at));
    }
    if let Some(b) = &status.backup {
        add("backup_timestamp_seconds", &[], moment(b.finished_at));
        add("backup_max_age_seconds", &[], seconds(spec.schedule.backup_max_age));
    }

    // The status keeps the last stage's results for ever; an alarm on them would last as long.
    for result in status.checks.iter().filter(|r| watched && is_of_spec(spec, &r.name)) {
        let outcome = match result.outcome {
            CheckOutcome::Pass => "Pass",
            CheckOutcome::Fail => "Fail",
            CheckOutcome::Error => "Error",
            CheckOutcome::NoData => "NoData",
        };
        add("check_outcome", &[("check", &result.name), ("outcome", outcome)], 1.0);
        add("check_breached", &[("check", &result.name)], f64::from(u8::from(result.breached)));
    }
    let mut notices = BTreeMap::<(String, String), u32>::new();
    for n in &status.notices {
        *notices.entry((format!("{:?}", n.notice.occasion), format!("{:?}", n.state))).or_default() += 1;
    }
    for ((occasion, state), n) in &notices {
        add("notices", &[("occasion", occasion), ("state", state)], f64::from(*n));
    }

    let cut_over = window.and_then(|w| w.released_at).filter(|_| watched);
    let follow_ups = [
        ("day", spec.follow_ups.day_after(), &status.day_report),
        ("week", spec.follow_ups.week_after(), &status.week_report),
    ];
    for (follow_up, after, report) in follow_ups {
        if let (Some(at), None) = (cut_over, report) {
            add(
                "follow_up_due_timestamp_seconds",
                &[("follow_up", follow_up)],
                moment(saturating_add(at, to_signed(after))),
            );
        }
    }
    if let Some(decide) = step.filter(|x| phase == Phase::Observing && x.name == Step::Decide) {
        add("decision_due_timestamp_seconds", &[], moment(decide.started_at));
    }
    // From the status, so that a change of leader neither loses nor repeats one.
    add("rollbacks_total", &[], f64::from(u8::from(status.rollback.is_some())));
    if let Some(r) = &status.rollback {
        add("rollback_started_timestamp_seconds", &[("cause", &variant(&r.cause))], moment(r.started_at));
    }
    all
}

/// Results come from runners: only names of the spec become series.
fn is_of_spec(spec: &CreditMigrationSpec, name: &str) -> bool {
    [Task::Validate, Task::Monitor, Task::DayCheck, Task::WeekReview]
        .into_iter()
        .any(|task| spec.checks_of(task).iter().any(|c| c.name == name))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::{Value, json};

    use super::*;
    use crate::api::WindowStatus;

    fn at(seconds: i64) -> Time {
        Time::from_second(seconds).unwrap()
    }

    fn spec() -> CreditMigrationSpec {
        let mut spec = crate::api::fixtures::spec();
        spec.follow_ups = Default::default();
        spec
    }

    /// What is exposed of a migration with this status, at 10 s past 1970-01-02.
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
        lines.map(|l| l.trim_start_matches([',', '}', ' ']).to_owned()).collect()
    }

    /// As much as a status can hold while the new version is watched.
    fn rich() -> Value {
        let check = |name: &str, outcome: &str, breached: bool| {
            json!({"name": name, "outcome": outcome, "failed": 0, "measured": 1, "breached": breached,
                   "message": "bob@shop.example", "at": "1970-01-02T00:00:00Z"})
        };
        let notice = |occasion: &str, state: &str| {
            json!({"notice": {"id": "1", "occasion": occasion, "at": "1970-01-02T00:00:00Z", "message": "bob@shop.example", "phase": "Observing"},
                   "state": state, "attempt": 1})
        };
        json!({
            "phase": "Observing", "step": "Decide", "writes": "Open",
            "approvedBy": ["bob@shop.example"],
            "conditions": [{"type": "Ready", "status": "False", "reason": "DecisionDue", "message": "bob@shop.example", "lastTransitionTime": "1970-01-02T00:00:00Z"}],
            "steps": [{"name": "Decide", "state": "Running", "attempt": 1, "failures": 2, "startedAt": "1970-01-02T00:00:05Z"}],
            "backup": {"object": "s3://b/o", "statisticsObject": "s3://b/s", "bytes": 1, "sha256": "0", "pgDumpVersion": "17", "finishedAt": "1970-01-01T23:00:00Z"},
            "rehearsal": {"users": 1, "restoreSeconds": 1.0, "migrateSeconds": 1.0, "rollbackSeconds": 1.0, "tablesEqual": 1, "expectedWindowSeconds": 12.5},
            "schedule": {"startsAt": "1970-01-01T23:30:00Z", "present": ["bob@shop.example"]},
            "window": {"blockedAt": "1970-01-02T00:00:00Z", "releasedAt": "1970-01-02T00:00:03Z", "deadline": "1970-01-02T00:01:00Z"},
            "checks": [check("errors", "Fail", true), check("invented", "Pass", false)],
            "notices": [notice("DecisionDue", "Undelivered"), notice("DecisionDue", "Undelivered"), notice("Finished", "Delivered")],
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
        let window =
            WindowStatus { blocked_at: blocked.map(at), deadline: deadline.map(at), ..WindowStatus::default() };
        let status = CreditMigrationStatus {
            writes: Some(Writes::Blocked),
            window: Some(window),
            ..CreditMigrationStatus::default()
        };
        let metrics = Metrics::default();
        // However often it is looked at.
        for now in [1100, 1160] {
            metrics.observe("shop", &CreditMigration::new("m", spec.clone()), &status, at(now));
        }
        let line = format!("credit_migration_writes_blocked_seconds{{namespace=\"shop\",name=\"m\"}} {seconds}\n");
        assert!(metrics.render(at(1160)).contains(&line), "{}", metrics.render(at(1160)));
    }

    #[rstest::rstest]
    #[case("phase", &["phase=\"Observing\"} 1"])]
    #[case("reason", &["phase=\"Observing\",reason=\"DecisionDue\"} 1"])]
    #[case("stalled", &["0"])]
    #[case("step_started_timestamp_seconds", &["step=\"Decide\"} 86405"])]
    #[case("step_failures", &["step=\"Decide\"} 2"])]
    #[case("writes_blocked_seconds", &["0"])]
    #[case("window_limit_seconds", &["60"])]
    #[case("window_expected_seconds", &["12.5"])]
    #[case("window_seconds", &["3"])]
    #[case::writes_are_open("window_deadline_timestamp_seconds", &[])]
    #[case("window_opens_timestamp_seconds", &["84600"])]
    #[case("backup_timestamp_seconds", &["82800"])]
    #[case("backup_max_age_seconds", &["86400"])]
    #[case::only_checks_of_the_spec("check_breached", &["check=\"errors\"} 1"])]
    #[case("check_outcome", &["check=\"errors\",outcome=\"Fail\"} 1"])]
    #[case("notices", &["occasion=\"DecisionDue\",state=\"Undelivered\"} 2", "occasion=\"Finished\",state=\"Delivered\"} 1"])]
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
        for name in
            ["check_outcome", "check_breached", "follow_up_due_timestamp_seconds", "decision_due_timestamp_seconds"]
        {
            assert_eq!(family(&text, name), Vec::<String>::new(), "{name}");
        }
        let mut reported = rich();
        let report = json!({"object": "s3://b/r", "bytes": 1, "sha256": "0", "passed": 1, "checks": 1, "summary": "", "takenAt": "1970-01-02T00:00:00Z"});
        reported["dayReport"] = report;
        let due = family(&exposed(reported), "follow_up_due_timestamp_seconds");
        assert_eq!(due, ["follow_up=\"week\"} 691203"]);
    }

    #[test]
    fn an_open_window_has_a_deadline_and_a_stalled_one_is_told() {
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
        assert!(text.contains("cause=\"Other\"} 86407"), "{text}");
    }

    /// Names of series: a rule or a panel over one that nobody exposes is never anything but silent.
    fn names(text: &str) -> BTreeSet<String> {
        let parts = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        parts.filter(|p| p.starts_with("credit_migration_")).map(str::to_owned).collect()
    }

    #[test]
    fn rules_and_dashboard_use_what_is_exposed() {
        let exposed = names(&Metrics::default().render(at(0)));
        assert!(exposed.len() > FAMILIES.len());
        for (file, text) in [
            (
                "prometheusrule.yaml",
                include_str!("../../charts/credit-migration-operator/templates/prometheusrule.yaml"),
            ),
            (
                "credit-migrations.json",
                include_str!("../../charts/credit-migration-operator/files/dashboards/credit-migrations.json"),
            ),
        ] {
            let used = names(text);
            assert!(used.len() > 5, "{file}: {used:?}");
            let unknown: Vec<&String> = used.difference(&exposed).collect();
            assert!(unknown.is_empty(), "{file}: {unknown:?}");
        }
    }

    /// The schema's, for none can be forgotten there.
    fn phases() -> BTreeSet<String> {
        let schema = serde_json::to_value(schemars::schema_for!(Phase)).unwrap();
        let variants = schema["oneOf"].as_array().unwrap();
        variants.iter().map(|v| v["const"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn rules_name_phases_that_there_are() {
        let rules = include_str!("../../charts/credit-migration-operator/templates/prometheusrule.yaml");
        let listed = rules.split("phase=").skip(1).map(|p| p.trim_start_matches('~').split('"').nth(1).unwrap());
        let named: BTreeSet<String> = listed.flat_map(|l| l.split('|')).map(str::to_owned).collect();
        let ends = ["Completed", "RolledBack", "Cancelled"].map(str::to_owned);
        // One that no rule names could last for ever unseen.
        assert_eq!(&phases() - &named, BTreeSet::from(ends));
        assert_eq!(&named - &phases(), BTreeSet::new());
    }
}
