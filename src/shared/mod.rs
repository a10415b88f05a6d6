//! Pure helpers without a domain type: time arithmetic, printed command lines, SQL text, readings of Deployments, tallies of checks.
//!
//! Called by every other module; imports nothing of this crate.

pub mod command;
pub mod deployment;
pub mod message;
pub mod sql;
pub mod tally;
pub mod time;
