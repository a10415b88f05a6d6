//! The application in the fake world: a Deployment with its pods, what gets in the way of a switch of it, and what is
//! observed of it.

use fastrand::Rng;

use super::{
    outsiders::Refused,
    world::{Defect, START, World},
};
use crate::{
    api::{Phase, Step, Task, Time, WorkloadKind, WorkloadRef},
    machine::{PodReason, RolloutFailure, RolloutFailureKind, Workload, WorkloadPod},
    shared::time::seconds,
};

/// The Deployment: its template's annotation, and its pods with theirs, the version they run, and their start.
#[derive(Clone, Debug)]
pub(super) struct App {
    pub(super) template: Option<String>,
    pub(super) pods: Vec<(Option<String>, String, Time)>,
    /// Its own annotation.
    pub(super) switched_for: Option<String>,
    /// Pods of this version crash as they start.
    pub(super) crashing: Option<&'static str>,
    /// The template of which a pod has crashed.
    pub(super) failed: Option<String>,
    /// A restart replaces no pod.
    pub(super) paused: bool,
    /// The Deployment was removed, and its pods were left.
    pub(super) missing: bool,
    /// Another owner's pod has the same labels.
    pub(super) foreign: bool,
}

impl World {
    /// What is observed of the Deployment.
    pub(super) fn workload(&self) -> Workload {
        let app = &self.app.value;
        // By labels alone a foreign pod is one of the Deployment's own that is never replaced.
        let by_labels = self.defect == Defect::PodsByLabels;
        let old_pods = app.pods.iter().filter(|p| p.0 != app.template).count() + usize::from(app.foreign && by_labels);
        let foreign_pods = if app.foreign && !by_labels { vec!["debug".to_owned()] } else { vec![] };
        let settled = app.pods.len() == 2 && app.pods.iter().all(|p| p.0 == app.template);
        let reference = WorkloadRef { kind: WorkloadKind::Deployment, name: "shop".into() };
        if app.missing {
            return Workload::missing(reference);
        }
        Workload {
            exists: true,
            reads_flag: true,
            restarted_for: app.template.clone(),
            switched_for: app.switched_for.clone(),
            paused: app.paused,
            unsettled: (!settled).then(|| "a pod is old".into()),
            foreign_pods,
            old_pods: u32::try_from(old_pods).unwrap_or(0),
            pods: app.pods.iter().map(|p| WorkloadPod { restarted_for: p.0.clone(), started_at: Some(p.2) }).collect(),
            failure: (app.failed.is_some() && app.failed == app.template).then(|| RolloutFailure {
                kind: RolloutFailureKind::CrashLoop,
                pod: Some("shop-new".into()),
                why: PodReason::new("CrashLoopBackOff", "exit code 1"),
            }),
            available: (2, 2),
            ..Workload::missing(reference)
        }
    }

    /// One pod of the rollout is replaced; it reads the flag as it starts, from a node that may lag.
    pub(super) fn roll(&mut self, rng: &mut Rng, lag: u8) {
        let flag = &self.flag.value;
        // A container whose ConfigMap is missing does not start.
        if self.app.value.paused || self.app.value.missing || self.losses.quota || flag.missing {
            return;
        }
        let value = if rng.u8(..) < lag { flag.before.clone() } else { flag.value.clone() };
        let now = self.now + self.node_skew;
        let app = &mut self.app.value;
        let Some(old) = app.pods.iter_mut().find(|p| p.0 != app.template) else { return };
        if app.crashing.is_some_and(|version| version == value) {
            // The pod that it would replace stays.
            app.failed.clone_from(&app.template);
        } else {
            *old = (app.template.clone(), value, now);
            app.failed = None;
        }
        self.app.version = self.bump();
    }

    /// A container is restarted in its pod, and reads the flag again. In a window, where it matters.
    pub(super) fn restart_container(&mut self, rng: &mut Rng) {
        let (flag, app) = (&self.flag.value, &mut self.app.value);
        // What an outsider has set is not the operator's fault.
        let set = self.drifted_at.is_none() && !flag.missing;
        if self.db.blocked_at.is_some() && set && app.crashing.is_none_or(|version| version != flag.value) {
            let pod = rng.usize(..app.pods.len());
            (app.pods[pod].1, app.pods[pod].2) = (flag.value.clone(), self.now + self.node_skew);
        }
    }

