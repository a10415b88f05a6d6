//! The fake world: API objects with resourceVersions, a database with write block and ledger, an application, a clock.

use std::collections::{BTreeMap, BTreeSet};

use jiff::SignedDuration;

use super::{
    application::App,
    outsiders::{Approval, Refused},
    safeguards::{Losses, RollbackWatch},
};
use crate::{
    api::{
        Audience, CreditMigrationSpec, CreditMigrationStatus, DecisionKind, KeyRef, MigrationRun, NotificationChannel,
        Occasion, OnDrift, Phase, ReadyReason, RollbackRehearsal, SlackChannel, Task, Time, WindowCommand, WindowState,
        fixtures::{SECRET, spec},
    },
    machine::{
        CheckJob, DryRun, Job, Observed, ObservedDecision, ObservedFlag, ObservedRun, ObservedSql, StatusReason,
        switch_trial,
    },
    shared::time::seconds,
};

pub(super) const NAME: &str = "m";
pub(super) const UID: &str = "uid-1";
/// Start of the world.
pub(super) const START: Time = Time::constant(1_000_000, 0);

/// A deliberate defect of the world around the machine, one for each property. The machine's own are in
/// `machine::faults`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Defect {
    None,
    /// 1: the runner does not read the ledger.
    LedgerIgnored,
    /// 2: the runner does nothing at the deadline.
    DeadlineIgnored,
    /// 2: a runner that leaves writes blocked sends no alert.
    SilentHold,
    /// 3: a late leader writes without re-reading and without resourceVersions.
    UnfencedWrites,
    /// 4: names in decisions are not authenticated.
    ForgedNames,
    /// 5: the runner reports the database's raw error.
    RawErrors,
    /// 7: pods are a Deployment's own by their labels alone.
    PodsByLabels,
    /// 6: a controller stops at an object that it cannot decode.
    StopsAtBroken,
}

/// With one channel for all, so that there are notices, and with a second attempt of a window that met a lock.
fn with_channel(mut spec: CreditMigrationSpec) -> CreditMigrationSpec {
    let url_secret_ref = KeyRef { name: "chat".into(), key: "url".into() };
    spec.window.attempts = 2;
    spec.notifications.channels = vec![NotificationChannel {
        name: "chat".into(),
        audiences: vec![Audience::Team, Audience::Users],
        slack: Some(SlackChannel { url_secret_ref, ca_secret_ref: None }),
        webhook: None,
        email: None,
    }];
    spec
}

/// Whether people were notified of the drift that the status reports.
fn is_drift_notified(status: &CreditMigrationStatus) -> bool {
    let reported = status.problems.iter().find(|p| p.reason == ReadyReason::FlagDrifted.as_str());
    reported.is_some_and(|problem| {
        let notices = status.notices.iter().map(|n| &n.notice);
        let mut alerts = notices.filter(|n| n.occasion == Occasion::ManualInterventionRequired);
        alerts.any(|n| n.at >= problem.since)
    })
}

/// Whether a failed rollback is reported by this reason: the task's, or that it could not be started.
fn calls_for_intervention(reason: &StatusReason) -> bool {
    matches!(reason, StatusReason::Task(_) | StatusReason::Machine(ReadyReason::RollbackNotStarted))
}

/// Schema of the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Schema {
    Old,
    New,
}

/// What the control schema remembers of an opened window, per direction.
#[derive(Clone, Debug, Default)]
pub(super) struct SimulatedWindow {
    pub(super) attempt: u32,
    pub(super) deadline: Time,
    pub(super) acknowledged: bool,
    /// The runner's alert is out: writes stay blocked past the deadline.
    pub(super) alerted: bool,
    /// The runner has reported that writes stay blocked until an order comes.
    pub(super) stuck: bool,
    /// How it ended: `Unblocked` or `RolledBack`, and why without success.
    pub(super) finished: Option<(WindowState, Option<crate::api::Reason>)>,
    pub(super) passed: bool,
}

