//! The window: the time in which writes are blocked.
//!
//! Called by the phases Executing and RollingBack. May import `shared`, `api` and `machine`.

pub(super) mod cutover;
mod orders;
pub(super) mod stage;
