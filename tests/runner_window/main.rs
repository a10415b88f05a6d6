//! The window against a real PostgreSQL: what the gate stops, what a migration may do, and how every window ends.

#![allow(clippy::unwrap_used)]

mod capture;
mod gate;
mod hang;
mod harness;
mod migration;
mod take_over;
mod told_to_end;
mod window;
