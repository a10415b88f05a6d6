//! What runs in Jobs: it holds the secrets, does the work, and reports to its own `MigrationRun`.

pub mod archive;
mod failure;
pub mod fingerprint;
pub mod judge;
pub mod postgres;
pub mod settings;
pub mod sqltext;
pub mod store;

pub use failure::Failure;
