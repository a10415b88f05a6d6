//! Pure helpers without a type of the domain: time, messages and printed commands, quoted and SQL text,
//! Deployments, quantities, admission policies, tallies.
//!
//! Called by every other module; imports nothing of this crate.

pub mod admission;
pub mod command;
pub mod deployment;
pub mod message;
pub mod quantity;
pub mod quoted;
pub mod sql;
pub mod tally;
pub mod time;
