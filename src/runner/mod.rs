//! What runs in Jobs: it holds the secrets, does the work, and reports to its own `MigrationRun`.

pub mod cleanup;
pub mod control;
mod failure;
pub mod postgres;
pub mod window;

pub use failure::Failure;
