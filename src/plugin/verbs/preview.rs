//! What a rollback would undo: what `rollback` without `--confirm` shows.
//!
//! Called by the verb `decide`. Imports the verb `status`, `output` of the plugin, `api` and `shared`.

use std::time::Duration;

use kube::ResourceExt;
use serde::Serialize;

use super::status::current_state;
use crate::{
    api::{CreditMigration, CreditMigrationStatus, Phase, ReadyReason, RollbackRehearsalStatus, Task, written},
    plugin::output::{duration, seconds},
    shared::{command::plugin, message::Message},
};

/// What a rollback would undo.
#[derive(Serialize, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub(super) struct Preview {
    /// Always false: a preview changes nothing.
    done: bool,
    /// Whether the rollback could switch the application back, by the condition `RollbackReady`.
    ready: String,
    /// When the rollback was last rehearsed, on how many rows, and what came of it.
    rehearsed: String,
    /// What would be undone, in order.
    undone: Vec<String>,
    /// Writes that a rollback affects.
    writes_since_cutover: String,
    /// Users whose balance was written since the cutover, as last counted.
    users_written: Option<u64>,
    /// Credits by which the balances of those users differ from those at the cutover, as last measured.
    credits_written: Option<String>,
    /// How long writes would be blocked.
    window: String,
    /// The same in seconds, as expected.
    expected_window_seconds: Option<u64>,
    /// The command that does it.
    next: String,
}

pub(super) fn preview(m: &CreditMigration) -> Preview {
    let status = m.status.clone().unwrap_or_default();
    let window = status.window.clone().unwrap_or_default();
    let in_first_window = window.task == Some(Task::Window) && window.unblocked_at.is_none();
    let (users_written, credits_written) = match in_first_window {
        true => (None, None),
        false => {
            let counted = status.rollback.as_ref().and_then(|r| r.users_written_since).or(status.users_written);
            (counted, status.credits_written.clone())
        }
    };
    let (expected_window_seconds, by) = expected_window(&status).unzip();
    let at_most = format!("at most {} before an on-call engineer is notified", duration(m.spec.window.max_duration));
    let window = match (in_first_window, expected_window_seconds, by) {
        (true, ..) => "the window is under way: its own run rolls back".to_owned(),
        (false, Some(expected), Some(by)) => {
            let expected = seconds(Duration::from_secs(expected).as_secs_f64());
            format!("writes are blocked for about {expected} ({by}), {at_most}")
        }
        (false, ..) => format!("writes are blocked for {at_most}"),
    };
    Preview {
        done: false,
        ready: readiness(&status),
        rehearsed: last_rehearsal(&status),
        undone: undone(m, &status, in_first_window),
        writes_since_cutover: match in_first_window {
            true => "none: writes have been blocked since before the change".to_owned(),
            false => writes_since_cutover(&status, users_written, credits_written.as_deref()),
        },
        users_written,
        credits_written,
        window,
        expected_window_seconds,
        next: plugin(
            &m.namespace().unwrap_or_default(),
            format!("rollback {} --confirm --reason \"...\"", m.name_any()),
        ),
    }
}

/// What would be undone, in order.
fn undone(m: &CreditMigration, status: &CreditMigrationStatus, in_first_window: bool) -> Vec<String> {
    let (flag, down) = (&m.spec.application.flag, &m.spec.migration.down.config_map_key_ref);
    let workloads: Vec<String> =
        m.spec.application.workloads.iter().map(|w| format!("deployment/{}", w.name)).collect();
    let switched = status.window.as_ref().is_some_and(|window| window.switched);
    let flag = if in_first_window && !switched {
        format!("flag: stays {}, it was not switched", flag.from)
    } else {
        format!(
            "flag: key {} of ConfigMap {} from {} to {}; {} restarted",
            flag.config_map_key_ref.key,
            flag.config_map_key_ref.name,
            flag.to,
            flag.from,
            workloads.join(", ")
        )
    };
    // After RollbackFailed the down SQL is read again.
    let which = match (status.phase, &status.plan) {
        (Some(Phase::RollbackFailed), _) => "its current text",
        (_, Some(plan)) => plan.down_sha256.as_str(),
        (_, None) => "not known",
    };
    vec![flag, format!("schema: key {} of ConfigMap {} is run ({which})", down.key, down.name)]
}

/// What was written on the new version, with the last report of it.
fn writes_since_cutover(status: &CreditMigrationStatus, users: Option<u64>, credits: Option<&str>) -> String {
    let known = users.map(|users| format!("{} were written on the new version", written(users, credits)));
    let known = known.unwrap_or_else(|| {
        "not known yet: what is written on the new version is measured while it is monitored, when the rollback is \
         rehearsed, and when writes are blocked for it (status.usersWritten, status.creditsWritten, \
         status.rollback.usersWrittenSince)"
            .to_owned()
    });
    let report = status.week_report.as_ref().or(status.day_report.as_ref());
    let report = report.map(|report| format!("; the last report: {} ({})", report.summary, report.object));
    format!("{known}; their balances are kept{}", report.unwrap_or_default())
}

