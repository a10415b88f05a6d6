//! One table for each phase, in the file of the phase's name.

mod approval;
mod checking;
mod ended;
mod executing;
mod observing;
mod preparing;
mod rollback;
mod scheduling;
