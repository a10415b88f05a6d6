//! Metrics of each migration, computed from its persisted status: the next leader exposes the same.
//!
//! Labels are names of objects and of checks (of the spec, hence bounded), and variants of enums: never texts, names of
//! users or addresses. Points in time are exposed in seconds since 1970, so that a rule can compute their age while
//! nothing is reconciled.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use kube::ResourceExt;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

use crate::{
    api::{CreditMigration, CreditMigrationSpec, CreditMigrationStatus, Phase, Step, Task, Time, WorkProgress, Writes},
    shared::time::{saturating_add, to_signed},
};

/// Name (without its prefix, and without `_total` of a counter), type and meaning of each family. Each has the labels
/// `namespace` and `name`.
pub(super) const FAMILIES: &[(&str, MetricType, &str)] = &[
    ("phase", MetricType::Gauge, "1 for the phase in which the migration is."),
    ("reason", MetricType::Gauge, "1 for the phase and the reason of condition Ready."),
    ("stalled", MetricType::Gauge, "1 while manual intervention is required."),
    (
        "rollback_ready",
        MetricType::Gauge,
        "1 for the status of condition RollbackReady; only from the end of the window until Keep.",
    ),
    ("step_started_timestamp_seconds", MetricType::Gauge, "Start of the current step."),
    ("step_failures", MetricType::Gauge, "Failed attempts of the current step since the plan was last changed."),
    ("work_done", MetricType::Gauge, "How much of the long part of a task is done; only while it is under way."),
    ("work_total", MetricType::Gauge, "How much the long part of a task is in all; only while that is known."),
    (
        "writes_blocked_seconds",
        MetricType::Gauge,
        "How long writes have been blocked, or may have been; 0 when they are not.",
    ),
    (
        "window_limit_seconds",
        MetricType::Gauge,
        "Longest time for which writes may stay blocked, spec.window.maxDuration.",
    ),
    ("window_expected_seconds", MetricType::Gauge, "Length of the window as the rehearsal predicts it."),
    ("window_seconds", MetricType::Gauge, "How long writes were blocked in the last window that has ended."),
    ("window_deadline_timestamp_seconds", MetricType::Gauge, "Deadline of the window; only while writes are blocked."),
    ("window_starts_timestamp_seconds", MetricType::Gauge, "Earliest planned start of the window."),
    ("backup_timestamp_seconds", MetricType::Gauge, "End of the upload of the current plan's backup."),
    (
        "backup_max_age_seconds",
        MetricType::Gauge,
        "Maximum age of the backup at the start of the window, spec.schedule.backupMaxAge.",
    ),
    ("check_outcome", MetricType::Gauge, "1 for the last outcome of a check, while the new version is observed."),
    ("check_breached", MetricType::Gauge, "1 if a check reached its limit at any time in this stage."),
    ("notices", MetricType::Gauge, "Notices by kind and state of delivery."),
    (
        "follow_up_due_timestamp_seconds",
        MetricType::Gauge,
        "When a check after a day or a week is due; only while it has no report.",
    ),
    (
        "decision_due_timestamp_seconds",
        MetricType::Gauge,
        "Since when a decision to keep or to roll back is due; only while it is.",
    ),
    ("rollbacks", MetricType::Counter, "Rollbacks that were started."),
    ("rollback_started_timestamp_seconds", MetricType::Gauge, "Start of the rollback, by its cause."),
];

/// The reconciled migrations, as persisted.
#[derive(Debug, Default)]
pub(super) struct Migrations(Mutex<BTreeMap<(String, String), ExposedMigration>>);

#[derive(Debug)]
struct ExposedMigration {
    blocked_since: Option<Time>,
    samples: Vec<MetricSample>,
}