/// How long writes would be blocked, in seconds, and what that rests on: the last rehearsal on what was written since,
/// or the plan.
fn expected_window(status: &CreditMigrationStatus) -> Option<(u64, String)> {
    let again = status.rollback_rehearsal.as_ref();
    if let Some((passed, expected)) = again.and_then(|again| again.passed.as_ref().zip(again.expected_window_seconds)) {
        let by = format!(
            "as rehearsed at {:.0}: the rollback took {}, the comparison {}",
            passed.finished_at,
            seconds(passed.rollback_seconds),
            seconds(passed.compare_seconds)
        );
        return Some((expected, by));
    }
    let (rehearsal, plan) = (status.rehearsal.as_ref()?, status.plan.as_ref()?);
    let by = format!(
        "as planned for the window; the rollback took {} in the rehearsal before it",
        seconds(rehearsal.rollback_seconds)
    );
    Some((plan.expected_window.as_ref()?.seconds, by))
}

/// The condition `RollbackReady` in words.
fn readiness(status: &CreditMigrationStatus) -> String {
    let Some(condition) = status.conditions.iter().find(|c| c.type_ == "RollbackReady") else {
        return "not known: it is checked from the end of the window on, while writes are open".to_owned();
    };
    let message = Message::parse(&condition.message).text;
    match condition.status.as_str() {
        // With the next command of what was found: it keeps no rollback from working.
        "True" => format!("yes: {}", condition.message),
        "False" if condition.reason == ReadyReason::RollbackRehearsalFailed.as_str() => {
            format!("no, it would block writes and fail: {}: {message}", condition.reason)
        }
        "False" => format!("no: {}: {message}", condition.reason),
        _ => format!("not known: {}: {message}", condition.reason),
    }
}

/// The latest rehearsal of the rollback.
fn last_rehearsal(status: &CreditMigrationStatus) -> String {
    let again = status.rollback_rehearsal.as_ref().and_then(RollbackRehearsalStatus::summary);
    let before = || {
        let (rehearsal, backup) = (status.rehearsal.as_ref()?, status.backup.as_ref()?);
        Some(format!(
            "before the window, on {} users of the backup of {:.0}: the down SQL took {}",
            rehearsal.users,
            backup.finished_at,
            seconds(rehearsal.rollback_seconds)
        ))
    };
    again.or_else(before).unwrap_or_else(|| "never".to_owned())
}

