//! What a window records of the write-ahead log: where a recovery can stop, and how far the standbys are; and what it
//! could not show.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::named::named;

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

/// What a window could not show once more, and went on without.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct NotShown {
    /// What it is.
    pub kind: NotShownKind,
    /// Why it was not shown.
    #[schemars(length(max = 4096))]
    pub message: String,
}

/// What a window shows.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotShownKind {
    /// Before the switch and before the end: an ordinary session of the application is still refused.
    WritesBlocked,
    /// Before the switch: each standby has replayed the commit of the up SQL.
    StandbysReplayed,
    /// After the end: an ordinary session of the application can write.
    WritesUnblocked,
}

named! {
    NotShownKind: WritesBlocked, StandbysReplayed, WritesUnblocked
}

impl NotShownKind {
    /// What was not shown, and what the window rests on instead.
    pub const fn text(self) -> &'static str {
        match self {
            NotShownKind::WritesBlocked => {
                "it was not shown once more that an ordinary session is refused; it was when writes were blocked, and \
                 the write block and its triggers were unchanged"
            }
            NotShownKind::StandbysReplayed => {
                "it was not shown that the standbys have replayed the commit of the up SQL; the new version may read \
                 the old schema from one for a while"
            }
            NotShownKind::WritesUnblocked => {
                "it was not shown that an ordinary session of the application can write; the write block and the \
                 read-only default are off"
            }
        }
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
