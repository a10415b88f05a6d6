//! Descriptions of the procedure's steps, with the values of one spec. Pure.

use serde::Serialize;

use crate::{
    api::{
        AllowedHours, Audience, BackupFormat, Balances, Check, CreditMigrationSpec, OnBreach, RollbackPolicy, Step,
        Task, Time,
    },
    machine::{next_hours, steps::FORWARD},
    plugin::output::duration,
};

/// One step and its description.
#[derive(Serialize, Clone, Debug, PartialEq, Eq)]
pub(crate) struct Planned {
    /// Position, from 1.
    pub(crate) number: usize,
    /// The step.
    pub(crate) step: Step,
    /// What it does, with the spec's values.
    pub(crate) what: String,
    /// Its state; absent if it was not started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) state: Option<String>,
}

/// All steps of the forward path, as they would run from `now` on.
pub(crate) fn procedure(spec: &CreditMigrationSpec, now: Time) -> Vec<Planned> {
    FORWARD
        .iter()
        .enumerate()
        .map(|(i, row)| Planned { number: i + 1, step: row.step, what: describe(row.step, spec, now), state: None })
        .collect()
}

/// What a step does.
fn describe(step: Step, spec: &CreditMigrationSpec, now: Time) -> String {
    let (flag, migration) = (&spec.application.flag, &spec.migration);
    let attempts = spec.runner.max_attempts;
    match step {
        Step::Preflight => format!(
            "checks database {}, SQL, flag, workloads and store; each step before the window has {attempts} attempts \
                of at most {}",
            spec.database.name,
            duration(spec.runner.step_timeout)
        ),
        Step::NotifyTeam => match channels(spec, &[Audience::Team, Audience::Support]).as_slice() {
            [] => "skipped: no channel for Team or Support".into(),
            names => format!("notifies Team and Support by {}", names.join(", ")),
        },
        Step::CodeBackup => match &spec.code {
            None => "skipped: spec.code is not set".into(),
            Some(code) => format!(
                "pushes tag {} and branch {} at {:.12} to {}",
                code.tag, code.branch, code.commit, code.repository
            ),
        },
        Step::Baseline => format!(
            "takes users, sums and each balance of {}.{}{}",
            spec.credits.balances.table,
            spec.credits.balances.balance_column,
            match &spec.credits.transactions {
                Some(transactions) => format!(", and transactions by type of {}", transactions.table),
                None => String::new(),
            }
        ),
        Step::Backup => {
            format!("dumps the database of the same snapshot to {}{}", spec.backup.store.url, by_jobs(spec))
        }
        Step::VerifyBackup => "downloads the dump, compares its SHA-256, reads it to its end".into(),
        Step::ExportKeyUsers => format!(
            "writes rows with a balance over {}{} to the store as CSV",
            spec.backup.key_users.balance_over,
            match &spec.credits.balances.purchased_column {
                Some(_) => format!(" or more than {} purchased credits", spec.backup.key_users.purchased_over),
                None => String::new(),
            }
        ),
        Step::Rehearse => format!(
            "restores the dump into {}{}, migrates, rolls back, compares every table{}, drops it",
            spec.rehearsal.database,
            if spec.rehearsal.connection.is_some() { " on another server" } else { "" },
            match &spec.rehearsal.writes {
                Some(_) => ", migrates, runs rehearsal.writes, rolls back",
                None => "",
            }
        ),
        Step::Approve => format!("waits for {} approvals other than by {}", spec.approval.required, spec.requested_by),
        Step::Schedule => schedule(spec, now),
        Step::BlockWrites => format!(
            "ends sessions of {}, blocks writes for at most {}, verifies it by a refused write; {}",
            spec.database.application_roles.join(", "),
            duration(spec.window.max_duration),
            match spec.window.attempts {
                1 => "a lock that it meets ends it, and new approvals are needed".to_owned(),
                n => format!("a lock that it meets ends it, up to {n} attempts in all on the same approvals"),
            }
        ),
        Step::Migrate => format!(
            "{}runs key {} of ConfigMap {} in one transaction; waits at most {} for a lock, a statement runs at most \
                {}",
            match &migration.park {
                Some(park) => format!("moves {} to schema {}, ", park.tables.join(", "), park.schema),
                None => String::new(),
            },
            migration.up.config_map_key_ref.key,
            migration.up.config_map_key_ref.name,
            duration(migration.lock_timeout),
            duration(migration.statement_timeout)
        ),
        Step::VerifyMigration => {
            let gone = match migration.tables_gone.as_slice() {
                [] => String::new(),
                gone => format!("checks that {} are gone, ", gone.join(", ")),
            };
            let query = if migration.verify_up.is_some() { "runs verifyUp, " } else { "" };
            let invariants = match migration.invariants.as_slice() {
                [] => String::new(),
                some => {
                    let names: Vec<&str> = some.iter().map(|invariant| invariant.name.as_str()).collect();
                    format!("checks that invariants hold ({}), ", names.join(", "))
                }
            };
            let names = match &spec.credits.after {
                None => String::new(),
                Some(_) => {
                    let Balances { table, balance_column, .. } = spec.credits.of_new_version().balances;
                    format!(", from then on in {table}.{balance_column}")
                }
            };
            format!("{gone}{invariants}{query}compares every balance with the baseline{names}")
        }
        Step::SwitchApplication => {
            let names: Vec<&str> = spec.application.workloads.iter().map(|w| w.name.as_str()).collect();
            let probe = match &spec.application.version_probe {
                Some(probe) => format!("; waits until {} returns {}", probe.url, flag.to),
                None => String::new(),
            };
            format!(
                "sets key {} of ConfigMap {} from {} to {}, restarts {}{probe}",
                flag.config_map_key_ref.key,
                flag.config_map_key_ref.name,
                flag.from,
                flag.to,
                names.join(", ")
            )
        }
        Step::UnblockWrites => {
            "unblocks writes if no balance is unexplained; past the deadline the change is undone".into()
        }
        Step::Validate => stage(spec, Task::Validate, duration(spec.validation.duration)),
        Step::Monitor => stage(spec, Task::Monitor, duration(spec.monitoring.duration)),
        Step::DayCheck => follow_up(spec, Task::DayCheck, duration(spec.follow_ups.day_after())),
        Step::WeekReview => follow_up(spec, Task::WeekReview, duration(spec.follow_ups.week_after())),
        Step::Decide => format!(
            "asks every {} whether to keep the new version or roll back; not decided by {}{}",
            duration(spec.follow_ups.reminder_interval),
            spec.requested_by,
            match &migration.park {
                Some(park) => format!("; parked tables are dropped {} after Keep", duration(park.drop_after)),
                None => String::new(),
            }
        ),
        Step::BlockWritesForRollback => "blocks writes again, verifies it by a refused write".into(),
        Step::SwitchBack => format!("sets the flag to {}, restarts the workloads", flag.from),
        Step::RollbackSql => format!(
            "runs key {} of ConfigMap {}",
            migration.down.config_map_key_ref.key, migration.down.config_map_key_ref.name
        ),
        Step::VerifyRollback => {
            let query = if migration.verify_down.is_some() { "runs verifyDown, " } else { "" };
            format!("{query}verifies that no credit was lost")
        }
        Step::UnblockWritesAfterRollback => "unblocks writes on the old version".into(),
        Step::RehearseRollback => "rolls a copy of the live database back".into(),
        Step::Cleanup => "removes the triggers from the database".into(),
        Step::DropParked => "drops the parked tables".into(),
    }
}

