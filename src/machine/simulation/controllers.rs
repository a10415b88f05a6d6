//! Controllers of the fake world: they decide on what they read, perhaps long ago, persist, and apply effects behind
//! fences.
//!
//! Called by `simulation`. Imports `api` and `machine`.

use fastrand::Rng;
use jiff::SignedDuration;

use super::{
    outsiders::Refused,
    safeguards::is_obstructed,
    world::{Defect, SimulatedMigration, Stored, World},
};
use crate::{
    api::{CreditMigrationStatus, MigrationRun, WindowCommand},
    machine::{Effect, FenceTarget, Job, JobPod, Observed, ObservedFlag, ObservedRun, decide},
};

/// A controller: what it read (perhaps long ago), then what it still has to do.
#[derive(Default)]
pub(super) struct Controller {
    read: Option<(u64, SimulatedMigration, Observed)>,
    /// Version that the decision was persisted as, and effects left.
    todo: Option<(u64, Vec<Effect>)>,
    /// The flag that it decided on.
    flag: Option<ObservedFlag>,
    /// An irreversible effect under way: version of its target, as read.
    target: Option<u64>,
    /// What the API server refused last, of the effects.
    refused: Option<String>,
    pub(super) dead: bool,
    /// By how much its clock differs from the API server's.
    pub(super) skew: SignedDuration,
}

impl Controller {
    /// The process dies and comes back: nothing in memory is left.
    pub(super) fn crash(&mut self) {
        *self = Self { dead: self.dead, skew: self.skew, ..Self::default() };
    }

    /// The target of an irreversible effect is read; the write is next.
    pub(super) fn about_to_write(&self) -> bool {
        self.target.is_some()
    }

    /// So it is for the flag.
    pub(super) fn about_to_set_flag(&self) -> bool {
        let next = self.todo.as_ref().and_then(|(_, effects)| effects.first());
        self.about_to_write() && matches!(next, Some(Effect::SetFlag { .. }))
    }

    /// One act: read, decide and persist, or one effect (an irreversible one takes two acts: read the target, write).
    pub(super) fn act(&mut self, w: &mut World, rng: &mut Rng) {
        if self.dead || !w.api_up {
            return;
        }
        if rng.u8(..) < 8 {
            w.broken_seen += 1;
            if w.defect == Defect::StopsAtBroken {
                self.dead = true;
            }
            return;
        }
        if let Some((version, effects)) = &mut self.todo {
            if effects.is_empty() {
                (self.todo, self.refused) = (None, None);
                return;
            }
            let version = *version;
            let effect = effects[0].clone();
            if effect.irreversible() && self.target.is_none() {
                // The target is read first, then the migration. The write, which may come much later, carries the
                // target's version alone.
                let of_flag = matches!(effect.target(), Some(FenceTarget::Flag));
                let changed = w.migration.as_ref().is_none_or(|m| m.version != version)
                    || (of_flag && self.flag != Some(w.observed_flag()));
                if w.defect != Defect::UnfencedWrites && changed {
                    self.todo = None;
                    return;
                }
                self.target = Some(target_version(w, &effect));
                return;
            }
            let target = self.target.take();
            match apply(w, version, &effect, target) {
                Applied::Done => drop(effects.remove(0)),
                // It is read and decided again.
                Applied::Conflict => self.todo = None,
                Applied::Refused => (self.todo, self.refused) = (None, Some("a webhook refuses it".into())),
            }
            return;
        }
        let Some((version, migration, mut observed)) = self.read.take() else {
            self.read = w.observe();
            return;
        };
        observed.refused_effect.clone_from(&self.refused);
        let decision = decide(&migration.spec, &migration.status, &observed, w.now + self.skew);
        w.note_drift_decision(&migration.spec, &decision.status);
        let without_exit =
            starts_window(&migration.status, &decision.status) && is_obstructed(&observed, &decision.status);
        let mut persisted = version;
        let status = decision.status;
        if status != migration.status {
            if w.refuses(Refused::Status) {
                return;
            }
            let next = w.bump();
            let Some(m) = w.migration.as_mut().filter(|m| m.version == version) else { return };
            m.value.status = status.clone();
            m.version = next;
            persisted = next;
            w.blocked_without_exit |= without_exit;
        }
        w.judge_rollback(&observed, &status, w.now + self.skew);
        w.judge_checks(&status);
        self.todo = Some((persisted, decision.effects));
        self.flag = Some(observed.flag);
    }
}

