//! The window: the time in which writes are blocked.
//!
//! Called by the phases from Executing on, by `effects`, which starts and orders its runs, and by `conditions`, which
//! reports it. Imports `shared`, `api` and `machine`.

pub(super) mod cutover;
pub(super) mod given_up;
mod kept_pods;
mod orders;
mod rollout_failure;
pub(super) mod stage;
pub(super) mod switch_trial;