/// A value of a family, with its labels in addition to namespace and name.
#[derive(Debug)]
struct MetricSample {
    family: &'static str,
    labels: Vec<(&'static str, String)>,
    value: f64,
}

impl Migrations {
    fn with<T>(&self, f: impl FnOnce(&mut BTreeMap<(String, String), ExposedMigration>) -> T) -> T {
        // The data behind a poisoned lock is still what an alert needs.
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Records a migration and its status, as persisted.
    pub(super) fn observe(&self, namespace: &str, live: &CreditMigration, status: &CreditMigrationStatus, now: Time) {
        let seen = ExposedMigration {
            blocked_since: blocked_since(&live.spec, status, now),
            samples: samples(&live.spec, status),
        };
        self.with(|all| all.insert((namespace.into(), live.name_any()), seen));
    }

    /// Drops a migration that is gone.
    pub(super) fn forget(&self, namespace: &str, name: &str) {
        self.with(|all| all.remove(&(namespace.to_owned(), name.to_owned())));
    }
}

/// All families, at a point in time.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) migrations: Arc<Migrations>,
    pub(super) now: Time,
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.migrations.with(|all| {
            for (family, kind, help) in FAMILIES {
                let mut metric = encoder.encode_descriptor(family, help, None, *kind)?;
                let mut line = |(namespace, name): &(String, String), more: &[(&str, String)], value: f64| {
                    let whose = [("namespace", namespace.clone()), ("name", name.clone())];
                    let labels: Vec<(&str, String)> = whose.into_iter().chain(more.iter().cloned()).collect();
                    let metric = metric.encode_family(&labels)?;
                    match kind {
                        MetricType::Counter => ConstCounter::new(value).encode(metric),
                        _ => ConstGauge::new(value).encode(metric),
                    }
                };
                for (whose, seen) in &*all {
                    if *family == "writes_blocked_seconds" {
                        // By the clock, not by the last reconciliation: it grows while reconciliation hangs.
                        let since = |at| self.now.duration_since(at).as_secs_f64().max(0.0);
                        line(whose, &[], seen.blocked_since.map_or(0.0, since))?;
                    }
                    for sample in seen.samples.iter().filter(|s| s.family == *family) {
                        line(whose, &sample.labels, sample.value)?;
                    }
                }
            }
            Ok(())
        })
    }
}

fn moment(at: Time) -> f64 {
    at.as_duration().as_secs_f64()
}

/// Since when writes are blocked, or may be; `None` when they are not.
fn blocked_since(spec: &CreditMigrationSpec, status: &CreditMigrationStatus, now: Time) -> Option<Time> {
    // Without a report of the runner they may be blocked since the order was given. Counting from the current time at
    // each reconciliation, a runner that cannot report would never trigger the alert.
    let window = status.window.as_ref();
    let ordered = || window.and_then(|w| w.deadline).map(|at| at - to_signed(spec.window.max_duration));
    let since = window.and_then(|w| w.blocked_at).or_else(ordered).unwrap_or(now);
    (status.writes == Some(Writes::Blocked)).then_some(since)
}

/// Label value of a text that is the name of a variant: any other text could disclose what must not be exposed.
fn variant(text: &str) -> String {
    let one = !text.is_empty() && text.len() <= 63 && text.chars().all(|c| c.is_ascii_alphanumeric());
    if one { text.into() } else { "Other".into() }
}

