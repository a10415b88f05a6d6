//! How a dump is kept in the store: `spec.backup.format`, and what the evidence says of a backup.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::named::named;

/// How the dump is kept in the store.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum BackupFormat {
    /// One archive.
    #[default]
    Custom,
    /// A manifest and several archives.
    Directory,
}

named! {
    BackupFormat: Custom, Directory
}

impl BackupFormat {
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}