/// The database.
#[derive(Clone, Debug)]
pub(super) struct SimulatedDatabase {
    pub(super) schema: Schema,
    pub(super) blocked_at: Option<Time>,
    /// UID of the migration, and direction.
    pub(super) ledger: BTreeSet<(String, &'static str)>,
    pub(super) ups: u32,
    pub(super) downs: u32,
    pub(super) windows: BTreeMap<Task, SimulatedWindow>,
    /// Pod that holds the worker's lock.
    pub(super) worker: Option<u32>,
    /// A transaction that no window can end has locked a protected table.
    pub(super) obstructed: bool,
}

impl SimulatedDatabase {
    /// Whether the ledger has a row for this direction of this migration.
    pub(super) fn applied(&self, uid: &str, direction: &'static str) -> bool {
        self.ledger.contains(&(uid.to_owned(), direction))
    }
}

/// An object with its version.
#[derive(Clone, Debug)]
pub(super) struct Stored<T> {
    pub(super) version: u64,
    pub(super) value: T,
}

/// The flag's ConfigMap.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct FlagMap {
    pub(super) value: String,
    pub(super) marker: Option<String>,
    /// The value before the last write, which a lagging node still hands out.
    pub(super) before: String,
    /// Its data cannot be changed.
    pub(super) immutable: bool,
    /// It was removed.
    pub(super) missing: bool,
    /// Every write to it is refused.
    pub(super) refused: bool,
}

/// The `CreditMigration`.
#[derive(Clone, Debug)]
pub(super) struct SimulatedMigration {
    pub(super) spec: CreditMigrationSpec,
    pub(super) status: CreditMigrationStatus,
    pub(super) generation: i64,
    pub(super) deleting: bool,
    pub(super) finalizer: bool,
}

/// The whole world.
#[derive(Clone, Debug)]
pub(super) struct World {
    pub(super) now: Time,
    pub(super) versions: u64,
    pub(super) migration: Option<Stored<SimulatedMigration>>,
    pub(super) runs: BTreeMap<String, Stored<ObservedRun>>,
    pub(super) decisions: Vec<ObservedDecision>,
    /// Approvals that were really given; names in decisions may be forged.
    pub(super) approvals: Vec<Approval>,
    /// Jobs of checks.
    pub(super) check_jobs: Vec<CheckJob>,
    /// Decisions in a row with a check that is due and has no Job.
    pub(super) unmeasured: u32,
    /// By how much the clocks of the nodes differ from the API server's.
    pub(super) node_skew: SignedDuration,
    /// What the API server refuses to write.
    pub(super) refused: Option<Refused>,
    pub(super) flag: Stored<FlagMap>,
    pub(super) app: Stored<App>,
    pub(super) sql: (String, String),
    pub(super) db: SimulatedDatabase,
    pub(super) api_up: bool,
    pub(super) defect: Defect,
    /// What was observed beyond objects: events.
    pub(super) events: Vec<String>,
    /// People who really said that they are there.
    pub(super) present: BTreeSet<String>,
    /// Starts whose maintenance notice was taken.
    pub(super) announced: BTreeSet<Time>,
    /// Starts whose maintenance was cancelled by a notice.
    pub(super) cancelled_starts: BTreeSet<Time>,
    pub(super) verified: bool,
    pub(super) rehearsed: bool,
    /// When an outsider has set the flag back after the window, as long as no one has set it since.
    pub(super) drifted_at: Option<Time>,
    /// Decisions in a row on such a flag that have notified no one.
    pub(super) silent_decisions: u32,
    /// A broken neighbour was passed by how often.
    pub(super) broken_seen: u32,
    /// It was decided to block writes although the application could not have been switched, the database was in the
    /// way, or there was no down SQL.
    pub(super) blocked_without_exit: bool,
    /// What is lost of what a rollback needs.
    pub(super) losses: Losses,
    /// What was reported of it, and decided.
    pub(super) watch: RollbackWatch,
}

/// The rollback is rehearsed while the new version runs.
fn with_rehearsals(mut spec: CreditMigrationSpec) -> CreditMigrationSpec {
    spec.rollback.rehearsal = RollbackRehearsal::default();
    spec
}

