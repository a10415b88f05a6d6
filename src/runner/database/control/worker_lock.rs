//! The lock of the one window task that works on a database, and the session that has it.

use std::time::Duration;

use jiff::Timestamp;
use tokio_postgres::{Client, error::SqlState};

use super::{ControlSpec, LOCK_CLASS, LOCK_WORKER, exists};
use crate::runner::Failure;

/// A session that has the lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockHolder {
    /// Its server process.
    pub pid: i32,
    /// Its role.
    pub role: String,
    /// For how long it has run the same statement, or none. A healthy task sends a statement every second. `None`: it
    /// is another login's, of which this is not visible.
    pub idle_for: Option<Duration>,
}

/// Result of ending a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Termination {
    /// It was signalled, or is gone.
    Signalled,
    /// There is no right to end it; the message of the server.
    Refused(String),
}

/// Tries to become the one task that works. The lock lives as long as the session.
///
/// # Errors
/// Database errors.
pub async fn try_acquire(client: &Client) -> Result<bool, Failure> {
    try_lock(client, LOCK_WORKER).await
}

/// Tries to take one of the advisory locks, exclusively, until the session ends.
pub(super) async fn try_lock(client: &Client, which: i32) -> Result<bool, Failure> {
    let row = client.query_one("SELECT pg_catalog.pg_try_advisory_lock($1, $2)", &[&LOCK_CLASS, &which]).await?;
    Ok(row.get(0))
}

/// Until when writes are blocked by this migration at most, by whatever pod; `None` if they are not.
///
/// # Errors
/// Database errors.
pub async fn blocked_until(client: &Client, spec: &ControlSpec) -> Result<Option<Timestamp>, Failure> {
    if !exists(client, "write_block").await? || !exists(client, "window_record").await? {
        return Ok(None);
    }
    let row = client
        .query_opt(
            "SELECT coalesce((SELECT max(i.deadline) FROM credit_migration.window_record i
                              WHERE i.migration_uid = g.migration_uid AND i.finished_at IS NULL), g.deadline)
             FROM credit_migration.write_block g WHERE g.blocked AND g.migration_uid = $1",
            &[&spec.uid],
        )
        .await?;
    Ok(row.and_then(|row| row.get(0)))
}

/// The session that has the lock.
///
/// # Errors
/// Database errors.
pub async fn lock_holder(client: &Client) -> Result<Option<LockHolder>, Failure> {
    let row = client
        .query_opt(
            "SELECT a.pid, coalesce(a.usename::text, ''), extract(epoch FROM clock_timestamp() - a.state_change)::float8
             FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
             WHERE l.locktype = 'advisory' AND l.granted AND l.classid = $1::int4::oid AND l.objid = $2::int4::oid
               AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
               AND a.pid <> pg_backend_pid() LIMIT 1",
            &[&LOCK_CLASS, &LOCK_WORKER],
        )
        .await?;
    Ok(row.map(|row| LockHolder {
        pid: row.get(0),
        role: row.get(1),
        idle_for: row.get::<_, Option<f64>>(2).map(|s| Duration::from_secs_f64(s.max(0.0))),
    }))
}

/// Ends the session that has the lock.
///
/// # Errors
/// Database errors, except for a missing right.
pub async fn terminate(client: &Client, holder: &LockHolder) -> Result<Termination, Failure> {
    match client.query_one("SELECT pg_catalog.pg_terminate_backend($1)", &[&holder.pid]).await {
        Ok(_) => Ok(Termination::Signalled),
        Err(e) if e.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
            Ok(Termination::Refused(Failure::from(&e).message))
        }
        Err(e) => Err(Failure::from(&e)),
    }
}
