//! The switch of the application: flag, restarts, and what shows that the wanted version runs.

use crate::{
    api::{CreditMigrationSpec, Direction, OnDrift, ReadyReason, Time, WindowProgress},
    machine::{
        Effect, ObservedFlag, Transition, Workload,
        faults::{Fault, fault},
    },
    shared::{quoted::Quoted, time::seconds},
};

/// How long a settled rollout may answer with another version before its workloads are restarted again, in seconds.
const RESTART_AFTER_SECONDS: i64 = 10;
/// The same after a restart that did not help.
const NEXT_RESTART_AFTER_SECONDS: i64 = 15;

/// Seconds between two readings of pods during a rollout: pods are not watched.
const READ_SECONDS: i64 = 2;

/// How far flag, workloads and probe are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rollout {
    /// Something does not say the wanted version yet.
    UnderWay,
    /// All say the wanted version.
    Complete,
}

/// The flag's value that this direction leads to.
pub(super) fn flag_value(spec: &CreditMigrationSpec, direction: Direction) -> &str {
    match direction {
        Direction::Forward => &spec.application.flag.to,
        Direction::Rollback => &spec.application.flag.from,
    }
}

/// Value of the flag's marker: which switch of which migration.
pub(super) fn flag_marker(uid: &str, direction: Direction) -> String {
    match direction {
        Direction::Forward => format!("{uid}.to"),
        Direction::Rollback => format!("{uid}.rollback"),
    }
}

