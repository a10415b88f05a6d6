//! What keeps a window from blocking writes, as its pod finds it in the database before they are blocked.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ReadyReason, Time, named::named};
use crate::shared::message::Message;

/// What keeps a window from blocking writes. It has neither the text of a query nor the name of a prepared transaction:
/// both may contain data.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Obstacle {
    /// What it is.
    pub kind: ObstacleKind,
    /// Protected table that it locks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
    /// Process of the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// Role of the session, or owner of the prepared transaction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// `application_name` of the session, or of the standby.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub application_name: Option<String>,
    /// Number of the prepared transaction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transaction: Option<String>,
    /// Start of the transaction; when it was first seen, if its start is not visible. Of a standby: of what it has not
    /// replayed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// Connections that are free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free_connections: Option<u32>,
    /// Bytes of the write-ahead log that the standby has not replayed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub behind_bytes: Option<u64>,
    /// Why the search failed, with the next command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// Kind of an obstacle.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ObstacleKind {
    /// A prepared transaction has locked a protected table. No session ends it.
    PreparedTransaction,
    /// An autovacuum of a protected table that gives way to no lock.
    Vacuum,
    /// A superuser's session has locked a protected table. The window cannot end it.
    SuperuserSession,
    /// A transaction has locked a protected table for long. The window would end it, or could not.
    LongTransaction,
    /// The lock is refused for long, and no session is seen that has it.
    LockRefused,
    /// Fewer connections are free than a window needs.
    TooFewConnections,
    /// A standby does not replay the write-ahead log, or with a delay: the switch would wait for it.
    StandbyNotReplaying,
    /// The database could not be searched for what keeps writes from being blocked.
    SearchFailed,
}

named! {
    ObstacleKind: PreparedTransaction, Vacuum, SuperuserSession, LongTransaction, LockRefused, TooFewConnections,
    StandbyNotReplaying, SearchFailed
}

impl ObstacleKind {
    /// Reason of the condition `Ready` while it is there.
    pub const fn ready_reason(self) -> ReadyReason {
        match self {
            ObstacleKind::PreparedTransaction => ReadyReason::TransactionPrepared,
            ObstacleKind::Vacuum => ReadyReason::VacuumRunning,
            ObstacleKind::SuperuserSession | ObstacleKind::LongTransaction | ObstacleKind::LockRefused => {
                ReadyReason::TableLocked
            }
            ObstacleKind::TooFewConnections => ReadyReason::TooFewConnections,
            ObstacleKind::StandbyNotReplaying => ReadyReason::StandbyNotReplaying,
            ObstacleKind::SearchFailed => ReadyReason::DatabaseNotSearched,
        }
    }
}

impl Obstacle {
    /// Connections that a window needs besides its own: the sessions that it keeps.
    pub const CONNECTIONS_NEEDED: usize = 3;
    /// Seconds that a standby may take to replay what was committed, before it keeps a window from blocking writes.
    pub const REPLAY_SECONDS: u64 = 5;
    /// Seconds from which on a transaction that has locked a protected table, or a lock that is refused, keeps a window
    /// from blocking writes.
    pub const LONG_SECONDS: u64 = 10;
    /// Obstacles that a run reports at most.
    pub const MAX_REPORTED: usize = 8;

    /// An obstacle of which nothing else is known.
    pub fn new(kind: ObstacleKind) -> Self {
        Self {
            kind,
            table: None,
            pid: None,
            role: None,
            application_name: None,
            transaction: None,
            since: None,
            free_connections: None,
            behind_bytes: None,
            detail: None,
        }
    }

    /// Of the connections that a window needs so many are free; one was refused, whatever is free by now.
    pub fn too_few_connections(free: u32) -> Self {
        let free = free.min(u32::try_from(Self::CONNECTIONS_NEEDED - 1).unwrap_or_default());
        Self { free_connections: Some(free), ..Self::new(ObstacleKind::TooFewConnections) }
    }

