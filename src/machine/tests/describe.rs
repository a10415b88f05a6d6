//! What was decided, as texts that tables compare.

use super::*;

/// Effects without events.
pub(super) fn actions(d: &Decision) -> Vec<String> {
    d.effects.iter().filter(|e| !matches!(e, Effect::Event(_))).map(describe_effect).collect()
}

pub(super) fn describe_effect(effect: &Effect) -> String {
    match effect {
        Effect::AddFinalizer => "finalizer".into(),
        Effect::RemoveFinalizer => "remove finalizer".into(),
        Effect::StartRun(start) => format!("start {}", start.name),
        Effect::StartCheckJob(start) => format!("check {}", start.name),
        Effect::RemoveRun { name } => format!("remove {name}"),
        Effect::OrderWindow { name, order } => format!("order {name} {:?}", order.command),
        Effect::SetFlag { value, marker } => format!("flag {value} {marker}"),
        Effect::Restart { workload, marker } => format!("restart {} {marker}", workload.name),
        Effect::KeepPods { workload, template, marker } => {
            format!("keep {} {} {marker}", workload.name, template.as_deref().unwrap_or("-"))
        }
        Effect::Event(event) => format!("event {}", event.reason),
    }
}

/// Reasons of the events.
pub(super) fn events(d: &Decision) -> Vec<&str> {
    fn reason(effect: &Effect) -> Option<&str> {
        if let Effect::Event(event) = effect { Some(&event.reason) } else { None }
    }
    d.effects.iter().filter_map(reason).collect()
}

/// Reason and message of the condition `Ready`.
pub(super) fn ready(status: &CreditMigrationStatus) -> (String, String) {
    let c = status.conditions.iter().find(|c| c.type_ == "Ready").unwrap();
    (c.reason.clone(), c.message.clone())
}
