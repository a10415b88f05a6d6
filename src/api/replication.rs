//! What a window records of the write-ahead log: where a recovery can stop, and how far the standbys are.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Positions in the write-ahead log, as in `0/16B3748`: each is a `recovery_target_lsn` of a point-in-time recovery.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct RecoveryPoints {
    /// Writes were blocked and verified as such, and the SQL had not run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocked_lsn: Option<String>,
    /// The SQL was committed: the up SQL, or the down SQL in a rollback.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub committed_lsn: Option<String>,
    /// The last position before writes were unblocked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unblocked_lsn: Option<String>,
    /// Name of the restore point at `blockedLsn` (`recovery_target_name`), if the role may create one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restore_point: Option<String>,
}

impl RecoveryPoints {
    /// Whether nothing is recorded.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Streaming standbys, compared with the commit of the up SQL.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct Replication {
    /// How far they are can be seen; otherwise none was waited for.
    pub visible: bool,
    /// The standbys that can be seen.
    pub standbys: Vec<Standby>,
}

/// One streaming standby.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct Standby {
    /// Its `application_name`, or its address.
    pub name: String,
    /// Bytes of the write-ahead log up to the commit that it has not replayed; 0 once it has.
    pub behind_bytes: u64,
}