impl World {
    pub(super) fn new(defect: Defect) -> Self {
        let migration = SimulatedMigration {
            spec: with_rehearsals(with_channel(spec())),
            status: CreditMigrationStatus::default(),
            generation: 1,
            deleting: false,
            finalizer: false,
        };
        Self {
            now: START,
            versions: 1,
            migration: Some(Stored { version: 1, value: migration }),
            runs: BTreeMap::new(),
            decisions: vec![],
            approvals: vec![],
            check_jobs: vec![],
            unmeasured: 0,
            node_skew: SignedDuration::ZERO,
            refused: None,
            flag: Stored {
                version: 1,
                value: FlagMap {
                    value: "v1".into(),
                    marker: None,
                    before: "v1".into(),
                    immutable: false,
                    missing: false,
                    refused: false,
                },
            },
            app: Stored {
                version: 1,
                value: App {
                    template: None,
                    pods: vec![(None, "v1".into(), START), (None, "v1".into(), START)],
                    switched_for: None,
                    crashing: None,
                    failed: None,
                    paused: false,
                    missing: false,
                    foreign: false,
                },
            },
            sql: ("sha256:up".into(), "sha256:down".into()),
            db: SimulatedDatabase {
                schema: Schema::Old,
                blocked_at: None,
                ledger: BTreeSet::new(),
                ups: 0,
                downs: 0,
                windows: BTreeMap::new(),
                worker: None,
                obstructed: false,
            },
            api_up: true,
            defect,
            events: vec![],
            present: BTreeSet::new(),
            announced: BTreeSet::new(),
            cancelled_starts: BTreeSet::new(),
            verified: false,
            rehearsed: false,
            drifted_at: None,
            silent_decisions: 0,
            broken_seen: 0,
            blocked_without_exit: false,
            losses: Losses::default(),
            watch: RollbackWatch::default(),
        }
    }

    pub(super) fn bump(&mut self) -> u64 {
        self.versions += 1;
        self.versions
    }

    /// The flag, as a controller reads it.
    pub(super) fn observed_flag(&self) -> ObservedFlag {
        let FlagMap { value, marker, immutable, missing, .. } = &self.flag.value;
        match missing {
            true => ObservedFlag::ConfigMapMissing,
            false => ObservedFlag::Value { value: value.clone(), immutable: *immutable, set_for: marker.clone() },
        }
    }

    pub(super) fn phase(&self) -> Option<Phase> {
        self.migration.as_ref()?.value.status.phase
    }

    /// What a controller reads.
    pub(super) fn observe(&self) -> Option<(u64, SimulatedMigration, Observed)> {
        let m = self.migration.clone()?;
        let flag = &self.flag.value;
        let observed = Observed {
            namespace: "shop".into(),
            name: NAME.into(),
            uid: UID.into(),
            generation: m.value.generation,
            deleting: m.value.deleting,
            namespace_deleting: false,
            finalizer: m.value.finalizer,
            runner_image: "image".into(),
            runs: self.runs.values().map(|r| r.value.clone()).collect(),
            decisions: self.decisions.clone(),
            policy_problem: self.losses.policy.then(|| "policy decisions.creditmigration.io is missing".into()),
            server_clock: None,
            flag: self.observed_flag(),
            flag_write: match switch_trial(&m.value.spec, &m.value.status, UID) {
                Some(_) if flag.refused => DryRun::Refused("a webhook refuses it".into()),
                Some(_) => DryRun::Accepted,
                None => DryRun::Untried,
            },
            rollback_enabled: (!flag.missing).then(|| "true".into()),
            check_jobs: self.check_jobs.clone(),
            up: ObservedSql::Present(self.sql.0.clone()),
            down: ObservedSql::Present(self.sql.1.clone()),
            sql_authors: vec![],
            quota_shortages: Ok(self.quota_shortages()),
            refused_effect: None,
            workloads: vec![self.workload()],
        };
        Some((m.version, m.value, observed))
    }

    /// The versions that the pods run: `v1`, or `v1, v2`.
    pub(super) fn versions_run(&self) -> String {
        let versions: BTreeSet<&str> = self.app.value.pods.iter().map(|p| p.1.as_str()).collect();
        versions.into_iter().collect::<Vec<_>>().join(", ")
    }

