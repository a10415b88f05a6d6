//! What happens around the operator: an author edits the spec, clocks differ, Jobs of checks run, and the API server
//! refuses writes.
//!
//! Called by `simulation`. Imports `api` and `machine`.

use std::collections::BTreeSet;

use fastrand::Rng;
use jiff::SignedDuration;

use super::world::World;
use crate::{
    api::{Check, CheckResult, CreditMigrationStatus, JobCheck, Phase},
    machine::{CheckJob, DEADLINE, Job, JobPod, PodReason},
    shared::time::seconds,
};

/// Most seconds by which a clock is ahead or behind.
const MOST_SKEW_SECONDS: i64 = 10;
/// Name of the check that is measured by a Job.
const JOB_CHECK: &str = "smoke";
/// Seconds between two of its measurements.
const JOB_CHECK_SECONDS: i64 = 10;

/// An approval by a person.
#[derive(Clone, Debug)]
pub(super) struct Approval {
    pub(super) by: String,
    /// Of the spec that its plan was made for.
    pub(super) generation: i64,
}

/// A kind of write that the API server refuses, as a webhook or a quota does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// The status of the migration.
    Status,
    /// Runs and Jobs.
    Runs,
}

/// By how much a clock differs from the API server's.
pub(super) fn skew(rng: &mut Rng) -> SignedDuration {
    seconds(rng.i64(-MOST_SKEW_SECONDS..=MOST_SKEW_SECONDS))
}

/// By how much the clocks of the nodes differ from it: they are behind by less than what a rollback allows for.
pub(super) fn node_skew(rng: &mut Rng) -> SignedDuration {
    seconds(rng.i64(1 - MOST_SKEW_SECONDS..=MOST_SKEW_SECONDS))
}

impl World {
    /// The author edits the spec, unless the API server refuses it in this phase. `true` if it was edited.
    pub(super) fn edit_spec(&mut self) -> bool {
        let version = self.bump();
        let Some(m) = &mut self.migration else { return false };
        if !matches!(m.value.status.phase, None | Some(Phase::Preparing | Phase::AwaitingApproval | Phase::Failed)) {
            return false;
        }
        m.value.generation += 1;
        m.version = version;
        m.value.spec.monitoring.duration =
            std::time::Duration::from_secs(30 + m.value.generation.unsigned_abs()).into();
        true
    }

    /// Adds a `job` check to the monitoring.
    pub(super) fn add_job_check(&mut self) {
        let Some(m) = &mut self.migration else { return };
        let checks = &mut m.value.spec.monitoring.checks;
        let job = JobCheck {
            image: "shop-smoke".into(),
            command: vec![],
            args: vec![],
            env_from_secrets: vec![],
            timeout: std::time::Duration::from_secs(10).into(),
        };
        let Some(first) = checks.first() else { return };
        let interval = std::time::Duration::from_secs(JOB_CHECK_SECONDS.unsigned_abs()).into();
        checks.push(Check { name: JOB_CHECK.into(), sql: None, max: None, job: Some(job), interval, ..first.clone() });
    }

    /// One Job of a check goes on: its container starts, or it ends, or it is removed after it has ended.
    pub(super) fn run_check_jobs(&mut self, rng: &mut Rng) {
        if self.check_jobs.is_empty() {
            return;
        }
        let i = rng.usize(..self.check_jobs.len());
        let job = &mut self.check_jobs[i];
        let waiting = || PodReason::new("ImagePullBackOff", "");
        match (&job.job, &job.pod, rng.u8(..)) {
            (Job::Active, JobPod::Started, 0..8) => job.job = Job::Failed { reason: "BackoffLimitExceeded".into() },
            (Job::Active, JobPod::Started, _) => job.job = Job::Complete,
            (Job::Active, _, 0..16) => {
                job.pod = JobPod::Waiting(Some(waiting()));
                job.job = Job::Failed { reason: DEADLINE.into() };
            }
            (Job::Active, ..) => job.pod = JobPod::Started,
            (_, _, 0..64) => drop(self.check_jobs.swap_remove(i)),
            _ => {}
        }
    }

    /// Judges a persisted decision: a check that is due is measured, unless something keeps its Job from being started.
    pub(super) fn judge_checks(&mut self, status: &CreditMigrationStatus) {
        let due = |result: &CheckResult| self.now > result.at + seconds(JOB_CHECK_SECONDS + 2 * MOST_SKEW_SECONDS);
        let late = status.checks.iter().any(|result| result.name == JOB_CHECK && due(result));
        let under_way = self.check_jobs.iter().any(|job| job.job == Job::Active);
        let idle = status.phase == Some(Phase::Monitoring) && late && !under_way && !self.is_obstructed();
        self.unmeasured = if idle { self.unmeasured + 1 } else { 0 };
    }

    /// A new Job of a check.
    pub(super) fn start_check_job(&mut self, name: &str) {
        if self.check_jobs.iter().all(|job| job.name != name) {
            self.check_jobs.push(CheckJob { name: name.to_owned(), job: Job::Active, pod: JobPod::Waiting(None) });
        }
    }

    /// Whether the API server refuses this kind of write.
    pub(super) fn refuses(&self, what: Refused) -> bool {
        self.refused == Some(what)
    }

    /// People who approved the plan of the present spec, without the author.
    pub(super) fn approvers_of_spec(&self) -> BTreeSet<&str> {
        let generation = self.migration.as_ref().map_or(0, |m| m.value.generation);
        let of_spec = self.approvals.iter().filter(|approval| approval.generation == generation);
        of_spec.map(|approval| approval.by.as_str()).filter(|by| *by != "author").collect()
    }
}
