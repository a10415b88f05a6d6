//! What runs in Jobs: it holds the secrets, does the work, and reports to its own `MigrationRun`.

pub mod archive;
pub mod backup;
pub mod checks;
pub mod control;
mod failure;
pub mod fingerprint;
pub mod judge;
pub mod postgres;
pub mod probe;
pub mod rehearsal;
pub mod report;
pub mod scratch;
pub mod settings;
pub mod sqltext;
pub mod store;
pub mod verify;
pub mod work;

pub use failure::Failure;
