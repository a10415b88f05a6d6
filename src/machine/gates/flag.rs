//! The flag: can it be switched, is it at `from`, and does the release confirm that it can be rolled back.

use super::{Violation, refusal_command};
use crate::{
    api::{Direction, ReadyReason},
    machine::{DryRun, ObservedFlag, Transition},
    shared::{message::Message, quoted::Quoted},
};

/// The flag's key is there, at `from`, in a ConfigMap that is mutable.
pub(super) fn check(transition: &Transition<'_>) -> Option<Violation> {
    cannot_be_written(transition, Direction::Forward).or_else(|| at_from(transition))
}

/// The API server accepts the write. A webhook that refuses it may be restarting.
pub(super) fn check_obstacles(transition: &Transition<'_>) -> Option<Violation> {
    refused(transition)
}

/// The flag can be changed back. Its value is no question: a rollback may follow from it.
pub(super) fn check_for_rollback(transition: &Transition<'_>) -> Option<Violation> {
    cannot_be_changed(transition, Direction::Rollback)
}

/// The same inside a switch.
pub(super) fn check_in_switch(transition: &Transition<'_>, direction: Direction) -> Option<Violation> {
    if transition.is_flag_set(direction) { None } else { cannot_be_changed(transition, direction) }
}

/// The flag's key is there, and its ConfigMap is mutable and accepts the write.
pub(in crate::machine) fn cannot_be_changed(transition: &Transition<'_>, direction: Direction) -> Option<Violation> {
    cannot_be_written(transition, direction).or_else(|| refused(transition))
}

fn cannot_be_written(transition: &Transition<'_>, direction: Direction) -> Option<Violation> {
    let flag = &transition.spec.application.flag;
    let r = &flag.config_map_key_ref;
    // The value of the version that runs.
    let present = match direction {
        Direction::Forward => &flag.from,
        Direction::Rollback => &flag.to,
    };
    let (reason, message) = match &transition.observed.flag {
        ObservedFlag::ConfigMapMissing => (
            ReadyReason::FlagConfigMapMissing,
            Message::new(format!("ConfigMap {} is missing (spec.application.flag)", r.name)).next(
                transition
                    .observed
                    .kubectl(&format!("create configmap {} --from-literal={}={}", r.name, r.key, present)),
            ),
        ),
        ObservedFlag::KeyMissing => (
            ReadyReason::FlagKeyMissing,
            Message::new(format!("ConfigMap {} has no key {}", r.name, r.key))
                .next(transition.observed.set_key_command(&r.name, &r.key, present)),
        ),
        ObservedFlag::Value { immutable: true, .. } => (
            ReadyReason::FlagConfigMapImmutable,
            Message::new(format!("ConfigMap {} is immutable, the flag cannot be switched", r.name))
                .next("delete it and create it again without immutable: true"),
        ),
        ObservedFlag::Value { .. } => return None,
    };
    Some(Violation { reason, message })
}

/// The API server refuses the flag's next write, by what it answers to a dry run.
fn refused(transition: &Transition<'_>) -> Option<Violation> {
    let DryRun::Refused(answer) = &transition.observed.flag_write else { return None };
    let name = &transition.spec.application.flag.config_map_key_ref.name;
    Some(Violation {
        reason: ReadyReason::FlagWriteRefused,
        message: Message::new(format!(
            "ConfigMap {name} cannot be changed, the API server refuses the write that switches the flag: {answer}"
        ))
        .next(refusal_command(transition)),
    })
}

fn at_from(transition: &Transition<'_>) -> Option<Violation> {
    let flag = &transition.spec.application.flag;
    let r = &flag.config_map_key_ref;
    let value = transition.observed.flag_value().filter(|value| *value != flag.from)?;
    Some(Violation {
        reason: ReadyReason::FlagNotAtFrom,
        message: Message::new(format!(
            "key {} of ConfigMap {} is {}, expected {} (spec.application.flag.from)",
            r.key,
            r.name,
            Quoted(value),
            Quoted(&flag.from)
        ))
        .next(
            "see which version runs. If it is the new one this migration is done already; \
             otherwise correct the spec, or the key",
        ),
    })
}

/// The checklist's `ENABLE_ROLLBACK=true`: the release confirms that it can be rolled back.
pub(super) fn check_rollback_enabled(transition: &Transition<'_>) -> Option<Violation> {
    let flag = &transition.spec.application.flag;
    let (map, key) = (&flag.config_map_key_ref.name, &flag.rollback_key);
    let found = match transition.observed.rollback_enabled.as_deref() {
        Some("true") => return None,
        Some(value) => format!("is {}", Quoted(value)),
        None => "is missing".to_owned(),
    };
    Some(Violation {
        reason: ReadyReason::RollbackNotEnabled,
        message: Message::new(format!(
            "key {key} of ConfigMap {map} {found}, expected \"true\" (spec.application.flag.rollbackKey)"
        ))
        .next(transition.observed.set_key_command(map, key, "true")),
    })
}
