//! AwaitingApproval: who has approved the plan, who has rejected it, and whether the window may start.

use super::Flow;
use crate::{
    api::{DecisionKind, Occasion, Phase, ReadyReason, RehearsalEvidence, SQL_LABEL, Step, TableUsers, Time},
    machine::{
        self, ObservedDecision, Transition,
        faults::{Fault, fault},
    },
    shared::message::Message,
};

impl Transition<'_> {
    pub(crate) fn advance_approval(&mut self) -> Flow {
        if let Some(request) = self.cancel_request() {
            return self.cancel(&request);
        }
        if self.inputs_changed() {
            self.restart("spec or SQL changed");
            return Flow::Continue;
        }
        self.void_other_application();
        // Recomputed, not trusted: evidence and digest must belong together at the moment of counting.
        let Some(digest) =
            self.plan_digest().filter(|d| self.status.plan.as_ref().is_some_and(|p| p.digest.as_ref() == Some(d)))
        else {
            self.restart("the evidence does not fit the plan's digest");
            return Flow::Settled;
        };
        let needed = self.spec.approval.required.max(2) as usize;
        let (approvers, reject) = self.approvals(&digest);
        self.status.approvals = Some(format!("{}/{needed}", approvers.len()));
        self.status.approved_by = approvers.clone();
        self.record_presence(&digest);
        self.record_expected_window();
        self.report_missed_start();
        let violation = self.cluster_violation();
        if let Some(violation) = &violation {
            self.report_lasting(violation.reason, violation.message.to_string());
        }
        if let Some(r) = reject {
            let why = fmt_reason(&r.reason);
            let message = match r.digest {
                Some(_) => {
                    Message::new(format!("{} rejected {digest}{why}", r.by)).next("change the plan, or abort it")
                }
                // It applies to whatever plan follows, so no change of this one helps.
                None => Message::new(format!("{} rejected every plan of this migration{why}", r.by)).next(format!(
                    "{}; then create a CreditMigration with another name",
                    self.observed.plugin("abort", "")
                )),
            };
            self.cancel_maintenance(&message.text);
            self.set_ready(ReadyReason::Rejected, message.to_string());
            return Flow::Settled;
        }
        if approvers.len() < needed {
            if self.status.step != Some(Step::Approve) {
                self.start_step(Step::Approve);
            }
            let (void, changed) = (self.void_approvals(&digest), self.changed_application());
            let unknown = self.unknown_authors();
            let text = format!("{} of {needed} people approved {digest}{void}{changed}{unknown}", approvers.len());
            self.cancel_maintenance(&text);
            self.request_approval(&text);
            if violation.is_none() {
                let next = self.observed.plugin("approve", "");
                self.set_ready(ReadyReason::ApprovalPending, format!("{text}; next: {next}"));
            }
            return Flow::Settled;
        }
        // With a gate closed approvals are in doubt: those that are not recorded yet wait.
        if self.plan_violation().is_some() && self.status.step != Some(Step::Schedule) {
            return Flow::Settled;
        }
        self.record_approval(&approvers, &digest);
        self.advance_scheduling(&digest, violation.as_ref())
    }

    /// Notifies the approvers of what waits for them: once for each plan, and again while approvals are missing.
    fn request_approval(&mut self, approved: &str) {
        let Some(since) = self.started_at(Step::Approve) else { return };
        let who = match self.status.approved_by.as_slice() {
            [] => String::new(),
            some => format!(" ({})", some.join(", ")),
        };
        let expected = self.status.plan.as_ref().and_then(|plan| plan.expected_window.as_ref());
        let window = expected.map_or_else(String::new, |expected| {
            format!("; expected window {} s (limit {})", expected.seconds, self.spec.window.max_duration)
        });
        let gaps: Vec<String> = self.spec.not_covered().into_iter().map(|gap| gap.what).collect();
        let covered = match gaps.is_empty() {
            true => "every line of the checklist is covered".to_owned(),
            false => format!("not covered by the spec: {}", gaps.join(", ")),
        };
        let found = self.status.rehearsal.as_ref().map_or_else(String::new, RehearsalEvidence::appended);
        let users = self.status.table_users.as_ref().map_or_else(String::new, TableUsers::appended);
        let text = format!(
            "{approved}{who}{window}; {covered}{found}{users}; to read the plan: {}; next: {}",
            self.observed.plugin("plan", ""),
            self.observed.plugin("approve", "")
        );
        self.remind(Occasion::ApprovalDue, &format!("approval.{}", self.attempt(Step::Approve)), since, &text);
    }

    /// Digest of the present plan; `None` until its evidence is complete.
    pub(crate) fn plan_digest(&self) -> Option<String> {
        machine::plan_digest(&self.observed.uid, self.spec, &self.status)
    }

    /// The request to stop before the window, if there is one.
    pub(crate) fn cancel_request(&self) -> Option<ObservedDecision> {
        self.stop_request(&[DecisionKind::Abort, DecisionKind::Rollback])
    }

    /// Ends the migration before its window: nothing was changed.
    pub(crate) fn cancel(&mut self, request: &ObservedDecision) -> Flow {
        let step = self.status.step;
        let message = format!("cancelled by {}{}; nothing was changed", request.by, fmt_reason(&request.reason));
        self.cancel_maintenance(&message);
        self.enter(Phase::Cancelled);
        if let Some(step) = step {
            self.fail_step(step, ReadyReason::Aborted, message);
        }
        Flow::Settled
    }

    /// Decisions of a kind that are younger than `after` (all when `None`).
    pub(crate) fn decisions(&self, kind: DecisionKind, after: Option<Time>) -> impl Iterator<Item = &ObservedDecision> {
        self.observed.decisions.iter().filter(move |d| d.decision == kind && after.is_none_or(|t| d.at > t))
    }

    /// The first decision of these kinds. It counts without the admission policy too: a forged stop is the lesser harm.
    pub(crate) fn stop_request(&self, kinds: &[DecisionKind]) -> Option<ObservedDecision> {
        kinds.iter().find_map(|k| self.decisions(*k, None).next()).cloned()
    }

    /// A decision of this kind is asked for from now on: those that are there do not answer it.
    pub(crate) fn ask_for(&mut self, kind: DecisionKind) {
        for d in self.observed.decisions.iter().filter(|d| d.decision == kind) {
            let earlier = d.reference();
            if !self.status.earlier_decisions.contains(&earlier) {
                self.status.earlier_decisions.push(earlier);
            }
        }
    }

    /// Decisions of a kind that were not there when one was last asked for.
    pub(crate) fn answers(&self, kind: DecisionKind) -> impl Iterator<Item = &ObservedDecision> {
        self.decisions(kind, None).filter(|d| !self.status.earlier_decisions.contains(&d.reference()))
    }

    /// The user wrote the spec or the SQL, and so approves neither.
    fn is_author(&self, user: &str) -> bool {
        let mut sql = self.observed.sql_authors.iter().filter_map(|sql| sql.author.as_deref());
        user == self.spec.requested_by || sql.any(|author| author == user)
    }

    /// For those who approve: the SQL whose author is not known, and so may be one of them.
    fn unknown_authors(&self) -> String {
        let unknown = self.observed.sql_authors.iter().filter(|sql| sql.author.is_none());
        let names: Vec<&str> = unknown.map(|sql| sql.config_map.as_str()).collect();
        if names.is_empty() {
            return String::new();
        }
        format!("; who wrote ConfigMap {} is not known: label it {SQL_LABEL}", names.join(", "))
    }

    /// Distinct approvers of this digest after that time, without the authors of spec and SQL.
    fn approvers(&self, digest: &str, after: Option<Time>) -> Vec<String> {
        let mut approvers: Vec<String> = self
            .decisions(DecisionKind::Approve, after)
            .filter(|d| d.digest.as_deref() == Some(digest) && !self.is_author(&d.by))
            .map(|d| d.by.clone())
            .collect();
        approvers.sort();
        approvers.dedup_by(|a, b| a == b && !fault(Fault::OnePersonTwice));
        approvers
    }

    /// Who must approve again, and why; empty if no one must. Times of decisions are truncated to whole seconds: one of
    /// the second in which the last window ended may be from before its end, and does not count.
    fn void_approvals(&self, digest: &str) -> String {
        let Some(after) = self.status.approvals_after else { return String::new() };
        let counted = self.approvers(digest, Some(after));
        let mut void = self.approvers(digest, None);
        void.retain(|by| !counted.contains(by));
        if void.is_empty() {
            return String::new();
        }
        format!(
            "; approvals given until {after:.0}, when the last window ended, no longer count ({}): approve again",
            void.join(", ")
        )
    }

    /// Distinct approvers of this digest, without the authors; and a rejection of it.
    pub(crate) fn approvals(&self, digest: &str) -> (Vec<String>, Option<ObservedDecision>) {
        let approvers = self.approvers(digest, self.status.approvals_after);
        // A "no" to this plan stays one, however many windows were tried since.
        let reject = self
            .decisions(DecisionKind::Reject, None)
            .find(|d| d.digest.as_deref().is_none_or(|of| of == digest))
            .cloned();
        (approvers, reject)
    }

    /// The step Approve is done: who, and on what.
    fn record_approval(&mut self, approvers: &[String], digest: &str) {
        if self.status.step == Some(Step::Schedule) {
            return;
        }
        self.succeed_step(Step::Approve, format!("{} approved {digest}", approvers.join(", ")));
        // A start that was planned for an earlier attempt is planned again.
        self.cancel_maintenance("the start is planned again");
        self.status.schedule = None;
        self.start_step(Step::Schedule);
    }
}

/// `: <reason>` or nothing.
pub(crate) fn fmt_reason(reason: &Option<String>) -> String {
    reason.as_ref().map(|r| format!(" ({r})")).unwrap_or_default()
}