    /// An outsider, such as a sync from Git, sets the flag back after the window. The marker stays.
    pub(super) fn drift(&mut self) -> bool {
        let after = matches!(self.phase(), Some(Phase::Validating | Phase::Monitoring | Phase::Observing));
        if !after || self.db.blocked_at.is_some() || self.flag.value.value != "v2" {
            return false;
        }
        self.write_flag("v1");
        self.drifted_at = Some(self.now);
        true
    }

    /// An operator who was notified sets the flag again, unless the one in the cluster does, and checks until the
    /// status says that it is right: another drift before the next decision is the same one for the machine.
    pub(super) fn answer_drift(&mut self) {
        let (Some(_), Some(m)) = (self.drifted_at, &self.migration) else { return };
        if is_drift_notified(&m.value.status) && m.value.spec.application.flag.on_drift == OnDrift::Alert {
            self.write_flag("v2");
            self.drifted_at = None;
        }
    }

    /// Counts the decisions on a drift that notify no one.
    pub(super) fn note_drift_decision(&mut self, spec: &CreditMigrationSpec, status: &CreditMigrationStatus) {
        let after = matches!(status.phase, Some(Phase::Validating | Phase::Monitoring | Phase::Observing));
        let alerts = spec.application.flag.on_drift == OnDrift::Alert;
        let silent = after && alerts && self.drifted_at.is_some() && !is_drift_notified(status);
        self.silent_decisions = if silent { self.silent_decisions + 1 } else { 0 };
    }

    fn write_flag(&mut self, value: &str) {
        self.flag.value.before = std::mem::replace(&mut self.flag.value.value, value.into());
        self.flag.version = self.bump();
    }

    pub(super) fn decide(&mut self, by: &str, decision: DecisionKind) {
        let digest = self.migration.as_ref().and_then(|m| m.value.status.plan.as_ref()).and_then(|p| p.digest.clone());
        let of_plan = matches!(decision, DecisionKind::Approve | DecisionKind::Ready | DecisionKind::Keep);
        if of_plan && digest.is_none() {
            return;
        }
        if decision == DecisionKind::Ready {
            self.present.insert(by.to_owned());
        }
        let generation = self.migration.as_ref().and_then(|m| m.value.status.plan.as_ref()).map(|p| p.generation);
        if let (DecisionKind::Approve, Some(generation)) = (decision, generation) {
            self.approvals.push(Approval { by: by.to_owned(), generation });
        }
        let n = self.decisions.len();
        let digest = of_plan.then_some(digest).flatten();
        let mut said = vec![by.to_owned()];
        if self.defect == Defect::ForgedNames && decision == DecisionKind::Approve {
            said.push("another-name".into());
        }
        for (i, by) in said.into_iter().enumerate() {
            self.decisions.push(ObservedDecision {
                name: format!("d{n}-{i}"),
                by,
                decision,
                digest: digest.clone(),
                reason: None,
                at: self.now,
            });
        }
    }

    /// Writes a run's status, if the API server is there and the run too.
    pub(super) fn report(&mut self, name: &str, change: impl FnOnce(&mut MigrationRun)) -> bool {
        if !self.api_up || !self.runs.contains_key(name) {
            return false;
        }
        let version = self.bump();
        if let Some(run) = self.runs.get_mut(name) {
            let before = run.value.run.status.clone();
            change(&mut run.value.run);
            // A write that changes nothing gives an object no new version.
            if run.value.run.status == before {
                return true;
            }
            run.value.written_at = Some(self.now);
            run.version = version;
            if run.value.run.has_ended() {
                run.value.job = Job::Complete;
            }
        }
        true
    }

