//! The workloads: are they there, do their pods read the flag, and can a restart replace these pods.

use super::{Violation, refusal_command};
use crate::{
    api::{Direction, ReadyReason, WorkloadRef},
    machine::{DryRun, Observed, Transition, Workload},
    shared::message::Message,
};

/// What is asked of one workload.
type Question = fn(&Transition<'_>, &Workload) -> Option<Violation>;

/// Foreign pods that a message names.
const NAMED_PODS: usize = 3;

/// Each workload exists, and reads the flag's key into its environment.
pub(super) fn check(transition: &Transition<'_>) -> Option<Violation> {
    ask_each(transition, |workload| first(transition, workload, &[reads_flag]))
}

/// A restart can replace all pods of each workload, and would do so now.
pub(super) fn check_obstacles(transition: &Transition<'_>) -> Option<Violation> {
    ask_each(transition, |workload| {
        first(transition, workload, &[not_paused, accepts_restart, no_foreign_pods, settled])
    })
}

/// Both, for a rollback. A workload that is not settled refuses none: it may be the reason for it.
pub(super) fn check_for_rollback(transition: &Transition<'_>) -> Option<Violation> {
    ask_each(transition, |workload| {
        first(transition, workload, &[reads_flag, not_paused, accepts_restart, no_foreign_pods])
    })
}

/// The same inside a switch, for the workloads whose pods it has yet to replace.
pub(super) fn check_in_switch(transition: &Transition<'_>, direction: Direction) -> Option<Violation> {
    ask_each(transition, |workload| match transition.awaits_restart(direction, workload) {
        true => first(transition, workload, &[reads_flag, not_paused, accepts_restart, no_foreign_pods]),
        false => None,
    })
}

fn first(transition: &Transition<'_>, workload: &Workload, questions: &[Question]) -> Option<Violation> {
    questions.iter().find_map(|ask| ask(transition, workload))
}

fn ask_each(transition: &Transition<'_>, ask: impl Fn(&Workload) -> Option<Violation>) -> Option<Violation> {
    transition.spec.application.workloads.iter().find_map(|wanted| {
        let found = transition.observed.workloads.iter().find(|w| w.reference == *wanted && w.exists);
        match found {
            None => Some(missing(transition.observed, wanted)),
            Some(workload) => ask(workload),
        }
    })
}

fn missing(observed: &Observed, wanted: &WorkloadRef) -> Violation {
    let (kind, name) = (wanted.kind.as_str(), &wanted.name);
    Violation {
        reason: ReadyReason::WorkloadMissing,
        message: Message::new(format!("{kind} {name} is missing (spec.application.workloads)"))
            .next(observed.kubectl("get deployments")),
    }
}

fn reads_flag(transition: &Transition<'_>, workload: &Workload) -> Option<Violation> {
    let r = &transition.spec.application.flag.config_map_key_ref;
    (!workload.reads_flag).then(|| Violation {
        reason: ReadyReason::WorkloadDoesNotReadFlag,
        message: Message::new(format!(
            "no container of {} reads key {} of ConfigMap {} into its environment",
            title(workload),
            r.key,
            r.name
        ))
        .next("add env.valueFrom.configMapKeyRef or envFrom.configMapRef"),
    })
}

fn not_paused(transition: &Transition<'_>, workload: &Workload) -> Option<Violation> {
    workload.paused.then(|| Violation {
        reason: ReadyReason::WorkloadPaused,
        message: Message::new(format!(
            "spec.paused of {} is true, expected false: a restart replaces no pod",
            title(workload)
        ))
        .next(transition.observed.kubectl(&format!("rollout resume deployment/{}", workload.reference.name))),
    })
}

/// The API server accepts the restart of each workload, by what it answers to a dry run.
pub(in crate::machine) fn refused_restart(transition: &Transition<'_>) -> Option<Violation> {
    transition.observed.workloads.iter().find_map(|workload| accepts_restart(transition, workload))
}

fn accepts_restart(transition: &Transition<'_>, workload: &Workload) -> Option<Violation> {
    let DryRun::Refused(answer) = &workload.write else { return None };
    Some(Violation {
        reason: ReadyReason::WorkloadWriteRefused,
        message: Message::new(format!(
            "{} cannot be restarted, the API server refuses the write: {answer}",
            title(workload)
        ))
        .next(refusal_command(transition)),
    })
}

fn settled(transition: &Transition<'_>, workload: &Workload) -> Option<Violation> {
    let why = workload.unsettled.as_ref()?;
    Some(Violation {
        reason: ReadyReason::WorkloadNotSettled,
        message: Message::new(format!("{} is not settled: {why}", title(workload)))
            .next(transition.observed.kubectl(&format!("rollout status deployment/{}", workload.reference.name))),
    })
}

fn no_foreign_pods(transition: &Transition<'_>, workload: &Workload) -> Option<Violation> {
    let all = workload.foreign_pods.len();
    let named = workload.foreign_pods.get(..all.min(NAMED_PODS)).filter(|named| !named.is_empty())?;
    let more = if all > named.len() { format!(" and {} more", all - named.len()) } else { String::new() };
    Some(Violation {
        reason: ReadyReason::ForeignPods,
        message: Message::new(format!(
            "{all} pods (limit 0) match the selector of {} and are of no ReplicaSet of its own: {}{more}; no restart \
             replaces them; delete them, or give them other labels",
            title(workload),
            named.join(", ")
        ))
        .next(transition.observed.kubectl(&format!("get pods --show-labels {}", named.join(" ")))),
    })
}

/// `Deployment shop`.
fn title(workload: &Workload) -> String {
    format!("{} {}", workload.reference.kind.as_str(), workload.reference.name)
}
