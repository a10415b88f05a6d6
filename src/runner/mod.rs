//! What runs in Jobs: it holds the secrets, does the work, and reports to its own `MigrationRun`.

pub mod archive;
pub mod checks;
mod failure;
pub mod fingerprint;
pub mod judge;
pub mod postgres;
pub mod probe;
pub mod report;
pub mod settings;
pub mod sqltext;
pub mod store;

pub use failure::Failure;