    /// What was found, and what ends it.
    pub fn message(&self) -> Message {
        let table = self.table.as_deref().unwrap_or("a protected table");
        let since = self.since.map(|since| format!(" since {since:.0}")).unwrap_or_default();
        let number = self.transaction.as_deref().unwrap_or_default();
        let pid = self.pid.unwrap_or_default();
        match self.kind {
            ObstacleKind::PreparedTransaction => Message::new(format!(
                "prepared transaction {number}{} has locked {table}{since}",
                self.role.as_ref().map(|role| format!(" of role {role}")).unwrap_or_default()
            ))
            .next(format!(
                "SELECT gid FROM pg_prepared_xacts WHERE transaction = '{number}'; then COMMIT PREPARED or ROLLBACK \
                 PREPARED"
            )),
            ObstacleKind::Vacuum => Message::new(format!(
                "autovacuum (pid {pid}) vacuums {table}{since}, and gives way to no lock: it prevents wraparound of \
                 transaction numbers, or migration.lockTimeout is not longer than deadlock_timeout"
            ))
            .next(format!("wait for it: SELECT * FROM pg_stat_progress_vacuum WHERE pid = {pid};")),
            ObstacleKind::SuperuserSession => {
                Message::new(format!("{} has locked {table}{since}, and only a superuser can end it", self.session()))
                    .next(format!("as a superuser, SELECT pg_terminate_backend({pid});"))
            }
            ObstacleKind::LongTransaction => {
                Message::new(format!("{} has locked {table}{since}, limit {} s", self.session(), Self::LONG_SECONDS))
                    .next(format!("wait for it, or SELECT pg_terminate_backend({pid});"))
            }
            ObstacleKind::LockRefused => Message::new(format!(
                "the lock of the protected tables is refused{since}, limit {} s, and no session is seen that has it",
                Self::LONG_SECONDS
            ))
            .next(
                "as a superuser, SELECT pid, mode, relation::regclass FROM pg_locks WHERE locktype = 'relation' AND \
                 granted;",
            ),
            ObstacleKind::TooFewConnections => Message::new(format!(
                "{} connections are free, at least {} are needed",
                self.free_connections.unwrap_or_default(),
                Self::CONNECTIONS_NEEDED
            ))
            .next("SELECT usename, application_name, count(*) FROM pg_stat_activity GROUP BY 1, 2;"),
            ObstacleKind::StandbyNotReplaying => Message::new(format!(
                "standby {} has not replayed what was committed{since}, {} bytes, limit {} s; the switch would wait \
                 for it",
                self.application_name.as_deref().unwrap_or("unknown"),
                self.behind_bytes.unwrap_or_default(),
                Self::REPLAY_SECONDS
            ))
            .next(
                "on the standby: SELECT pg_wal_replay_resume(); or set recovery_min_apply_delay to 0, end queries that \
                 conflict, or detach it",
            ),
            ObstacleKind::SearchFailed => {
                let Message { text, next } = Message::parse(self.detail.as_deref().unwrap_or_default());
                let text = format!("it cannot be seen what would keep writes from being blocked: {text}");
                let next = next.unwrap_or_else(|| "SELECT * FROM pg_stat_activity;".to_owned());
                Message { text, next: Some(next) }
            }
        }
    }

    /// `session 4711 (role postgres, application psql)`.
    fn session(&self) -> String {
        let role = self.role.as_deref().unwrap_or("unknown");
        let application = match self.application_name.as_deref() {
            None | Some("") => String::new(),
            Some(name) => format!(", application {name}"),
        };
        format!("session {} (role {role}{application})", self.pid.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_says_what_it_found_and_what_ends_it() {
        for kind in ObstacleKind::ALL {
            let found = Obstacle {
                table: Some("public.user_credits".into()),
                pid: Some(4711),
                role: Some("postgres".into()),
                application_name: Some("psql".into()),
                transaction: Some("762".into()),
                free_connections: Some(1),
                behind_bytes: Some(90),
                detail: Some("permission denied; next: GRANT".into()),
                ..Obstacle::new(*kind)
            };
            let Message { text, next } = found.message();
            let names = match kind {
                ObstacleKind::PreparedTransaction => "prepared transaction 762 of role postgres has locked public.user",
                ObstacleKind::Vacuum => "autovacuum (pid 4711) vacuums public.user_credits",
                ObstacleKind::SuperuserSession | ObstacleKind::LongTransaction => {
                    "session 4711 (role postgres, application psql) has locked public.user_credits"
                }
                ObstacleKind::LockRefused => "no session is seen",
                ObstacleKind::TooFewConnections => "1 connections are free, at least 3 are needed",
                ObstacleKind::StandbyNotReplaying => {
                    "standby psql has not replayed what was committed, 90 bytes, limit 5 s"
                }
                ObstacleKind::SearchFailed => "it cannot be seen what would keep writes from being blocked: permission",
            };
            assert!(text.contains(names) && next.is_some(), "{kind}: {text}");
        }
    }
}
