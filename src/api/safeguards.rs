//! What a rollback needs in the database, as the pod of a later stage measures it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ReadyReason, Time, named::named};
use crate::shared::message::Message;

/// Whether the database has what a rollback needs, and takes the application's writes.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct SafeguardReport {
    /// When it was measured.
    pub at: Time,
    /// The database was reached. If not, what is missing is not known.
    pub reachable: bool,
    /// What is missing.
    #[schemars(length(max = 16))]
    pub missing: Vec<MissingSafeguard>,
}

/// Something that is not as the window left it.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct MissingSafeguard {
    /// What it is.
    pub kind: SafeguardKind,
    /// Table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
    /// Trigger.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trigger: Option<String>,
    /// What was observed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// What can be missing.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SafeguardKind {
    /// Writes of the application are refused: by the write block, or by the read-only default.
    UnblockedWrites,
    /// The change-tracking trigger fails, and with it each write of the balances.
    WorkingChangeTracking,
    /// A change-tracking trigger is missing, disabled or another one.
    ChangeTracking,
    /// A write-block trigger is missing, disabled or another one.
    WriteBlock,
    /// The down SQL that is approved is not stored.
    StoredDownSql,
    /// An object in the control schema is not the operator's: a window refuses to start.
    ControlSchema,
}

named! {
    SafeguardKind: UnblockedWrites, WorkingChangeTracking, ChangeTracking, WriteBlock, StoredDownSql,
        ControlSchema
}

impl SafeguardKind {
    /// Reason of the problem, and of the condition `RollbackReady`.
    pub const fn ready_reason(self) -> ReadyReason {
        match self {
            SafeguardKind::UnblockedWrites => ReadyReason::WritesRefused,
            SafeguardKind::WorkingChangeTracking => ReadyReason::ChangeTrackingFails,
            SafeguardKind::ChangeTracking => ReadyReason::ChangeTrackingMissing,
            SafeguardKind::WriteBlock => ReadyReason::WriteBlockMissing,
            SafeguardKind::StoredDownSql => ReadyReason::DownSqlNotStored,
            SafeguardKind::ControlSchema => ReadyReason::ControlSchemaForeign,
        }
    }

    /// The application's writes are refused while it is missing.
    pub const fn refuses_writes(self) -> bool {
        matches!(self, SafeguardKind::UnblockedWrites | SafeguardKind::WorkingChangeTracking)
    }
}

impl MissingSafeguard {
    /// What is missing, without details.
    pub fn new(kind: SafeguardKind) -> Self {
        Self { kind, table: None, trigger: None, detail: None }
    }

    /// What was found, and what to do. `down_sql` is the command that restores the down SQL.
    pub fn message(&self, down_sql: &str) -> Message {
        let table = self.table.as_deref().unwrap_or_default();
        let trigger = self.trigger.as_deref().unwrap_or_default();
        let detail = self.detail.as_ref().map(|detail| format!(": {detail}")).unwrap_or_default();
        let enable = format!("ALTER TABLE {table} ENABLE ALWAYS TRIGGER {trigger};");
        match self.kind {
            SafeguardKind::UnblockedWrites => {
                Message::new(format!("writes of the application are refused although no window is open{detail}"))
                    .next("see \"Inspect the database\" in docs/emergency.md")
            }
            SafeguardKind::WorkingChangeTracking => Message::new(format!(
                "trigger {trigger} on {table} fails, and with it each write of the balances{detail}"
            ))
            .next("give the columns of spec.credits.balances their names back"),
            SafeguardKind::ChangeTracking => Message::new(format!(
                "trigger {trigger} on {table} is missing or disabled: it is not recorded which balances are \
                 written"
            ))
            .next(enable),
            SafeguardKind::WriteBlock => Message::new(format!(
                "trigger {trigger} on {table} is missing or disabled: writes to it could not be blocked; a window \
                 creates it again"
            ))
            .next(enable),
            SafeguardKind::StoredDownSql => {
                Message::new("the database does not store the down SQL that is approved").next(down_sql)
            }
            SafeguardKind::ControlSchema => {
                let found = Message::parse(self.detail.as_deref().unwrap_or_default());
                let message = Message::new(format!("the window of a rollback would not start: {}", found.text));
                message.next(found.next.unwrap_or_else(|| "remove it from schema credit_migration".into()))
            }
        }
    }
}
