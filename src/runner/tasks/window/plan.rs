//! What a window task is asked to do, and how it ended.

use std::time::Duration;

use crate::{
    api::{Direction, RunInputs, WindowOrder, WindowProgress},
    runner::{
        Failure,
        database::control::{ControlSpec, Sql},
    },
};

/// What a window task is to do.
#[derive(Clone, Debug)]
pub struct WindowPlan {
    /// Names and limits.
    pub control_spec: ControlSpec,
    /// Forward (`Task::Window`) or back (`Task::RollbackWindow`).
    pub direction: Direction,
    /// Attempt of the run.
    pub attempt: u32,
    /// The up SQL as mounted, or why it cannot be used. The rollback does not need it, nor does a window in which it
    /// is committed.
    pub up: Result<Sql, Failure>,
    /// The down SQL as mounted, or why it cannot be used. Once the up SQL is committed the database stores it, too.
    pub down: Result<Sql, Failure>,
    /// What the controller observed.
    pub inputs: RunInputs,
    /// The order that is known already: of the run as it was read, or as an earlier container of this pod stored it.
    pub order: WindowOrder,
    /// How often the API server is asked for an order, usually 250 ms.
    pub poll: Duration,
}

/// How a window task ended.
#[derive(Clone, Debug, PartialEq)]
pub struct WindowOutcome {
    /// The last progress: `Unblocked` or `RolledBack`; `stuck` if writes stay blocked; an earlier state if they never
    /// were.
    pub progress: WindowProgress,
    /// Why it is no success. `DeadlinePassed` if the task ended the window by itself, `PodFailed` if another pod must
    /// resume.
    pub failure: Option<Failure>,
}