/// What differs from a dump in one stream.
fn by_jobs(spec: &CreditMigrationSpec) -> String {
    let backup = &spec.backup;
    let jobs = match backup.format {
        BackupFormat::Custom => String::new(),
        BackupFormat::Directory => format!(", an archive for each large table, {} at a time", backup.jobs),
    };
    let limit = spec.runner.limits.dump_per_second.as_ref();
    jobs + &limit.map_or_else(String::new, |limit| format!(", at most {limit} per second"))
}

/// Names of the channels that reach one of these audiences.
fn channels(spec: &CreditMigrationSpec, audiences: &[Audience]) -> Vec<String> {
    let reaches = |c: &&crate::api::NotificationChannel| c.audiences.iter().any(|a| audiences.contains(a));
    spec.notifications.channels.iter().filter(reaches).map(|c| c.name.clone()).collect()
}

fn schedule(spec: &CreditMigrationSpec, now: Time) -> String {
    let s = &spec.schedule;
    let earliest = s.start_at.map_or_else(String::new, |t| format!("not before {t:.0}; "));
    let hours = match s.allowed_hours.as_slice() {
        [] if s.start_at.is_none() => "at any time; ".to_owned(),
        [] => String::new(),
        hours => format!("only {}; ", hours.iter().map(hours_text).collect::<Vec<_>>().join(" or ")),
    };
    // As if it were approved now. The real start is the first of these hours that is the lead time ahead at approval.
    let next = match next_hours(s, now) {
        Some((start, Some(end))) => format!("next hours {start:.0} to {end:.0}; "),
        Some((_, None)) => String::new(),
        None => "allowedHours cannot be computed: write IANA names as time zones; ".to_owned(),
    };
    let everybody = channels(spec, &[Audience::Users, Audience::Social, Audience::StatusPage]);
    let notice = if everybody.is_empty() { " (no channel for users)" } else { "" };
    let notified = match spec.notifications.channels.as_slice() {
        [] => "no one is notified: no channel".to_owned(),
        _ => format!("maintenance notice {} before{notice}", duration(s.lead_time)),
    };
    format!(
        "{earliest}{hours}{next}{notified}; waits for {} people present within {}; backup not older than {}",
        s.presence.required,
        duration(s.presence.within),
        duration(s.backup_max_age)
    )
}