    /// The properties that hold at every moment. `Err` names the broken one.
    pub(super) fn check(&self) -> Result<(), String> {
        self.check_rollback()?;
        if self.unmeasured > 10 {
            return Err(format!("6: a check is due, and {} decisions started no Job of it", self.unmeasured));
        }
        let db = &self.db;
        if self.blocked_without_exit {
            return Err("7: writes are blocked although it is known that the window cannot do its work".into());
        }
        if db.ups > 1 || db.downs > 1 {
            return Err(format!("1: up took effect {} times, down {} times", db.ups, db.downs));
        }
        if db.blocked_at.is_none() {
            let flag = self.flag.value.value.as_str();
            let wrong = if db.schema == Schema::New { "v1" } else { "v2" };
            // What an outsider does is not the operator's fault; that it lasts would be: see `check_end`.
            if flag == wrong && self.drifted_at.is_none() {
                return Err(format!("3: writes are open, schema is {:?}, flag says {flag}", db.schema));
            }
            if let Some(p) = self.app.value.pods.iter().find(|p| p.1 == wrong) {
                return Err(format!("3: writes are open, schema is {:?}, a pod runs {}", db.schema, p.1));
            }
        }
        // Some may rest on what was read before.
        if self.silent_decisions > 20 {
            return Err(format!("3: the flag was changed, and {} decisions notified no one", self.silent_decisions));
        }
        if db.ups > 0 && (!self.verified || !self.rehearsed || self.approvers_of_spec().len() < 2) {
            return Err(format!(
                "4: executed with verified={} rehearsed={} by {:?}",
                self.verified,
                self.rehearsed,
                self.approvers_of_spec()
            ));
        }
        let start = self.migration.as_ref().and_then(|m| m.value.status.schedule.as_ref()?.starts_at);
        let announced = start.is_none_or(|at| self.announced.contains(&at) && !self.cancelled_starts.contains(&at));
        if db.ups > 0 && (self.present.len() < 2 || !announced) {
            return Err(format!(
                "4: executed at {start:?} with {:?} present, announced: {:?}, cancelled: {:?}",
                self.present, self.announced, self.cancelled_starts
            ));
        }
        Ok(())
    }

    /// Checked once per schedule: it is the expensive one.
    pub(super) fn check_secrets(&self) -> Result<(), String> {
        let texts = [
            serde_json::to_string(&self.migration.as_ref().map(|m| &m.value.status)).unwrap_or_default(),
            serde_json::to_string(&self.runs.values().map(|r| &r.value.run).collect::<Vec<_>>()).unwrap_or_default(),
            self.events.join("\n"),
        ];
        if texts.iter().any(|t| t.contains(SECRET)) { Err("5: a secret is in an API object".into()) } else { Ok(()) }
    }

    /// Whether the state of the window is reported.
    pub(super) fn check_end(&self) -> Result<(), String> {
        let Some(m) = &self.migration else {
            return if self.db.blocked_at.is_none() { Ok(()) } else { Err("2: deleted with writes blocked".into()) };
        };
        let phase = m.value.status.phase;
        match phase {
            Some(Phase::Completed | Phase::RolledBack | Phase::Failed | Phase::Cancelled)
                if self.db.blocked_at.is_none() =>
            {
                Ok(())
            }
            // By the condition: an Event may be lost with the process that was about to publish it.
            Some(Phase::RollbackFailed)
                if m.value.status.conditions.iter().any(|condition| {
                    condition.type_ == "Stalled" && calls_for_intervention(&StatusReason::read(&condition.reason))
                }) =>
            {
                Ok(())
            }
            Some(Phase::AwaitingApproval) if self.db.blocked_at.is_none() => Ok(()),
            _ => {
                let held = self.db.blocked_at.is_some_and(|_| {
                    self.now > m.value.status.window.as_ref().and_then(|w| w.deadline).unwrap_or(self.now)
                });
                let property = match (held, self.drifted_at) {
                    (true, _) => 2,
                    (false, Some(_)) => 3,
                    (false, None) => 6,
                };
                Err(format!(
                    "{property}: does not end: {phase:?} {:?} {:?}, writes blocked {}",
                    m.value.status.step,
                    m.value.status.conditions.first().map(|c| &c.message),
                    self.db.blocked_at.is_some()
                ))
            }
        }
    }

    /// Writes are blocked past the deadline, a runner is there, and no alert is out: it has to roll back by itself or
    /// to send one.
    pub(super) fn overdue(&self) -> bool {
        let mut open = self.db.windows.values().filter(|i| i.finished.is_none());
        self.db.blocked_at.is_some()
            && self.db.worker.is_some()
            && open.all(|i| self.now > i.deadline + seconds(60) && !i.alerted)
    }

    pub(super) fn order(&self, name: &str) -> Option<WindowCommand> {
        Some(self.runs.get(name)?.value.run.spec.window.as_ref()?.command)
    }
}