pub(super) fn preview_text(m: &CreditMigration, preview: &Preview) -> String {
    let Preview { ready, rehearsed, undone, writes_since_cutover, window, next, .. } = preview;
    format!(
        "{}\nready\n  {ready}\nrehearsed\n  {rehearsed}\nwould undo\n  {}\nat stake\n  {writes_since_cutover}\n\
         window\n  {window}\nnothing was done; next: {next}",
        current_state(m),
        undone.join("\n  ")
    )
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        api::{
            ExpectedWindow, Plan, RollbackRehearsalFailure, RollbackStatus, Time, WindowStatus,
            fixtures::{backup, rehearsal, report, rollback_rehearsal, spec},
        },
        plugin::commands::sound,
    };

    /// A migration in this phase, whose plan has a digest.
    pub(in crate::plugin::verbs) fn migration(phase: Phase) -> CreditMigration {
        let plan = Plan {
            digest: Some("sha256:x".into()),
            generation: 1,
            up_sha256: "u".into(),
            down_sha256: "d".into(),
            expected_window: Some(ExpectedWindow::new(12.0, 0.0, vec![])),
            ..Plan::default()
        };
        let mut m = CreditMigration::new("m", spec());
        m.metadata.namespace = Some("shop".into());
        m.status = Some(CreditMigrationStatus { phase: Some(phase), plan: Some(plan), ..Default::default() });
        m
    }

    #[test]
    fn a_preview_says_what_is_at_stake() {
        let mut m = migration(Phase::Monitoring);
        let status = m.status.as_mut().unwrap();
        status.rehearsal = Some(rehearsal(12.0));
        let text = preview_text(&m, &preview(&m));
        for part in [
            "key VERSION of ConfigMap shop from v2 to v1; deployment/shop restarted",
            "key down of ConfigMap sql is run (d)",
            "not known yet",
            "about 12s",
            "at most 1m",
            "nothing was done; next: kubectl creditmigration -n shop rollback m --confirm --reason",
        ] {
            assert!(text.contains(part), "{part}:\n{text}");
        }
        assert_eq!(sound(&text, "shop"), 1);
        m.status.as_mut().unwrap().users_written = Some(3);
        let text = preview_text(&m, &preview(&m));
        assert!(text.contains("3 users were written on the new version"), "{text}");
        m.status.as_mut().unwrap().credits_written = Some("90.5".into());
        let text = preview_text(&m, &preview(&m));
        assert!(text.contains("3 users and 90.5 credits were written on the new version"), "{text}");
        m.status.as_mut().unwrap().rollback = Some(RollbackStatus {
            cause: "Rollback".into(),
            message: String::new(),
            started_at: Time::UNIX_EPOCH,
            users_written_since: Some(7),
        });
        m.status.as_mut().unwrap().phase = Some(Phase::RollbackFailed);
        let text = preview_text(&m, &preview(&m));
        assert!(text.contains("7 users and 90.5 credits were written") && text.contains("its current text"), "{text}");
    }

    #[test]
    fn a_preview_says_whether_the_rollback_is_ready_and_when_it_was_rehearsed() {
        let mut m = migration(Phase::Observing);
        let text = preview_text(&m, &preview(&m));
        assert!(text.contains("ready\n  not known") && text.contains("rehearsed\n  never"), "{text}");
        let status = m.status.as_mut().unwrap();
        status.rehearsal = Some(rehearsal(12.0));
        status.backup = Some(backup(Time::UNIX_EPOCH));
        status.day_report = Some(report(Time::UNIX_EPOCH));
        let condition = |is: &str, reason: &str, message: &str| {
            serde_json::from_value(json!({"type": "RollbackReady", "status": is, "reason": reason,
                "message": message, "lastTransitionTime": "2030-01-01T00:00:00Z"}))
            .unwrap()
        };
        for (is, reason, message, words) in [
            ("True", "Ready", "flag and workloads can be switched", "ready\n  yes: flag and workloads can be switched"),
            (
                "False",
                "WorkloadPaused",
                "deployment/shop is paused; next: kubectl rollout resume deployment/shop",
                "ready\n  no: WorkloadPaused: deployment/shop is paused\n",
            ),
            ("Unknown", "NotObserved", "the flag was not read", "ready\n  not known: NotObserved"),
        ] {
            m.status.as_mut().unwrap().conditions = vec![condition(is, reason, message)];
            let text = preview_text(&m, &preview(&m));
            assert!(text.contains(words), "{words}:\n{text}");
            assert!(text.contains("users of the backup of 1970-01-01T00:00:00Z"), "{text}");
            assert!(text.contains("the last report: ") && text.contains("s3://b/o.report.json"), "{text}");
            assert_eq!(sound(&text, "shop"), 1, "the one command to run is the rollback");
        }
    }

    #[test]
    fn a_preview_is_that_of_the_last_rehearsal() {
        let mut m = migration(Phase::Observing);
        let status = m.status.as_mut().unwrap();
        status.rehearsal = Some(rehearsal(12.0));
        (status.users_written, status.credits_written) = (Some(7), Some("120".into()));
        let again = status.rollback_rehearsal.insert(RollbackRehearsalStatus {
            passed: Some(rollback_rehearsal(Time::UNIX_EPOCH)),
            expected_window_seconds: Some(33),
            failed: None,
        });
        let window = "writes are blocked for about 33s (as rehearsed at 1970-01-01T00:00:00Z: the rollback took 2s, \
                      the comparison 1.5s), at most 1m";
        let mut failed = again.clone();
        let text = preview_text(&m, &preview(&m));
        for part in [
            "rehearsed\n  at 1970-01-01T00:00:00Z: rolled back a copy of 900 rows and 300 users in 2.0 s",
            "7 users and 120 credits written since the cutover",
            "7 users and 120 credits were written on the new version; their balances are kept",
            window,
        ] {
            assert!(text.contains(part), "{part}:\n{text}");
        }
        let json = serde_json::to_value(preview(&m)).unwrap();
        let typed = ["usersWritten", "creditsWritten", "expectedWindowSeconds"].map(|field| json[field].clone());
        assert_eq!(typed, [json!(7), json!("120"), json!(33)]);
        failed.failed = Some(RollbackRehearsalFailure {
            reason: crate::api::Reason::SqlFailed,
            message: "statement 2: no such table; next: check".into(),
            at: Time::UNIX_EPOCH,
        });
        m.status.as_mut().unwrap().rollback_rehearsal = Some(failed);
        let text = preview_text(&m, &preview(&m));
        let rehearsed = "rehearsed\n  failed at 1970-01-01T00:00:00Z: SqlFailed: statement 2: no such table\n";
        assert!(text.contains(rehearsed) && text.contains(window), "{text}");
    }

    #[test]
    fn inside_the_window_nothing_was_written() {
        let mut m = migration(Phase::Executing);
        m.status.as_mut().unwrap().window = Some(WindowStatus { task: Some(Task::Window), ..Default::default() });
        let text = preview_text(&m, &preview(&m));
        assert!(text.contains("stays v1") && text.contains("none: writes have been blocked"), "{text}");
        m.status.as_mut().unwrap().window.as_mut().unwrap().switched = true;
        assert!(preview_text(&m, &preview(&m)).contains("from v2 to v1"));
    }
}
