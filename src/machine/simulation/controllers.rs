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
                self.todo = None;
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
            let done = apply(w, version, &effect, target);
            match &mut self.todo {
                // A conflict ends this round: it is read and decided again.
                Some(_) if !done => self.todo = None,
                Some((_, effects)) => drop(effects.remove(0)),
                None => {}
            }
            return;
        }
        let Some((version, migration, observed)) = self.read.take() else {
            self.read = w.observe();
            return;
        };
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

/// `false`: conflict.
fn apply(w: &mut World, version: u64, effect: &Effect, target: Option<u64>) -> bool {
    let fenced = w.defect != Defect::UnfencedWrites;
    let same = |now: u64| !fenced || target == Some(now);
    match effect {
        Effect::AddFinalizer | Effect::RemoveFinalizer => {
            let next = w.bump();
            let Some(m) = w.migration.as_mut().filter(|m| m.version == version) else { return false };
            m.value.finalizer = matches!(effect, Effect::AddFinalizer);
            m.version = next;
            if m.value.deleting && !m.value.finalizer {
                w.migration = None;
            }
            false
        }
        Effect::StartRun(start) => {
            if w.migration.is_none() || w.refuses(Refused::Runs) {
                return false;
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
            true
        }
        Effect::StartCheckJob(start) => {
            let accepted = !w.refuses(Refused::Runs);
            if accepted {
                w.start_check_job(&start.name);
            }
            accepted
        }
        Effect::RemoveRun { name } => {
            let Some(run) = w.runs.get(name) else { return true };
            let window = run.value.run.spec.task.is_window();
            if window && (!same(run.version) || w.order(name).is_some_and(|c| c > WindowCommand::Standby)) {
                return false;
            }
            w.runs.remove(name);
            true
        }
        Effect::OrderWindow { name, order } => {
            let next = w.bump();
            let Some(run) = w.runs.get_mut(name).filter(|r| same(r.version)) else { return false };
            if run.value.run.spec.window.as_ref().is_none_or(|o| o.command < order.command) {
                run.value.run.spec.window = Some(order.clone());
                run.version = next;
            }
            true
        }
        Effect::SetFlag { value, marker } => {
            let flag = &w.flag.value;
            let changes = flag.value != *value;
            if !same(w.flag.version) || flag.missing || flag.refused || (flag.immutable && changes) {
                return false;
            }
            w.flag.value.before = std::mem::replace(&mut w.flag.value.value, value.clone());
            w.flag.value.marker = Some(marker.clone());
            w.drifted_at = None;
            w.flag.version = w.bump();
            true
        }
        Effect::Restart { marker, .. } => {
            if !same(w.app.version) || w.app.value.missing {
                return false;
            }
            w.app.value.template = Some(marker.clone());
            w.app.version = w.bump();
            true
        }
        Effect::KeepPods { template, marker, .. } => {
            if !same(w.app.version) || w.app.value.missing {
                return false;
            }
            (w.app.value.template, w.app.value.switched_for) = (template.clone(), Some(marker.clone()));
            w.app.version = w.bump();
            true
        }
        Effect::Event(event) => {
            w.events.push(event.note.clone());
            true
        }
    }
}
