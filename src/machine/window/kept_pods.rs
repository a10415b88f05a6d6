//! A rollback inside the forward window keeps the pods that cannot have read the new value: they are the old version,
//! and no restart has to wait for them.
//!
//! ```text
//!  runner acknowledges     flag at `to`      flag at `from`     template as the kept pods have it
//!  ----------|------------------|------------------|------------------------|------------------>
//!   unswitched_until                                              pods of the new template end
//!    started before: kept
//! ```
//! The template gets its earlier annotation back, so that the Deployment scales the earlier ReplicaSet: it replaces
//! the pods of the new template alone, and none if it is paused. The Deployment's own annotation has the marker then:
//! a late restart of the forward path is a conflict.

use jiff::SignedDuration;

use crate::{
    api::{Direction, Task, Time},
    machine::{Effect, Transition, Workload, WorkloadPod},
    shared::time::seconds,
};

/// How far a node's clock may be behind the API server's, in seconds: a container has to have started that long before
/// the switch was allowed.
const CLOCK_SECONDS: i64 = 10;
/// For how long kept pods are observed before they count, in seconds, if no probe asks them: a container that was
/// restarted in place is reported by its kubelet a moment later.
const KUBELET_SECONDS: i64 = 5;

/// How the pods of a workload come to be of the wanted version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Replacement {
    /// All are replaced, by a restart with this marker.
    All {
        /// The template's annotation.
        marker: String,
    },
    /// Those of the new template are replaced, the others are kept.
    NewPods {
        /// Annotation of the kept pods' template.
        template: Option<String>,
        /// The Deployment's own annotation.
        marker: String,
    },
}

impl Replacement {
    /// The workload's spec is as wanted, by this very switch.
    pub(super) fn is_ordered(&self, workload: &Workload) -> bool {
        match self {
            Replacement::All { marker } => workload.restarted_for.as_ref() == Some(marker),
            Replacement::NewPods { template, marker } => {
                workload.restarted_for == *template && workload.switched_for.as_ref() == Some(marker)
            }
        }
    }

    /// What makes it so.
    pub(super) fn effect(self, workload: &Workload) -> Option<Effect> {
        if self.is_ordered(workload) {
            return None;
        }
        let reference = workload.reference.clone();
        Some(match self {
            Replacement::All { marker } => Effect::Restart { workload: reference, marker },
            Replacement::NewPods { template, marker } => Effect::KeepPods { workload: reference, template, marker },
        })
    }
}

impl Transition<'_> {
    /// How a workload's pods come to be of the version that this direction wants.
    pub(super) fn replacement(&self, direction: Direction, workload: &Workload) -> Replacement {
        match self.kept_template(direction, workload) {
            Some(template) => Replacement::NewPods { template, marker: self.marker(direction) },
            None => Replacement::All { marker: self.restart_marker(direction) },
        }
    }

    /// A restart has to replace pods of it, and has not replaced all of them.
    pub(crate) fn awaits_restart(&self, direction: Direction, workload: &Workload) -> bool {
        self.kept_template(direction, workload).is_none() && !self.is_replaced(direction, workload)
    }

    /// For how long a rollout has to be settled before it counts, where no probe is asked.
    pub(super) fn hold_of_kept_pods(&self, direction: Direction) -> SignedDuration {
        let kept = self.observed.workloads.iter().any(|w| self.kept_template(direction, w).is_some());
        if kept { seconds(KUBELET_SECONDS) } else { SignedDuration::ZERO }
    }

    /// The annotation of the template whose pods are kept: each pod that the forward switch has not made is of it, has
    /// started before the flag could be set, and there are as many as are wanted. `None` if all are replaced.
    fn kept_template(&self, direction: Direction, workload: &Workload) -> Option<Option<String>> {
        let window = self.status.window.as_ref()?;
        if direction != Direction::Rollback || window.task != Some(Task::Window) {
            return None;
        }
        let until = window.unswitched_until?;
        let is_of = |marker: &Option<String>, direction| {
            marker.as_ref().is_some_and(|marker| marker.starts_with(&self.marker(direction)))
        };
        // A restart of this rollback is under way: it is not taken back.
        if is_of(&workload.restarted_for, Direction::Rollback) {
            return None;
        }
        let earlier: Vec<&WorkloadPod> =
            workload.pods.iter().filter(|pod| !is_of(&pod.restarted_for, Direction::Forward)).collect();
        let template = earlier.first()?.restarted_for.clone();
        let enough = usize::try_from(workload.available.1).is_ok_and(|wanted| earlier.len() >= wanted);
        let kept = |pod: &&WorkloadPod| pod.restarted_for == template && has_not_read(pod, until);
        (enough && earlier.iter().all(kept)).then_some(template)
    }
}

/// The pod cannot have read what was set after that time. One whose start is not known may have.
fn has_not_read(pod: &WorkloadPod, until: Time) -> bool {
    pod.started_at.is_some_and(|start| start + seconds(CLOCK_SECONDS) <= until)
}