/// With writes open it was decided to block them.
fn starts_window(before: &CreditMigrationStatus, after: &CreditMigrationStatus) -> bool {
    let was = before.window.clone().unwrap_or_default();
    let is = after.window.clone().unwrap_or_default();
    was.deadline.is_none() && was.blocked_at.is_none() && is.deadline.is_some() && is.blocked_at.is_none()
}

fn target_version(w: &World, effect: &Effect) -> u64 {
    match effect.target() {
        Some(FenceTarget::Run(name)) => w.runs.get(name).map_or(0, |r| r.version),
        Some(FenceTarget::Flag) => w.flag.version,
        Some(FenceTarget::Workload(_)) => w.app.version,
        Some(FenceTarget::Migration) | None => 0,
    }
}

/// What became of an effect.
enum Applied {
    Done,
    /// Its target is another one by now, or gone.
    Conflict,
    /// By the API server, as a webhook or a quota does.
    Refused,
}

fn apply(w: &mut World, version: u64, effect: &Effect, target: Option<u64>) -> Applied {
    let fenced = w.defect != Defect::UnfencedWrites;
    let same = |now: u64| !fenced || target == Some(now);
    match effect {
        Effect::AddFinalizer | Effect::RemoveFinalizer => {
            let next = w.bump();
            let Some(m) = w.migration.as_mut().filter(|m| m.version == version) else { return Applied::Conflict };
            m.value.finalizer = matches!(effect, Effect::AddFinalizer);
            m.version = next;
            if m.value.deleting && !m.value.finalizer {
                w.migration = None;
            }
            Applied::Conflict
        }
        Effect::StartRun(start) => {
            if w.migration.is_none() {
                return Applied::Conflict;
            }
            if w.refuses(Refused::Runs) {
                return Applied::Refused;
            }
            let (version, now) = (w.bump(), w.now);
            let entry = w.runs.entry(start.name.clone()).or_insert_with(|| Stored {
                version,
                value: ObservedRun {
                    run: MigrationRun::new(&start.name, start.spec.clone()),
                    job: Job::Absent,
                    pod: JobPod::Started,
                    written_at: Some(now),
                },
            });
            if entry.value.job == Job::Absent {
                entry.value.job = Job::Active;
            }
            Applied::Done
        }
        Effect::StartCheckJob(start) => {
            if w.refuses(Refused::Runs) {
                return Applied::Refused;
            }
            w.start_check_job(&start.name);
            Applied::Done
        }
        Effect::RemoveRun { name } => {
            let Some(run) = w.runs.get(name) else { return Applied::Done };
            let window = run.value.run.spec.task.is_window();
            if window && (!same(run.version) || w.order(name).is_some_and(|c| c > WindowCommand::Standby)) {
                return Applied::Conflict;
            }
            w.runs.remove(name);
            Applied::Done
        }
        Effect::OrderWindow { name, order } => {
            let next = w.bump();
            let Some(run) = w.runs.get_mut(name).filter(|r| same(r.version)) else { return Applied::Conflict };
            if run.value.run.spec.window.as_ref().is_none_or(|o| o.command < order.command) {
                run.value.run.spec.window = Some(order.clone());
                run.version = next;
            }
            Applied::Done
        }
        Effect::SetFlag { value, marker } => {
            let flag = &w.flag.value;
            let changes = flag.value != *value;
            if !same(w.flag.version) || flag.missing {
                return Applied::Conflict;
            }
            if flag.refused || (flag.immutable && changes) {
                return Applied::Refused;
            }
            w.flag.value.before = std::mem::replace(&mut w.flag.value.value, value.clone());
            w.flag.value.marker = Some(marker.clone());
            w.drifted_at = None;
            w.flag.version = w.bump();
            Applied::Done
        }
        Effect::Restart { marker, .. } => {
            if !same(w.app.version) || w.app.value.missing {
                return Applied::Conflict;
            }
            w.app.value.template = Some(marker.clone());
            w.app.version = w.bump();
            Applied::Done
        }
        Effect::KeepPods { template, marker, .. } => {
            if !same(w.app.version) || w.app.value.missing {
                return Applied::Conflict;
            }
            (w.app.value.template, w.app.value.switched_for) = (template.clone(), Some(marker.clone()));
            w.app.version = w.bump();
            Applied::Done
        }
        Effect::Event(event) => {
            w.events.push(event.note.clone());
            Applied::Done
        }
    }
}
