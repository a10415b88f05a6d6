//! Results of checks: what the runner has reported, and what the controller measures itself (workloads and Jobs).

use super::{
    CheckJobStart, DEADLINE, Effect, Job, JobPod, Transition,
    faults::{Fault, fault},
};
use crate::{
    api::{Check, CheckOutcome, CheckResult, Phase, Step, Task, Time},
    shared::{
        tally::{Sample, Tally},
        time::{saturating_add, seconds, to_signed},
    },
};

/// How much a result says of now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Freshness {
    /// Nothing was measured yet, and the first measurement is not late.
    NeverMeasured,
    /// It says nothing of now: its pod may hang, or its node be gone.
    Outdated,
    /// It was measured within three intervals, and 30 s for time-outs and clocks that differ.
    Fresh,
}

impl Freshness {
    fn of(result: &CheckResult, interval: kube::core::Duration, now: Time) -> Self {
        if now.duration_since(result.at) > to_signed(interval) * 3 + seconds(30) {
            Freshness::Outdated
        } else if result.measured == 0 {
            Freshness::NeverMeasured
        } else {
            Freshness::Fresh
        }
    }
}

impl Transition<'_> {
    /// Results in the order of the checks; what was not measured is NoData, which is never success.
    pub(crate) fn results(&self, task: Task, checks: &[Check]) -> Vec<CheckResult> {
        let (step, ..) = self.stage();
        let reported = self.reported_checks(task, step);
        checks
            .iter()
            .enumerate()
            .map(|(i, check)| {
                if check.workload.is_some() {
                    return self.workload_result(check);
                }
                if check.job.is_some() {
                    return self.job_result(check, i);
                }
                let validated = self.validated_trigger(check);
                let known = reported.iter().find(|r| r.name == check.name).or(validated);
                let mut result = known.map_or_else(|| self.not_measured(check), |r| self.fresh(check, r));
                // The judge of a lost run is gone with it; its breach is not. Nor is that of a run that goes on.
                result.breached |= self.previous_result(check).is_some_and(|p| p.breached)
                    || validated.is_some_and(|validated| validated.breached);
                result
            })
            .collect()
    }

    fn reported_checks(&self, task: Task, step: Step) -> &[CheckResult] {
        let run = self.observed.run(task, self.attempt(step));
        run.and_then(|r| r.run.status.as_ref()).map(|s| s.checks.as_slice()).unwrap_or_default()
    }

    /// What Validate's run, which goes on for a while, says in Monitoring of a trigger. A breach that was reported in
    /// Validating is none of Monitoring.
    fn validated_trigger(&self, check: &Check) -> Option<&CheckResult> {
        if self.phase() != Phase::Monitoring || !check.is_trigger() {
            return None;
        }
        let found = self.reported_checks(Task::Validate, Step::Validate).iter().find(|r| r.name == check.name)?;
        let reported = self.step(Step::Validate).is_some_and(|step| step.reported_breaches.contains(&check.name));
        (!found.breached || !reported).then_some(found)
    }

    /// Validate's run goes on until that of Monitoring measures each trigger, and counts no failures from zero:
    /// otherwise no rollback would start by itself while the next pod starts.
    pub(crate) fn validation_goes_on(&self) -> bool {
        let reported = self.reported_checks(Task::Monitor, Step::Monitor);
        let taken_over = |check: &Check| {
            let result = reported.iter().find(|result| result.name == check.name);
            result.is_some_and(|r| r.measured > 0 && (r.outcome != CheckOutcome::Fail || r.breached))
        };
        let triggers = self.spec.checks_of(Task::Monitor);
        let mut triggers = triggers.iter().filter(|check| check.is_trigger());
        self.phase() == Phase::Monitoring && !triggers.all(taken_over)
    }

    fn previous_result(&self, check: &Check) -> Option<&CheckResult> {
        self.status.checks.iter().find(|r| r.name == check.name)
    }

    fn not_measured(&self, check: &Check) -> CheckResult {
        // Unchanged: a time that moves on with each call would be written each time, and lead to another call.
        if let Some(previous) = self.previous_result(check).filter(|p| p.measured == 0) {
            return previous.clone();
        }
        CheckResult {
            name: check.name.clone(),
            outcome: CheckOutcome::NoData,
            failed: 0,
            recent: String::new(),
            measured: 0,
            breached: false,
            waiting_for: None,
            message: "not measured yet".into(),
            at: self.now,
        }
    }

    /// A trigger that is measured, and finds nothing to measure (no traffic at night, a schema without transactions). A
    /// trigger says when to roll back, not when all is well: it would block a stage for ever, since the spec is
    /// immutable.
    pub(crate) fn idle_trigger(&self, check: &Check, result: &CheckResult) -> bool {
        check.is_trigger()
            && result.outcome == CheckOutcome::NoData
            && Freshness::of(result, check.interval, self.now) == Freshness::Fresh
    }

    /// A result as it counts now: one that is outdated has no data.
    fn fresh(&self, check: &Check, result: &CheckResult) -> CheckResult {
        if Freshness::of(result, check.interval, self.now) != Freshness::Outdated {
            return result.clone();
        }
        let message = format!(
            "last measured at {:.0}, more than three intervals ago; next: {}",
            result.at,
            self.observed.kubectl("get pods")
        );
        CheckResult { outcome: CheckOutcome::NoData, waiting_for: None, message, ..result.clone() }
    }

    /// A workload check is measured by what is observed, at each interval and when it changes.
    fn workload_result(&self, check: &Check) -> CheckResult {
        let previous = self.previous_result(check);
        let workload = check
            .workload
            .as_ref()
            .and_then(|w| self.observed.workloads.iter().find(|workload| workload.reference == *w));
        let (good, message) = match workload {
            Some(w) if w.exists => (
                w.available.0 >= w.available.1 && w.available.1 > 0,
                format!("{} of {} replicas available", w.available.0, w.available.1),
            ),
            _ => (false, "the workload is missing".into()),
        };
        let interval = to_signed(check.interval);
        let due = previous
            .is_none_or(|p| self.now.duration_since(p.at) >= interval || (p.outcome == CheckOutcome::Pass) != good);
        if let (false, Some(p)) = (due, previous) {
            return p.clone();
        }
        self.measured(check, if good { CheckOutcome::Pass } else { CheckOutcome::Fail }, message)
    }

    /// A job check is measured by its Job: exit code 0 or not. The measurement under way follows those that are known.
    fn job_result(&self, check: &Check, i: usize) -> CheckResult {
        let previous = self.previous_result(check);
        let known = previous.map_or(0, |p| p.measured);
        let name = self.check_job(i, known + 1);
        let job = self.observed.check_jobs.iter().find(|j| j.name == name);
        let describe = || self.observed.describe_job_and_pods(&name);
        match job.map(|j| (&j.job, &j.pod)) {
            Some((Job::Complete, _)) => self.measured(check, CheckOutcome::Pass, format!("Job {name} succeeded")),
            // The pod's own time-out is shorter: at the Job's there was no pod that could have answered.
            Some((Job::Failed { reason }, pod)) if reason == DEADLINE || matches!(pod, JobPod::Waiting(_)) => {
                let why = match pod {
                    JobPod::Waiting(Some(why)) => format!(", {}", why.reason),
                    _ => {
                        previous.and_then(|p| p.waiting_for.as_ref()).map(|why| format!(", {why}")).unwrap_or_default()
                    }
                };
                let message = format!(
                    "could not be measured: the container of Job {name} was not started ({reason}{why}); next: {}",
                    describe()
                );
                self.measured(check, CheckOutcome::Error, message)
            }
            Some((Job::Failed { reason }, _)) => {
                let next = self.observed.kubectl(&format!("logs job/{name}"));
                self.measured(check, CheckOutcome::Fail, format!("Job {name} failed ({reason}); next: {next}"))
            }
            Some((Job::Active | Job::Absent, pod)) => {
                let result = previous.map_or_else(|| self.not_measured(check), |p| self.fresh(check, p));
                match pod {
                    // Stored for the end: the kubelet forgets what a container waited for when it ends its pod.
                    JobPod::Waiting(Some(why)) => CheckResult {
                        waiting_for: Some(why.reason.clone()),
                        message: format!("waits for Job {name} {}; next: {}", why.reason, describe()),
                        ..result
                    },
                    JobPod::Started | JobPod::Stopped(_) if result.waiting_for.is_some() => {
                        CheckResult { waiting_for: None, message: format!("Job {name} is under way"), ..result }
                    }
                    _ => result,
                }
            }
            None => previous.map_or_else(|| self.not_measured(check), |p| self.fresh(check, p)),
        }
    }

    fn check_job(&self, i: usize, measurement: u64) -> String {
        let (_, task, _) = self.stage();
        self.observed.check_job_name(task, i, measurement)
    }

    /// One more measurement of a check that the controller measures.
    fn measured(&self, check: &Check, outcome: CheckOutcome, message: String) -> CheckResult {
        let mut tally = Tally::new(check.failures.count, check.failures.of);
        if let Some(previous) = self.previous_result(check) {
            tally = tally.resume(Tally::parse(&previous.recent), previous.measured, previous.breached);
        }
        tally.record(match outcome {
            CheckOutcome::Pass => Sample::Good,
            CheckOutcome::Fail => Sample::Failed,
            // It says nothing of the application.
            CheckOutcome::Error | CheckOutcome::NoData => Sample::Uncounted,
        });
        CheckResult {
            name: check.name.clone(),
            outcome,
            failed: tally.failed(),
            recent: tally.recent(),
            measured: tally.measured(),
            breached: tally.breached(),
            waiting_for: None,
            message,
            at: self.now,
        }
    }

    /// Jobs of job checks that are due.
    pub(crate) fn due_check_jobs(&self) -> Vec<Effect> {
        let (_, task, _) = self.stage();
        let mut effects = vec![];
        for (i, check) in self.spec.checks_of(task).into_iter().enumerate() {
            let Some(job) = check.job.clone() else { continue };
            let measured = self.previous_result(&check).map_or(0, |r| r.measured);
            let name = self.check_job(i, measured + 1);
            let exists = self.observed.check_jobs.iter().any(|j| j.name == name);
            let given_up = fault(Fault::LostCheckAwaited)
                && self.previous_result(&check).is_some_and(|r| r.outcome == CheckOutcome::Error);
            if self.next_job_check(&check).is_none() && !exists && !given_up {
                effects.push(Effect::StartCheckJob(Box::new(CheckJobStart { name, check: check.name, job })));
            }
        }
        effects
    }

    /// When the next measurement of a job check is due; `None` when it is due now.
    fn next_job_check(&self, check: &Check) -> Option<Time> {
        let measured = self.previous_result(check).filter(|r| r.measured > 0)?;
        Some(measured.at + to_signed(check.interval)).filter(|due| self.now < *due)
    }

    /// Wakes for the next measurement of the controller's own.
    pub(crate) fn plan_checks(&mut self) {
        let measuring = matches!(self.phase(), Phase::Validating | Phase::Monitoring) && self.observed.finalizer;
        if measuring && let Some(at) = self.next_check() {
            self.wake_at(at);
        }
    }

    /// When a check that the controller measures is due next.
    fn next_check(&self) -> Option<Time> {
        let (_, task, _) = self.stage();
        let jobs =
            self.spec.checks_of(task).iter().filter(|c| c.job.is_some()).filter_map(|c| self.next_job_check(c)).min();
        [jobs, self.next_workload_check()].into_iter().flatten().min()
    }

    /// When the next workload check is due; never in the past, since each call costs requests.
    fn next_workload_check(&self) -> Option<Time> {
        let (_, task, _) = self.stage();
        self.spec
            .checks_of(task)
            .iter()
            .filter(|c| c.workload.is_some())
            .filter_map(|c| Some(saturating_add(self.previous_result(c)?.at, to_signed(c.interval))))
            .filter(|due| *due > self.now)
            .min()
    }
}
