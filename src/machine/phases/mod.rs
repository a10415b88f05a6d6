//! The phases of a migration, one file each: how far the observations let the status go in that phase.
//!
//! Called by [`super::decide`] alone. May import `shared`, `api` and `machine`.

mod approval;
mod checking;
mod ended;
mod executing;
mod observing;
pub(super) mod preparing;
mod rollback;
mod scheduling;
