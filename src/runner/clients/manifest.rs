//! The manifest of a dump in several archives: what belongs to it, and the digest of each.
//!
//! # Contract
//! - It is written when all archives are, and the digest of the manifest is the digest of the dump. What lies in the
//!   folder and is not in the manifest belongs to no dump.

use futures::StreamExt;
use serde::{Deserialize, Serialize};

use super::object_store::StoreClient;
use crate::{
    api::{Reason, sha256},
    runner::Failure,
};

/// Name of the manifest in the folder of its dump.
pub const MANIFEST: &str = "manifest.json";
/// Bytes of the largest manifest that is read: 100 names of tables are less.
const MAX_BYTES: usize = 1 << 20;

/// A dump in several archives, all of one snapshot.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Name of the `CreditMigration`.
    pub migration: String,
    /// Its UID.
    #[serde(rename = "migrationUID")]
    pub migration_uid: String,
    /// Name of the database.
    pub database: String,
    /// The archives.
    pub archives: Vec<ManifestArchive>,
}

/// One archive of format custom.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ManifestArchive {
    /// Name in the folder.
    pub name: String,
    /// What is in it.
    pub holds: Holds,
    /// Quoted name of the table whose rows it holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
    /// Size in bytes.
    pub bytes: u64,
    /// `sha256:` and 64 hex digits.
    pub sha256: String,
}

/// What an archive holds.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    /// All but rows.
    Schema,
    /// The rows of one table.
    Table,
    /// All other rows, sequences and large objects.
    Rest,
}

impl Manifest {
    /// Reads the manifest of a dump.
    ///
    /// # Errors
    /// `BackupAltered` if its digest is another, `BackupUnreadable` if it is missing or no manifest; those of the
    /// store.
    pub async fn read(store: &StoreClient, object: &str, expected: &str) -> Result<Self, Failure> {
        let (mut chunks, mut text) = (store.get(object).await?, Vec::new());
        while let Some(chunk) = chunks.next().await {
            text.extend_from_slice(&chunk?);
            if text.len() > MAX_BYTES {
                break;
            }
        }
        let found = sha256(&text);
        if found != expected {
            let message = format!(
                "{object} has {found}, uploaded was {expected}; next: find out who wrote to the bucket, then take the \
                    backup again"
            );
            return Err(Failure::new(Reason::BackupAltered, message));
        }
        let no_manifest = |e| format!("{object} is no manifest of a dump: {e}; next: take the backup again");
        serde_json::from_slice(&text).map_err(|e| Failure::new(Reason::BackupUnreadable, no_manifest(e)))
    }

    /// `s3://bucket/key` of an archive of the dump whose manifest is `object`.
    pub fn object_of(object: &str, archive: &ManifestArchive) -> String {
        format!("{}{}", object.strip_suffix(MANIFEST).unwrap_or(object), archive.name)
    }
}