impl Transition<'_> {
    fn wanted_version(&self, direction: Direction) -> &str {
        flag_value(self.spec, direction)
    }

    /// Value of the flag's marker: which switch of which migration.
    pub(crate) fn marker(&self, direction: Direction) -> String {
        flag_marker(&self.observed.uid, direction)
    }

    /// Value of the workloads' marker: the switch, and from the second restart on its number. No number comes twice, or
    /// pods of an earlier restart would pass as new ones.
    pub(super) fn restart_marker(&self, direction: Direction) -> String {
        match self.status.window.as_ref().map_or(0, |w| w.restarts) {
            0 => self.marker(direction),
            n => format!("{}.{}", self.marker(direction), n + 1),
        }
    }

    /// Flag first, then the restarts: a pod started before the flag was set would read the old value.
    pub(crate) fn switch_effects(&self, direction: Direction) -> Vec<Effect> {
        if !self.is_flag_set(direction) {
            let value = self.wanted_version(direction).to_owned();
            return vec![Effect::SetFlag { value, marker: self.marker(direction) }];
        }
        self.observed
            .workloads
            .iter()
            .filter(|w| w.exists && self.spec.application.workloads.contains(&w.reference))
            .filter_map(|w| self.replacement(direction, w).effect(w))
            .collect()
    }

    /// The spec asks for a flag that was changed after the window to be set again, and it can be.
    pub(crate) fn restores_flag(&self) -> bool {
        let can_be_set = match &self.observed.flag {
            ObservedFlag::Value { immutable, .. } => !immutable,
            ObservedFlag::KeyMissing => true,
            ObservedFlag::ConfigMapMissing => false,
        };
        self.spec.application.flag.on_drift == OnDrift::Restore && can_be_set && self.flag_drift().is_some()
    }

    /// The forward switch of the flag once more, with its marker: fenced like the first one.
    pub(crate) fn restored_flag(&self) -> Option<Effect> {
        let value = self.wanted_version(Direction::Forward).to_owned();
        self.restores_flag().then(|| Effect::SetFlag { value, marker: self.marker(Direction::Forward) })
    }

    /// The flag is at the wanted value, set by this very switch.
    pub(crate) fn is_flag_set(&self, direction: Direction) -> bool {
        matches!(&self.observed.flag, ObservedFlag::Value { value, set_for, .. }
            if value == self.wanted_version(direction) && set_for.as_deref() == Some(self.marker(direction).as_str()))
    }

    /// Flag and workloads are as wanted, made so by this very switch, and no old pod is left.
    pub(crate) fn is_rolled_out(&self, direction: Direction) -> bool {
        self.is_flag_set(direction)
            && self.spec.application.workloads.iter().all(|wanted| {
                self.observed
                    .workloads
                    .iter()
                    .any(|workload| workload.reference == *wanted && self.is_replaced(direction, workload))
            })
    }

    /// Its pods are as wanted, made so by this very switch, and no old one is left.
    pub(crate) fn is_replaced(&self, direction: Direction, workload: &Workload) -> bool {
        self.replacement(direction, workload).is_ordered(workload)
            && workload.unsettled.is_none()
            && workload.old_pods == 0
    }

    /// Follows the rollout of a direction: flag, workloads and probe must all name the wanted version.
    ///
    /// The probe's answer counts only if it was asked for after the one that was known when the rollout was first found
    /// settled: an earlier answer may be that of a pod which is gone, and a pod that was not asked yet may have read
    /// the flag's old value from its node.
    pub(crate) fn follow_rollout(&mut self, direction: Direction, progress: &WindowProgress) -> Rollout {
        if !self.is_rolled_out(direction) {
            self.window_mut().settled_at = None;
            self.wake_at(self.now + seconds(READ_SECONDS));
            return Rollout::UnderWay;
        }
        let now = self.now;
        if self.spec.application.version_probe.is_none() {
            let settled_at = *self.window_mut().settled_at.get_or_insert(now);
            let due = settled_at + self.hold_of_kept_pods(direction);
            if now < due {
                self.wake_at(due);
                return Rollout::UnderWay;
            }
            return Rollout::Complete;
        }
        let window = self.window_mut();
        if window.settled_at.is_none() {
            window.probed_before = progress.observed_at;
        }
        let settled_at = *window.settled_at.get_or_insert(now);
        // Compared with the runner's clock alone: two hosts' clocks differ.
        let before = if fault(Fault::ProbedByOwnClock) { Some(settled_at) } else { window.probed_before };
        let fresh = progress.observed_at > before;
        match progress.observed_version.as_deref().filter(|_| fresh) {
            Some(answer) if answer == self.wanted_version(direction) => Rollout::Complete,
            Some(answer) => {
                self.restart_workloads_again(direction, answer, settled_at);
                Rollout::UnderWay
            }
            None => Rollout::UnderWay,
        }
    }

    /// Every pod is of this switch, and some run another version: they are replaced, under a marker that is persisted
    /// first.
    fn restart_workloads_again(&mut self, direction: Direction, answer: &str, settled_at: Time) {
        let window = self.window_mut();
        let due =
            settled_at + seconds(if window.restarts == 0 { RESTART_AFTER_SECONDS } else { NEXT_RESTART_AFTER_SECONDS });
        if self.now < due {
            return self.wake_at(due);
        }
        let window = self.window_mut();
        window.restarts += 1;
        window.settled_at = None;
        // What a pod answers outweighs when it started: none is kept from here on.
        window.unswitched_until = None;
        let version = self.wanted_version(direction).to_owned();
        self.event(
            true,
            ReadyReason::RestartedAgain,
            format!(
                "the version probe answers {}, wanted is {}, though flag and \
                 rollout are as wanted since {settled_at:.0}; a pod may have read the flag's old value from its node; \
                 the workloads are restarted again",
                Quoted(answer),
                Quoted(&version)
            ),
        );
    }

    /// How far flag and workloads are.
    pub(crate) fn rollout_message(&self, progress: &WindowProgress) -> String {
        let workloads: Vec<String> = self
            .observed
            .workloads
            .iter()
            .filter(|workload| self.spec.application.workloads.contains(&workload.reference))
            .map(|workload| {
                let (available, wanted) = workload.available;
                let (name, old) = (&workload.reference.name, workload.old_pods);
                let failure =
                    workload.failure.as_ref().map(|failure| format!(" ({})", failure.why)).unwrap_or_default();
                format!("{name} {available}/{wanted} available{failure}, {old} pods to be replaced")
            })
            .collect();
        let probe = progress.observed_version.as_deref().unwrap_or("none");
        let flag = self.observed.flag_value().unwrap_or("missing");
        format!("flag is {flag}; {}; version probe: {probe}", workloads.join(", "))
    }
}
