//! All objects that the evidence of a migration is read from. Pure: the connection reads them.

use std::collections::BTreeSet;

use crate::{
    api::{
        CreditMigration, CreditMigrationStatus, DecisionKind, MigrationDecision, MigrationRun, Task, Time,
        WindowProgress,
    },
    shared::time::to_signed,
};

/// All objects that evidence is read from.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    /// When they were read.
    pub(crate) at: Time,
    /// The migration.
    pub(crate) migration: CreditMigration,
    /// Decisions on this very migration, oldest first.
    pub(crate) decisions: Vec<MigrationDecision>,
    /// Its runs.
    pub(crate) runs: Vec<MigrationRun>,
    /// SHA-256 of the up and down SQL that their ConfigMaps have now; absent where it cannot be read.
    pub(crate) sql: [Option<String>; 2],
}

impl Record {
    /// The status; the default if the operator has not written one.
    pub(crate) fn status(&self) -> CreditMigrationStatus {
        self.migration.status.clone().unwrap_or_default()
    }

    /// People other than the author who approved a digest.
    pub(crate) fn approvers(&self, digest: &str, after: Option<Time>) -> BTreeSet<String> {
        self.decisions_on(DecisionKind::Approve, digest)
            .filter(|d| is_after(d, after))
            .map(|d| d.spec.by.clone())
            .filter(|by| *by != self.migration.spec.requested_by)
            .collect()
    }

    /// People who confirmed presence for a digest. `fresh`: only confirmations within `presence.within`.
    pub(crate) fn present(&self, digest: &str, after: Option<Time>, fresh: bool) -> BTreeSet<String> {
        let within = to_signed(self.migration.spec.schedule.presence.within);
        let since = fresh.then(|| self.at.checked_sub(within).unwrap_or(Time::MIN));
        self.decisions_on(DecisionKind::Ready, digest)
            .filter(|d| is_after(d, after) && is_after(d, since))
            .map(|d| d.spec.by.clone())
            .collect()
    }

    /// Decisions of a kind for a digest.
    pub(crate) fn decisions_on<'a>(
        &'a self,
        kind: DecisionKind,
        digest: &'a str,
    ) -> impl Iterator<Item = &'a MigrationDecision> {
        self.decisions.iter().filter(move |d| d.spec.decision == kind && d.spec.digest.as_deref() == Some(digest))
    }

    /// The last run of a task that reported progress of a window.
    pub(crate) fn window(&self, task: Task) -> Option<(&MigrationRun, &WindowProgress)> {
        let of_task = self.runs.iter().filter(|r| r.spec.task == task);
        let reported = of_task.filter_map(|r| Some((r, r.status.as_ref()?.window.as_ref()?)));
        reported.max_by_key(|(r, _)| r.spec.attempt)
    }
}

/// Whether a decision was made after a time. A decision without a time of its own was not.
fn is_after(decision: &MigrationDecision, after: Option<Time>) -> bool {
    after.is_none_or(|t| decision.metadata.creation_timestamp.as_ref().is_some_and(|c| c.0 > t))
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        api::{
            MigrationDecisionSpec, MigrationRunSpec, Phase, Plan, RunInputs,
            fixtures::{backup as dump, baseline, rehearsal, spec, verification},
        },
        machine::plan_digest,
    };

    pub(crate) fn at(text: &str) -> Time {
        text.parse().unwrap()
    }

    fn decision(kind: DecisionKind, by: &str, digest: &str) -> MigrationDecision {
        let mut decision = MigrationDecision::new(
            &format!("{kind}-{by}").to_lowercase(),
            MigrationDecisionSpec {
                migration: "m".into(),
                migration_uid: "1".into(),
                decision: kind,
                by: by.into(),
                reason: Some("reviewed".into()),
                digest: Some(digest.into()),
            },
        );
        decision.metadata.creation_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at("2030-01-01T01:00:00Z")));
        decision
    }

    /// A run of a task that succeeded, with the progress of its window.
    pub(crate) fn run(task: Task, progress: serde_json::Value) -> MigrationRun {
        let mut run = MigrationRun::new(
            "m-window-1",
            MigrationRunSpec {
                migration: "m".into(),
                migration_uid: "1".into(),
                task,
                attempt: 1,
                plan: spec(),
                inputs: RunInputs::default(),
                window: None,
            },
        );
        run.status = Some(serde_json::from_value(json!({"phase": "Succeeded", "window": progress})).unwrap());
        run
    }

    /// A migration that ended well, with all of its evidence.
    pub(crate) fn completed() -> Record {
        let mut m = CreditMigration::new("m", spec());
        m.metadata.uid = Some("1".into());
        m.metadata.namespace = Some("shop".into());
        let now = at("2030-01-01T00:00:00Z");
        let mut status = CreditMigrationStatus {
            phase: Some(Phase::Completed),
            plan: Some(Plan { generation: 1, up_sha256: "u".into(), down_sha256: "d".into(), ..Plan::default() }),
            baseline: Some(baseline(now)),
            backup: Some(dump(now)),
            verification: Some(verification()),
            rehearsal: Some(rehearsal(12.0)),
            approved_by: vec!["ann".into(), "bob".into()],
            ..Default::default()
        };
        let digest = plan_digest("1", &m.spec, &status).unwrap();
        status.plan.as_mut().unwrap().digest = Some(digest.clone());
        m.status = Some(status);
        let mut decisions = vec![];
        for by in ["ann", "bob"] {
            decisions.push(decision(DecisionKind::Approve, by, &digest));
            decisions.push(decision(DecisionKind::Ready, by, &digest));
        }
        decisions.push(decision(DecisionKind::Keep, "ann", &digest));
        let reported = json!({
            "state": "Unblocked", "blockedAt": "2030-01-01T02:00:00Z", "unblockedAt": "2030-01-01T02:00:09Z",
            "migrateSeconds": 0.5, "comparison": {"users": 2, "unexplained": 0, "totalBalance": "3"},
        });
        let mut record = Record {
            at: at("2030-01-01T01:30:00Z"),
            migration: m,
            decisions,
            runs: vec![run(Task::Window, reported)],
            sql: [Some("u".into()), Some("d".into())],
        };
        progress(&mut record).verification = Some("25006".into());
        record
    }

    pub(crate) fn status(record: &mut Record) -> &mut CreditMigrationStatus {
        record.migration.status.as_mut().unwrap()
    }

    /// Progress of the record's first run.
    pub(crate) fn progress(record: &mut Record) -> &mut WindowProgress {
        record.runs[0].status.as_mut().unwrap().window.as_mut().unwrap()
    }

    #[test]
    fn approvals_are_those_of_others_for_this_digest_and_after_this_time() {
        let mut record = completed();
        let digest = record.status().plan.unwrap().digest.unwrap();
        assert_eq!(record.approvers(&digest, None), ["ann".to_owned(), "bob".to_owned()].into());
        record.decisions[0].spec.by = record.migration.spec.requested_by.clone();
        assert_eq!(record.approvers(&digest, None), ["bob".to_owned()].into());
        assert!(record.approvers("sha256:other", None).is_empty());
        assert!(record.approvers(&digest, Some(at("2030-01-01T01:00:00Z"))).is_empty());
    }
}
