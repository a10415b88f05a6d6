//! The controller's clock: with it the deadline of a window is made, which the runner keeps by its own.

use super::Violation;
use crate::{
    api::{CLOCK_SKEW_LIMIT, ClockOffset, ReadyReason},
    machine::Transition,
    shared::message::Message,
};

/// The controller's clock agrees with the API server's.
pub(super) fn check(transition: &Transition<'_>) -> Option<Violation> {
    let skew = transition.observed.server_clock.and_then(ClockOffset::beyond_limit)?;
    Some(Violation {
        reason: ReadyReason::ControllerClockSkew,
        message: Message::new(format!(
            "the API server's clock is {skew} the controller's (limit {} s)",
            CLOCK_SKEW_LIMIT.as_secs()
        ))
        .next("synchronize the clocks of the operator's node and of the control plane by NTP"),
    })
}