fn hours_text(h: &AllowedHours) -> String {
    let days: Vec<String> = h.days.iter().map(|d| format!("{d} ")).collect();
    format!("{}{}-{} {}", days.concat(), h.from, h.to, h.time_zone)
}

fn names(checks: &[Check], of: impl Fn(&Check) -> bool) -> String {
    checks.iter().filter(|c| of(c)).map(|c| c.name.clone()).collect::<Vec<_>>().join(", ")
}

fn stage(spec: &CreditMigrationSpec, task: Task, length: String) -> String {
    let checks = spec.checks_of(task);
    if checks.is_empty() {
        return format!("waits {length}; nothing is measured");
    }
    let back = names(&checks, |c| c.on_breach == OnBreach::Rollback);
    let others = names(&checks, |c| c.on_breach != OnBreach::Rollback);
    let by = match spec.rollback.policy {
        RollbackPolicy::Automatic => "roll back automatically",
        RollbackPolicy::Manual => "block the stage until an approver decides",
    };
    let mut text = format!("measures for {length}");
    if !back.is_empty() {
        text.push_str(&format!("; {by}: {back}"));
    }
    if !others.is_empty() {
        text.push_str(&format!("; others: {others}"));
    }
    text
}

fn follow_up(spec: &CreditMigrationSpec, task: Task, after: String) -> String {
    let checks = spec.checks_of(task);
    let measured = if checks.is_empty() { "nothing is measured".into() } else { names(&checks, |_| true) };
    format!("{after} after the cutover: {measured}; a report with users, balances and transactions is written")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Invariant, fixtures::spec};

    #[test]
    fn steps_say_the_specs_values() {
        let mut spec = spec();
        let of = |spec: &CreditMigrationSpec, step| {
            procedure(spec, Time::UNIX_EPOCH).into_iter().find(|p| p.step == step).unwrap().what
        };
        for (step, part) in [
            (Step::CodeBackup, "skipped: spec.code"),
            (Step::NotifyTeam, "skipped: no channel"),
            (Step::Approve, "2 approvals other than by author"),
            (Step::Schedule, "at any time; no one is notified: no channel; waits for 2 people"),
            (Step::BlockWrites, "for at most 1m"),
            (Step::SwitchApplication, "from v1 to v2, restarts shop; waits until http://shop/version returns v2"),
            (Step::VerifyMigration, "compares every balance with the baseline"),
            (Step::Validate, "waits 20s; nothing is measured"),
            (Step::Monitor, "measures for 30s; roll back automatically: errors"),
            (Step::DayCheck, "1m after the cutover: nothing is measured"),
            (Step::WeekReview, "1m10s after the cutover"),
        ] {
            let text = of(&spec, step);
            assert!(text.contains(part), "{step:?}: {text}");
        }
        spec.backup.format = BackupFormat::Directory;
        spec.backup.jobs = 4;
        spec.runner.limits.dump_per_second = Some("50Mi".to_owned());
        let text = of(&spec, Step::Backup);
        assert!(text.ends_with("an archive for each large table, 4 at a time, at most 50Mi per second"), "{text}");
        spec.schedule = serde_json::from_value(serde_json::json!({
            "startAt": "2030-01-01T03:00:00Z",
            "allowedHours": [{"days": ["Sunday"], "from": "02:00", "to": "04:00", "timeZone": "Europe/Berlin"}],
        }))
        .unwrap();
        let text = of(&spec, Step::Schedule);
        assert!(
            text.contains(
                "not before 2030-01-01T03:00:00Z; only Sunday 02:00-04:00 Europe/Berlin; next hours \
                    2030-01-06T01:00:00Z to 2030-01-06T03:00:00Z; no one is notified: no channel"
            ),
            "{text}"
        );
        spec.migration.verify_up = Some("SELECT true".to_owned());
        spec.migration.invariants =
            vec![Invariant { name: "total".into(), before: "SELECT 1".into(), after: "SELECT 1".into() }];
        spec.migration.park = Some(serde_json::from_value(serde_json::json!({"tables": ["a", "b"]})).unwrap());
        let text = of(&spec, Step::Migrate);
        assert!(text.starts_with("moves a, b to schema credit_migration_parked, runs key up of"), "{text}");
        let text = of(&spec, Step::Decide);
        assert!(text.ends_with("; parked tables are dropped 30d after Keep"), "{text}");
        let text = of(&spec, Step::VerifyMigration);
        assert!(text.contains("checks that invariants hold (total), runs verifyUp, compares"), "{text}");
        spec.credits = serde_json::from_str(r#"{"after": {"balances": {"table": "wallets"}}}"#).unwrap();
        let text = of(&spec, Step::VerifyMigration);
        assert!(text.ends_with("with the baseline, from then on in wallets.balance"), "{text}");
        spec.rollback.policy = RollbackPolicy::Manual;
        assert!(of(&spec, Step::Monitor).contains("block the stage until an approver decides: errors"));
    }
}
