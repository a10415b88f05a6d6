//! The database: what would keep writes from being blocked, as the window's pod finds it on standby.

use super::Violation;
use crate::{
    api::{WindowProgress, WindowState},
    machine::{
        Transition,
        faults::{Fault, fault},
    },
    shared::message::Message,
};

/// Obstacles that a message names.
const NAMED_OBSTACLES: usize = 3;

impl Transition<'_> {
    /// What the window's pod has found in the database: with it writes would be blocked for nothing, until the attempt
    /// to block them fails.
    pub(crate) fn standby_violation(&self, progress: &WindowProgress) -> Option<Violation> {
        let on_standby = progress.state <= WindowState::Ready && !fault(Fault::BlocksWithoutExit);
        let (first, more) = progress.obstacles.split_first().filter(|_| on_standby)?;
        let Message { mut text, next } = first.message();
        for obstacle in more.iter().take(NAMED_OBSTACLES - 1) {
            text = format!("{text}, {}", obstacle.message().text);
        }
        let unnamed = progress.obstacles.len().saturating_sub(NAMED_OBSTACLES);
        if unnamed > 0 {
            text = format!("{text} and {unnamed} more");
        }
        Some(Violation { reason: first.kind.ready_reason(), message: Message { text, next } })
    }
}