    /// Something gets in the way of a switch.
    pub(super) fn obstruct(&mut self, rng: &mut Rng) {
        let version = self.bump();
        let (flag, app) = (&mut self.flag, &mut self.app);
        match rng.u8(..11) {
            0 => (flag.value.immutable, flag.version) = (true, version),
            1 => (flag.value.missing, flag.version) = (true, version),
            2 => flag.value.refused = true,
            3 => (app.value.paused, app.version) = (true, version),
            4 => app.value.crashing = Some(if rng.bool() { "v1" } else { "v2" }),
            5 => self.refused = Some(Refused::Status),
            6 => self.refused = Some(Refused::Runs),
            7 => self.db.obstructed = true,
            8 => (app.value.missing, app.version) = (true, version),
            9 => self.losses.quota = true,
            _ => app.value.foreign = true,
        }
    }

    /// Operators fix what was in the way. A ConfigMap that was removed, or is immutable, is created again.
    pub(super) fn repair(&mut self) {
        let version = self.bump();
        let (flag, app) = (&mut self.flag, &mut self.app);
        if flag.value.immutable || flag.value.missing {
            flag.value.marker = None;
            flag.value.before.clone_from(&flag.value.value);
            flag.version = version;
        }
        (flag.value.immutable, flag.value.missing, flag.value.refused) = (false, false, false);
        if app.value.paused || app.value.missing {
            app.version = version;
        }
        (app.value.paused, app.value.missing) = (false, false);
        (app.value.foreign, app.value.crashing) = (false, None);
        (self.refused, self.db.obstructed) = (None, false);
        self.restore_safeguards();
    }

    /// Something is in the way of a switch, or lost.
    pub(super) fn is_obstructed(&self) -> bool {
        let (flag, app) = (&self.flag.value, &self.app.value);
        let of_flag = flag.immutable || flag.missing || flag.refused;
        let of_application = app.paused || app.missing || app.foreign || app.crashing.is_some();
        of_flag || of_application || self.refused.is_some() || self.db.obstructed || self.has_losses()
    }

    /// Writes stay blocked past the deadline although one version alone serves, and it is known that they can be
    /// unblocked: every pod is of the new one and the flag too, or every pod is of the old one.
    pub(super) fn blocked_needlessly(&self) -> bool {
        let Some(status) = self.migration.as_ref().map(|m| &m.value.status) else { return false };
        let window = status.window.clone().unwrap_or_default();
        let rolling_back = status.phase == Some(Phase::RollingBack);
        let overdue = window.deadline.is_some_and(|deadline| self.now > deadline + seconds(30));
        let flag = &self.flag.value;
        let all_run = |version: &str| self.app.value.pods.iter().all(|p| p.1 == version);
        // A ConfigMap that refuses every write, or is missing, says nothing of a write that may still arrive. Without a
        // status nothing is ordered, and without a run no pod takes over.
        let known = !flag.missing && !flag.refused && self.refused.is_none();
        let new_alone = flag.value == "v2" && all_run("v2");
        let app = &self.app.value;
        let can_settle = !app.paused && !app.missing && !self.losses.quota && app.crashing.is_none();
        // Pods of an earlier template have to be replaced: what they have read is not known.
        let replaced = app.pods.iter().all(|p| p.0 == app.template);
        let old_alone = flag.value == "v1" && all_run("v1") && replaced && can_settle;
        let needless = match window.task {
            Some(Task::RollbackWindow) => rolling_back && overdue && (new_alone || old_alone),
            // No pod was started since the start of the world; or those of the forward switch crash, and it is awaited.
            Some(Task::Window) => {
                let untouched = flag.value == "v1" && app.pods.iter().all(|p| p.2 == START);
                let crash = (status.phase, status.step) == (Some(Phase::Executing), Some(Step::SwitchApplication))
                    && (app.failed.is_some() && app.failed == app.template && window.switched);
                let ordered = status.phase == Some(Phase::Executing) && window.unblocking && overdue && new_alone;
                (rolling_back && untouched) || crash || ordered
            }
            _ => false,
        };
        self.api_up && self.db.blocked_at.is_some() && known && needless
    }
}
