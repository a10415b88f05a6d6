//! What the runner does in the target database. Called by the tasks and the checks.

pub mod control;
