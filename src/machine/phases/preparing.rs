//! Preparing: nothing of the application is changed; every change of the inputs restarts it.

use super::Flow;
use crate::{
    api::{
        BaselineEvidence, CLOCK_SKEW_LIMIT, ClockOffset, Finding, MigrationRun, MigrationRunStatus, NoticeState,
        Occasion, Phase, ReadyReason, Reason, Retry, Step, StepState,
    },
    machine::{
        RunOutcome, StatusReason, Transition,
        steps::{self, PlannedRetry},
    },
    shared::message::Message,
};

/// What became of a finished step's evidence.
enum Recorded {
    /// It is in the status; a summary of it.
    Taken(String),
    /// It does not suffice, and why.
    Insufficient(Reason, Message),
}

impl Transition<'_> {
    /// Voids all evidence and restarts with Preflight.
    pub(crate) fn restart(&mut self, why: &str) {
        self.cancel_maintenance(&format!("{why}; the preparation starts again"));
        self.event(
            false,
            ReadyReason::PreparationRestarted,
            format!("{why}; earlier evidence and approvals no longer count"),
        );
        self.status.plan = None;
        self.status.baseline = None;
        self.status.backup = None;
        self.status.verification = None;
        self.status.table_users = None;
        self.status.code_backup = None;
        self.status.key_users = None;
        self.status.rehearsal = None;
        self.status.schedule = None;
        self.status.users_written = None;
        self.status.credits_written = None;
        self.status.unexplained = None;
        self.status.window = None;
        self.status.safeguards = None;
        self.status.rollback = None;
        self.status.checks.clear();
        self.status.approved_by.clear();
        self.status.approvals = None;
        self.status.runner_image = Some(self.observed.runner_image.clone());
        let now = self.now;
        for step_status in &mut self.status.steps {
            step_status.failures = 0;
            step_status.retry_at = None;
            // A finished step's evidence is void, its attempt's number is not: names never repeat.
            step_status.state = StepState::Failed;
            step_status.finished_at.get_or_insert(now);
            step_status.superseded = true;
            step_status.reason = Some(ReadyReason::Superseded.into());
            step_status.message = None;
        }
        self.enter(Phase::Preparing);
        self.start_step(Step::Preflight);
    }

    /// One step of the preparation.
    pub(crate) fn advance_preparing(&mut self) -> Flow {
        if let Some(request) = self.cancel_request() {
            return self.cancel(&request);
        }
        if self.inputs_changed() {
            self.restart("spec or SQL changed");
        }
        let step = self.status.step.unwrap_or(Step::Preflight);
        // Checked in each step, not only in Preflight: what is missing later must not be noticed in the window only.
        if let Some(violation) = self.cluster_violation() {
            self.report_lasting(violation.reason, violation.message.to_string());
            if step == Step::Preflight {
                return Flow::Settled;
            }
        } else if !self.waiting(step) {
            self.report_attempt(step);
        }
        if self.status.plan.is_none() {
            self.status.plan = self.observed_plan();
        }
        if self.start_due_retry(step) == PlannedRetry::NotYet {
            return Flow::Settled;
        }
        match step {
            Step::NotifyTeam => self.notify_team(),
            Step::CodeBackup if self.spec.code.is_none() => {
                self.skip_step(step, "spec.code is not set: tag and branch are the team's own business");
                self.start_next(step);
                Flow::Continue
            }
            _ => self.follow_run(step),
        }
    }

    /// Follows the run of a step to its end.
    fn follow_run(&mut self, step: Step) -> Flow {
        let Some(task) = steps::task_in(Phase::Preparing, step) else { return Flow::Settled };
        let attempt = self.run_attempt(step);
        let status = self.observed.run(task, attempt).and_then(|r| r.run.status.as_ref());
        // Baseline is a milestone of the Backup task: it is reported while the dump is still running.
        if step == Step::Baseline
            && let Some(baseline) = status.and_then(|s| s.baseline.clone())
        {
            self.finish_baseline(baseline);
            return Flow::Continue;
        }
        match self.observed.outcome(task, attempt) {
            RunOutcome::Pending => Flow::Settled,
            RunOutcome::Failed(reason, message) => {
                self.handle_failed_run(step, reason, &message);
                Flow::Settled
            }
            RunOutcome::Succeeded(run) => {
                let run = run.clone();
                match self.record_evidence(step, &run) {
                    Recorded::Insufficient(reason, message) => {
                        self.handle_failed_run(step, reason, &message);
                        return Flow::Settled;
                    }
                    Recorded::Taken(note) => self.succeed_step(step, note),
                }
                if steps::next(step) == Some(Step::Approve) {
                    return self.enter_approval();
                }
                self.start_next(step);
                Flow::Continue
            }
        }
    }

    fn finish_baseline(&mut self, baseline: BaselineEvidence) {
        let note = baseline.summary();
        self.status.baseline = Some(baseline);
        self.succeed_step(Step::Baseline, note);
        self.status.step = Some(Step::Backup);
        self.start_step(Step::Backup);
    }

    fn start_next(&mut self, step: Step) {
        self.reason = None;
        self.message = None;
        if let Some(next) = steps::next(step) {
            self.start_step(next);
        }
    }

    /// Notifies the team of what is planned, and waits for the first attempt alone: an unreachable channel blocks
    /// nothing.
    fn notify_team(&mut self) -> Flow {
        let s = &self.spec.schedule;
        let hours: Vec<String> =
            s.allowed_hours.iter().map(|h| format!("{}-{} {}", h.from, h.to, h.time_zone)).collect();
        let when = match (s.start_at, hours.is_empty()) {
            (Some(at), true) => format!("not before {at:.0}"),
            (Some(at), false) => format!("not before {at:.0}, in the hours {}", hours.join(", ")),
            (None, false) => format!("in the hours {}", hours.join(", ")),
            (None, true) => "as soon as it is approved".to_owned(),
        };
        let text = format!("migration {} is being prepared; it may start {when}", self.observed.name);
        let key = format!("planned.{}", self.attempt(Step::NotifyTeam));
        self.notify(Occasion::Planned, &key, &text);
        let Some(id) = self.notice_id(Occasion::Planned, &key) else {
            self.skip_step(
                Step::NotifyTeam,
                "no channel in spec.notifications.channels has audience Team or Support: notify them yourself",
            );
            self.start_next(Step::NotifyTeam);
            return Flow::Continue;
        };
        let Some(n) = self.notice(&id) else { return Flow::Settled };
        if n.state == NoticeState::Pending && n.failures == 0 {
            return Flow::Settled;
        }
        let (all, taken) = (self.channels_for(Occasion::Planned).len(), n.notice.delivered.join(", "));
        let evidence = format!("delivered to {} of {all} channels: {taken}", n.notice.delivered.len());
        if n.reached() {
            self.succeed_step(Step::NotifyTeam, evidence);
        } else {
            self.fail_step(
                Step::NotifyTeam,
                Reason::NoticeUndelivered,
                "no channel has taken it yet, it is retried; the migration continues; next: see status.notices",
            );
        }
        self.start_next(Step::NotifyTeam);
        Flow::Continue
    }

    /// Attempt that names the step's run: Baseline and Backup share one, since they share a snapshot.
    pub(crate) fn run_attempt(&self, step: Step) -> u32 {
        self.attempt(if step == Step::Backup { Step::Baseline } else { step })
    }

    fn handle_failed_run(&mut self, step: Step, reason: Reason, message: &Message) {
        if reason.retry() == Retry::Never {
            self.fail_preparation(step, reason, message, "");
            return;
        }
        // A failed dump voids the baseline of its snapshot: both are taken again, together.
        let retried = if step == Step::Backup { Step::Baseline } else { step };
        if retried != step {
            self.fail_step(step, reason, message.to_string());
            self.ensure_step(retried).state = StepState::Running;
            self.status.step = Some(retried);
            self.status.baseline = None;
        }
        self.retry_later(retried, reason, &message.to_string());
        let failures = self.failures(retried);
        if step != Step::Preflight && failures >= self.spec.runner.max_attempts {
            self.fail_preparation(retried, reason, message, &format!("; tried {failures} of {failures} times"));
        } else if let Some(at) = self.step(retried).and_then(|step_status| step_status.retry_at) {
            self.wake_at(at);
        }
    }

    /// That a step is under way, and what went wrong in it the last time.
    fn report_attempt(&mut self, step: Step) {
        let failed = self.step(step).filter(|step_status| step_status.failures > 0);
        match failed.map(|step_status| {
            (
                step_status.failures + 1,
                step_status.reason.clone().unwrap_or_default(),
                step_status.message.clone().unwrap_or_default(),
            )
        }) {
            Some((number, reason, message)) if !reason.is_empty() => {
                self.set_ready(
                    StatusReason::read(&reason),
                    format!("attempt {number} of {step} is under way, the last one failed: {message}"),
                );
            }
            _ => self.set_ready(ReadyReason::Progressing, format!("{step} is under way")),
        }
    }

    /// Ends the preparation. `tries` says after how many attempts, and is empty where their number does not count.
    fn fail_preparation(&mut self, step: Step, reason: impl Into<StatusReason>, message: &Message, tries: &str) {
        let sql = &self.spec.migration;
        let [up, down] = [&sql.up, &sql.down].map(|source| source.config_map_key_ref.name.as_str());
        let maps = if up == down { format!("ConfigMap {up}") } else { format!("ConfigMap {up} or {down}") };
        // What went wrong may have named what to do already.
        let next = match &message.next {
            Some(_) => String::new(),
            None => format!("next: correct {maps}, or the spec; "),
        };
        self.enter(Phase::Failed);
        self.fail_step(
            step,
            reason,
            format!("{message}{tries}; nothing was changed; {next}it then starts again by itself"),
        );
        self.ensure_step(step).retry_at = None;
    }

    /// Takes a finished step's evidence into the status, if it suffices.
    fn record_evidence(&mut self, step: Step, run: &MigrationRun) -> Recorded {
        let status = run.status.clone().unwrap_or_default();
        let missing = |what: &str| {
            Recorded::Insufficient(Reason::Internal, Message::new(format!("the run reported success without {what}")))
        };
        match step {
            Step::Preflight => match self.runner_clock(&status).and_then(ClockOffset::beyond_limit) {
                Some(skew) => Recorded::Insufficient(
                    Reason::ClockSkew,
                    Message::new(format!(
                        "the runner's clock is {skew} the controller's (limit {} s)",
                        CLOCK_SKEW_LIMIT.as_secs()
                    ))
                    .next("synchronize the clocks of the cluster's nodes by NTP"),
                ),
                None => {
                    let n = status.findings.len();
                    let mut findings = status.findings.into_iter();
                    let users = findings.find(|finding| finding.name == Finding::TABLE_USERS);
                    self.status.table_users = users.map(|finding| finding.users);
                    Recorded::Taken(format!("{n} of {n} checks"))
                }
            },
            Step::CodeBackup => match (status.code_backup, &self.spec.code) {
                (Some(c), Some(wanted)) if c.commit == wanted.commit => {
                    let note = format!("tag {} and branch {} lead to commit {}", c.tag, c.branch, c.commit);
                    self.status.code_backup = Some(c);
                    Recorded::Taken(note)
                }
                _ => missing("tag and branch on the commit of spec.code"),
            },
            Step::Baseline | Step::Backup => match (status.baseline, status.backup) {
                (Some(_), Some(b)) => {
                    let note = b.summary();
                    self.status.backup = Some(b);
                    Recorded::Taken(note)
                }
                _ => missing("baseline and backup"),
            },
            Step::VerifyBackup => match (status.verification, &self.status.backup) {
                (Some(v), Some(b)) if v.sha256 == b.sha256 && v.bytes == b.bytes => {
                    let note = format!("read to the end: {} bytes, {} entries, {}", v.bytes, v.entries, v.sha256);
                    self.status.verification = Some(v);
                    Recorded::Taken(note)
                }
                (Some(v), Some(b)) => Recorded::Insufficient(
                    Reason::BackupAltered,
                    Message::new(format!(
                        "{} has {} ({} bytes), uploaded was {} ({} bytes)",
                        b.object, v.sha256, v.bytes, b.sha256, b.bytes
                    )),
                ),
                _ => missing("verification"),
            },
            Step::ExportKeyUsers => match status.key_users {
                Some(k) => {
                    let note = format!("{} users, {}, {} bytes, {}", k.users, k.object, k.bytes, k.sha256);
                    self.status.key_users = Some(k);
                    Recorded::Taken(note)
                }
                None => missing("an export"),
            },
            Step::Rehearse => match status.rehearsal {
                Some(r) => {
                    let note = r.summary();
                    self.status.rehearsal = Some(r);
                    Recorded::Taken(note)
                }
                None => missing("rehearsal"),
            },
            _ => missing("evidence"),
        }
    }

    /// The runner's clock against this one: its run started after the step was, and had ended before this decision. How
    /// long the pod took to start is not known, so a clock that is behind by less than that is not found.
    fn runner_clock(&self, status: &MigrationRunStatus) -> Option<ClockOffset> {
        let ordered = self.started_at(Step::Preflight)?;
        Some(ClockOffset {
            at_least: status.finished_at?.duration_since(self.now),
            at_most: status.started_at?.duration_since(ordered),
        })
    }

    fn enter_approval(&mut self) -> Flow {
        // What the SQL alone takes, no change of a workload can shorten.
        let expected = self.status.rehearsal.as_ref().map_or(f64::MAX, |r| r.migrate_seconds + r.compare_seconds);
        let limit = std::time::Duration::from(self.spec.window.max_duration).as_secs_f64();
        if expected > limit {
            self.fail_preparation(
                Step::Rehearse,
                ReadyReason::WindowTooShort,
                &Message::new(format!(
                    "the rehearsal predicts a window of {expected:.1} s, spec.window.maxDuration is {limit:.1} s"
                ))
                .next("raise it or make the SQL quicker"),
                "",
            );
            return Flow::Settled;
        }
        self.record_expected_window();
        self.record_pod_templates();
        let digest = self.plan_digest();
        if let Some(plan) = &mut self.status.plan {
            plan.digest = digest;
        }
        self.enter(Phase::AwaitingApproval);
        self.start_step(Step::Approve);
        Flow::Continue
    }
}
