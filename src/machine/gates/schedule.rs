//! The schedule: can its hours be computed.

use super::Violation;
use crate::{
    api::ReadyReason,
    machine::{Transition, next_hours},
    shared::message::Message,
};

/// Allowed hours have a next start.
pub(super) fn check(transition: &Transition<'_>) -> Option<Violation> {
    let schedule = &transition.spec.schedule;
    if next_hours(schedule, transition.now).is_some() {
        return None;
    }
    let zones: Vec<&str> = schedule.allowed_hours.iter().map(|h| h.time_zone.as_str()).collect();
    Some(Violation {
        reason: ReadyReason::ScheduleInvalid,
        message: Message::new(format!(
            "spec.schedule.allowedHours cannot be computed with time zones {}",
            zones.join(", ")
        ))
        .next("write IANA names, for example Europe/Berlin"),
    })
}
