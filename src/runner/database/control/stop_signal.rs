//! A request to stop SQL that is being run.
//!
//! Called by `apply`, `outside`, the window and the rehearsal. Imports `api` and the runner's failure.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::{api::Reason, runner::Failure};

/// Lets a caller stop a run between two statements, in addition to cancelling the statement in flight.
#[derive(Debug, Default)]
pub struct StopSignal(AtomicBool);

impl StopSignal {
    /// From now on no further statement is started, and nothing is committed.
    pub fn request(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Whether [`StopSignal::request`] was called.
    pub fn requested(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// An error once [`StopSignal::request`] was called.
    pub(super) fn check(&self) -> Result<(), Failure> {
        match self.requested() {
            true => Err(Failure::new(
                Reason::DeadlinePassed,
                "the SQL was stopped before it was done; nothing of it remains",
            )),
            false => Ok(()),
        }
    }
}