/// All values that do not change with the clock.
fn samples(spec: &CreditMigrationSpec, status: &CreditMigrationStatus) -> Vec<MetricSample> {
    let mut all = vec![];
    let mut add = |family, labels: &[(&'static str, &str)], value| {
        let labels = labels.iter().map(|(label, value)| (*label, (*value).to_owned())).collect();
        all.push(MetricSample { family, labels, value });
    };
    let seconds = |d: kube::core::Duration| std::time::Duration::from(d).as_secs_f64();
    let phase = status.phase.unwrap_or(Phase::Preparing);
    let phase_name = phase.as_str();
    let condition = |kind: &str| status.conditions.iter().find(|c| c.type_ == kind);
    let watched = matches!(phase, Phase::Validating | Phase::Monitoring | Phase::Observing);

    add("phase", &[("phase", phase_name)], 1.0);
    if let Some(ready) = condition("Ready") {
        add("reason", &[("phase", phase_name), ("reason", &variant(&ready.reason))], 1.0);
    }
    add("stalled", &[], f64::from(u8::from(condition("Stalled").is_some_and(|c| c.status == "True"))));
    if let Some(ready) = condition("RollbackReady") {
        for status in ["True", "False", "Unknown"] {
            add("rollback_ready", &[("status", status)], f64::from(u8::from(ready.status == status)));
        }
    }
    let step = status.step.and_then(|now| status.steps.iter().find(|x| x.name == now));
    if let Some(step) = step {
        let name = step.name.as_str();
        add("step_started_timestamp_seconds", &[("step", name)], moment(step.started_at));
        add("step_failures", &[("step", name)], f64::from(step.failures));
    }
    if let Some(WorkProgress { work, unit, done, total, at: _ }) = &status.work {
        let labels = [("work", work.as_str()), ("unit", unit.as_str())];
        add("work_done", &labels, *done as f64);
        if let Some(total) = total {
            add("work_total", &labels, *total as f64);
        }
    }

    add("window_limit_seconds", &[], seconds(spec.window.max_duration));
    if let Some(expected) = status.plan.as_ref().and_then(|p| p.expected_window.as_ref()) {
        add("window_expected_seconds", &[], std::time::Duration::from_secs(expected.seconds).as_secs_f64());
    }
    let window = status.window.as_ref();
    if let Some((from, to)) = window.and_then(|w| Some((w.blocked_at?, w.unblocked_at?))) {
        add("window_seconds", &[], to.duration_since(from).as_secs_f64().max(0.0));
    }
    if let (Some(at), Some(Writes::Blocked)) = (window.and_then(|w| w.deadline), status.writes) {
        add("window_deadline_timestamp_seconds", &[], moment(at));
    }
    if let Some(at) = status.schedule.as_ref().and_then(|s| s.starts_at) {
        add("window_starts_timestamp_seconds", &[], moment(at));
    }
    if let Some(b) = &status.backup {
        add("backup_timestamp_seconds", &[], moment(b.finished_at));
        add("backup_max_age_seconds", &[], seconds(spec.schedule.backup_max_age));
    }

    // The status retains the results of the last stage for ever; an alert on them would last as long.
    for result in status.checks.iter().filter(|r| watched && is_of_spec(spec, &r.name)) {
        add("check_outcome", &[("check", &result.name), ("outcome", result.outcome.as_str())], 1.0);
        add("check_breached", &[("check", &result.name)], f64::from(u8::from(result.breached)));
    }
    let mut notices = BTreeMap::<(&str, &str), u32>::new();
    for n in &status.notices {
        *notices.entry((n.notice.occasion.as_str(), n.state.as_str())).or_default() += 1;
    }
    for ((occasion, state), n) in &notices {
        add("notices", &[("occasion", occasion), ("state", state)], f64::from(*n));
    }

    let cutover_at = window.and_then(|w| w.unblocked_at).filter(|_| watched);
    let follow_ups = [
        ("day", spec.follow_ups.day_after(), &status.day_report),
        ("week", spec.follow_ups.week_after(), &status.week_report),
    ];
    for (follow_up, after, report) in follow_ups {
        if let (Some(at), None) = (cutover_at, report) {
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
    // From the status, so that a change of leader neither loses nor repeats a rollback.
    add("rollbacks", &[], f64::from(u8::from(status.rollback.is_some())));
    if let Some(r) = &status.rollback {
        add("rollback_started_timestamp_seconds", &[("cause", &variant(&r.cause))], moment(r.started_at));
    }
    all
}

/// Results come from runners: only names in the spec become series.
fn is_of_spec(spec: &CreditMigrationSpec, name: &str) -> bool {
    [Task::Validate, Task::Monitor, Task::DayCheck, Task::WeekReview]
        .into_iter()
        .any(|task| spec.checks_of(task).iter().any(|c| c.name == name))
}
