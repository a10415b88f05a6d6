//! The application that is approved: the pod templates of its workloads are part of the plan's digest.
//!
//! The rehearsal tries the SQL alone, so a change of a template voids the approvals, and no other evidence.

use crate::{
    api::{PodTemplateDigest, ReadyReason, Step},
    machine::Transition,
};

impl Transition<'_> {
    /// The pod templates as they are. A workload that is missing keeps what was recorded: a gate reports it.
    fn pod_templates(&self) -> Vec<PodTemplateDigest> {
        let recorded = self.status.plan.as_ref().map(|p| p.pod_templates.as_slice()).unwrap_or_default();
        let workloads = self.spec.application.workloads.iter();
        let digests = workloads.filter_map(|wanted| {
            let observed = self.observed.workloads.iter().find(|w| w.reference == *wanted);
            let sha256 = observed.and_then(|w| w.template_sha256.clone());
            let known = || recorded.iter().find(|t| t.workload == wanted.name).cloned();
            sha256.map(|sha256| PodTemplateDigest { workload: wanted.name.clone(), sha256 }).or_else(known)
        });
        digests.collect()
    }

    /// Before approvals are asked for: the plan has the application as it is.
    pub(crate) fn record_pod_templates(&mut self) {
        let templates = self.pod_templates();
        if let Some(plan) = &mut self.status.plan {
            plan.pod_templates = templates;
        }
    }

    /// The application is not the one of the plan.
    pub(crate) fn application_changed(&self) -> bool {
        self.status.plan.as_ref().is_some_and(|plan| plan.pod_templates != self.pod_templates())
    }

    /// The application has changed since approvals were asked for: the plan has another digest from here on, which no
    /// one has approved.
    pub(crate) fn void_other_application(&mut self) {
        let (before, templates) = (self.plan_digest(), self.pod_templates());
        let Some(plan) = &mut self.status.plan else { return };
        let differs = |t: &&PodTemplateDigest| !plan.pod_templates.contains(t);
        let changed: Vec<String> = templates.iter().filter(differs).map(|t| t.workload.clone()).collect();
        if plan.pod_templates == templates {
            return;
        }
        plan.pod_templates = templates;
        let was = plan.digest.clone();
        // Evidence that did not fit before does not fit now.
        if was.is_none() || was != before {
            return;
        }
        for name in &changed {
            if !plan.changed_workloads.contains(name) {
                plan.changed_workloads.push(name.clone());
            }
        }
        let digest = self.plan_digest();
        if let Some(plan) = &mut self.status.plan {
            plan.digest = digest;
        }
        let text = format!(
            "the pod template of {} has changed: approvals of {} no longer count; next: {}",
            changed.join(", "),
            was.unwrap_or_default(),
            self.observed.plugin("approve", "")
        );
        self.event(true, ReadyReason::ApplicationChanged, text);
        // Also if it is the step already: those who approved are asked again at once.
        self.start_step(Step::Approve);
    }

    /// For those who are asked again: what has changed.
    pub(crate) fn changed_application(&self) -> String {
        match self.status.plan.as_ref().map(|plan| plan.changed_workloads.as_slice()) {
            Some(changed @ [_, ..]) => format!(
                "; the pod template of {} has changed since approvals were first asked for, and those of the earlier \
                 plan no longer count",
                changed.join(", ")
            ),
            _ => String::new(),
        }
    }
}
