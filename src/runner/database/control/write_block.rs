//! The gate: intent, closing, proof, opening. Each a short statement; none of them waits for readers.
//!
//! ```text
//!  close    intent + ALTER DATABASE ... read_only + gate row, one transaction
//!  drain    end the application's sessions and whoever is in the way; take the exclusive advisory lock
//!  prove    a write as the application's role must fail with 25006 (verify_blocked.rs)
//!  open     gate row + intent finished, one transaction; the read-only default was reset before
//! ```
//! Once the exclusive lock is held, no transaction that passed a guard is under way: each holds the shared side to its
//! end. Transactions older than the closing which hold nothing of the protected tables are left alone: their first
//! write meets the lock, whatever their snapshot says.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tokio_postgres::{Client, error::SqlState, types::Json};

pub use super::read_only_default::{restore_default, terminate_read_only_sessions};
use super::{
    ControlSpec, LOCK_CLASS, LOCK_WRITE_BLOCK, Table, exists, ident, protected, with_children, worker_lock::try_lock,
};
use crate::{
    api::{Direction, Reason, SchemaInPlace, WindowProgress},
    runner::{Failure, postgres::classify},
};

/// What the database says of a window: all that a second pod needs to go on.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct RecordedState {
    /// The up SQL is committed: seconds it took, users reconciled.
    pub up: Option<(f64, u64)>,
    /// The down SQL is committed.
    pub down: bool,
    /// Since when writes are blocked, if they are.
    pub blocked_at: Option<Timestamp>,
    /// The window that was opened last in this direction.
    pub record: Option<WindowRecord>,
}

/// One opened window.
#[derive(Clone, Debug, PartialEq)]
pub struct WindowRecord {
    /// Attempt of the run that opened it.
    pub attempt: u32,
    /// When it must be over.
    pub deadline: Timestamp,
    /// The runner took note of `Switch`.
    pub switch_acknowledged: bool,
    /// How it ended, if it did.
    pub finished: Option<RecordedEnd>,
    /// What was reported of it.
    pub progress: WindowProgress,
}

/// How a window ended.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordedEnd {
    /// The schema that is in place.
    pub schema: SchemaInPlace,
    /// Why it ended without success.
    pub failure: Option<Failure>,
}

/// Reads intent, ledger and gate.
///
/// # Errors
/// `DatabaseInUse` if another migration keeps the gate closed; database errors.
pub async fn recorded_state(
    client: &Client,
    spec: &ControlSpec,
    direction: Direction,
) -> Result<RecordedState, Failure> {
    let mut snapshot = RecordedState::default();
    let ledger = client
        .query(
            "SELECT step, seconds, reconciled_users FROM credit_migration.ledger WHERE migration_uid = $1",
            &[&spec.uid],
        )
        .await?;
    for row in ledger {
        match row.get::<_, &str>(0) {
            "up" => snapshot.up = Some((row.get(1), u64::try_from(row.get::<_, i64>(2)).unwrap_or_default())),
            _ => snapshot.down = true,
        }
    }
    // Cleanup takes the gate and leaves ledger and intent: what is migrated must not look as if it were not.
    let write_block = match exists(client, "write_block").await? {
        true => {
            client
                .query_opt("SELECT migration_uid, blocked_at FROM credit_migration.write_block WHERE blocked", &[])
                .await?
        }
        false => None,
    };
    if let Some(row) = write_block {
        if row.get::<_, &str>(0) != spec.uid {
            let message =
                format!("writes are blocked by migration uid {}; next: let it end its window", row.get::<_, &str>(0));
            return Err(Failure::new(Reason::DatabaseInUse, message));
        }
        snapshot.blocked_at = Some(row.get(1));
    }
    let record = client
        .query_opt(
            "SELECT attempt, deadline, switch_acknowledged_at IS NOT NULL, finished_at IS NOT NULL, outcome, reason, message, progress
             FROM credit_migration.window_record WHERE migration_uid = $1 AND direction = $2",
            &[&spec.uid, &direction.sql_name()],
        )
        .await?;
    snapshot.record = record.map(|row| WindowRecord {
        attempt: u32::try_from(row.get::<_, i32>(0)).unwrap_or_default(),
        deadline: row.get(1),
        switch_acknowledged: row.get(2),
        finished: row.get::<_, bool>(3).then(|| RecordedEnd {
            schema: match row.get::<_, Option<&str>>(4) {
                Some("released") => SchemaInPlace::New,
                _ => SchemaInPlace::Old,
            },
            failure: row.get::<_, Option<&str>>(5).map(|reason| {
                let reason =
                    Reason::ALL.iter().copied().find(|known| known.as_str() == reason).unwrap_or(Reason::Internal);
                Failure::new(reason, row.get::<_, Option<String>>(6).unwrap_or_default())
            }),
        }),
        progress: row.get::<_, Option<Json<WindowProgress>>>(7).map(|Json(progress)| progress).unwrap_or_default(),
    });
    Ok(snapshot)
}

/// Records the intent, switches the database's default to read-only, and closes the gate for all but this session: one
/// transaction. Called again (by another session, after a crash), it keeps the prior setting that was found first.
///
/// Returns when the gate was closed, by the server's clock.
///
/// # Errors
/// Database errors; nothing was changed.
pub async fn enable(
    client: &mut Client,
    spec: &ControlSpec,
    direction: Direction,
    attempt: u32,
    deadline: Timestamp,
) -> Result<Timestamp, Failure> {
    let tx = client.transaction().await?;
    tx.execute(
        "INSERT INTO credit_migration.window_record AS i (migration_uid, direction, attempt, started_at, deadline, sessions, prior_read_only)
         SELECT $1, $2, $3, clock_timestamp(), $4,
                ARRAY (SELECT a.pid FROM pg_catalog.pg_stat_activity a WHERE a.datname = current_database()),
                (SELECT split_part(c, '=', 2) FROM pg_catalog.pg_db_role_setting s CROSS JOIN unnest(s.setconfig) AS c
                 WHERE s.setdatabase = d.oid AND s.setrole = 0 AND c LIKE 'default_transaction_read_only=%')
         FROM pg_catalog.pg_database d WHERE d.datname = current_database()
         ON CONFLICT (migration_uid, direction) DO UPDATE SET
             attempt = excluded.attempt, deadline = excluded.deadline,
             -- Only a window that ended has put the prior setting back; in one that did not, what is found now is our own.
             prior_read_only = CASE WHEN i.finished_at IS NULL THEN i.prior_read_only ELSE excluded.prior_read_only END,
             started_at = CASE WHEN i.finished_at IS NULL THEN i.started_at ELSE excluded.started_at END,
             sessions = CASE WHEN i.finished_at IS NULL THEN i.sessions ELSE excluded.sessions END,
             -- The default is about to be switched, also if an earlier session had put it back.
             restored_at = NULL,
             switch_acknowledged_at = CASE WHEN i.finished_at IS NULL THEN i.switch_acknowledged_at END,
             progress = CASE WHEN i.finished_at IS NULL THEN i.progress END,
             finished_at = NULL, outcome = NULL, reason = NULL, message = NULL",
        &[&spec.uid, &direction.sql_name(), &i32::try_from(attempt).unwrap_or(i32::MAX), &deadline],
    )
    .await?;
    let database: String = tx.query_one("SELECT current_database()::text", &[]).await?.get(0);
    tx.batch_execute(&format!("ALTER DATABASE {} SET default_transaction_read_only = on", ident(&database))).await?;
    let row = tx
        .query_one(
            "INSERT INTO credit_migration.write_block AS g (blocked, migration_uid, blocked_at, deadline, pid, backend_start)
             SELECT true, $1, clock_timestamp(), $2, a.pid, a.backend_start FROM pg_catalog.pg_stat_get_activity(pg_backend_pid()) a
             ON CONFLICT (only_one) DO UPDATE SET
                 blocked_at = CASE WHEN g.blocked THEN g.blocked_at ELSE excluded.blocked_at END,
                 blocked = true, migration_uid = excluded.migration_uid, deadline = excluded.deadline, pid = excluded.pid,
                 backend_start = excluded.backend_start, unblocked_at = NULL
             RETURNING blocked_at",
            &[&spec.uid, &deadline],
        )
        .await?;
    tx.commit().await?;
    Ok(row.get(0))
}

/// Other roles' sessions in this database. Of a role that it is no member of, the migration role sees no more than pid and
/// name: neither when a session or its transaction began, nor what it does.
const OTHER_SESSIONS: &str = "SELECT a.pid, a.usename::text FROM pg_catalog.pg_stat_activity a
    WHERE a.datname = current_database() AND a.pid <> pg_backend_pid() AND a.usename <> session_user";

/// Ends the application's sessions, then whoever else has held something of the protected tables since the closing
/// (after a grace of one lock time-out), and takes the exclusive side of the gate's lock. Returns how many of the
/// application's sessions were ended.
///
/// # Errors
/// `PrivilegeMissing` with the `GRANT`; `LockTimeout` naming who holds on, after `limit`.
pub async fn drain(
    client: &Client,
    spec: &ControlSpec,
    blocked_at: Timestamp,
    limit: Duration,
) -> Result<u32, Failure> {
    let start = Instant::now();
    let tables = with_children(client, &protected(client, spec).await?).await?;
    // By pid: a session that was told to end may still be there in the next round.
    let mut terminated = BTreeSet::new();
    for (pid, role) in application_sessions(client, spec, blocked_at, true).await? {
        if terminate(client, pid, &role, true).await? {
            terminated.insert(pid);
        }
    }
    let holders_at_start: Vec<i32> = lock_holders(client, &tables).await?.into_iter().map(|(pid, _)| pid).collect();
    loop {
        // A session that was being opened when the gate was closed may only be seen now.
        let sessions = application_sessions(client, spec, blocked_at, false).await?;
        for (pid, role) in &sessions {
            if terminate(client, *pid, role, true).await? {
                terminated.insert(*pid);
            }
        }
        let blockers: Vec<_> = lock_holders(client, &tables)
            .await?
            .into_iter()
            .filter(|(pid, _)| holders_at_start.contains(pid))
            .collect();
        if start.elapsed() >= spec.lock_timeout.min(limit / 2) {
            for (pid, role) in &blockers {
                terminate(client, *pid, role, false).await?;
            }
        }
        if sessions.is_empty() && blockers.is_empty() && try_lock(client, LOCK_WRITE_BLOCK).await? {
            return Ok(u32::try_from(terminated.len()).unwrap_or(u32::MAX));
        }
        if start.elapsed() >= limit {
            let names: Vec<String> =
                blockers.iter().chain(&sessions).map(|(pid, role)| format!("pid {pid} (role {role})")).collect();
            let who = if names.is_empty() {
                // Neither is among the sessions of other roles.
                "a prepared transaction (see pg_prepared_xacts), or by another session of the migration role (see pg_locks)".to_owned()
            } else {
                names.join(", ")
            };
            let message = format!(
                "the protected tables are held by {who} for more than {:.1} s; next: end that transaction",
                limit.as_secs_f64()
            );
            return Err(Failure::new(Reason::LockTimeout, message));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Sessions of the application older than `blocked_at`. Where their age is not to be seen, `unknown` decides.
async fn application_sessions(
    client: &Client,
    spec: &ControlSpec,
    blocked_at: Timestamp,
    age_unknown: bool,
) -> Result<Vec<(i32, String)>, Failure> {
    let rows = client
        .query(
            &format!("{OTHER_SESSIONS} AND a.usename::text = ANY ($1) AND coalesce(a.backend_start < $2, $3)"),
            &[&spec.application_roles, &blocked_at, &age_unknown],
        )
        .await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Other roles' sessions that hold a lock on one of the tables, or the gate's shared lock.
async fn lock_holders(client: &Client, tables: &[Table]) -> Result<Vec<(i32, String)>, Failure> {
    let names: Vec<String> = tables.iter().map(Table::sql).collect();
    let rows = client
        .query(
            &format!(
                "{OTHER_SESSIONS} AND EXISTS (SELECT FROM pg_catalog.pg_locks l WHERE l.pid = a.pid AND l.granted
                   AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
                   AND (l.locktype = 'relation' AND l.relation = ANY (SELECT pg_catalog.to_regclass(name)::oid FROM unnest($1::text[]) AS name)
                        OR l.locktype = 'advisory' AND l.classid = {LOCK_CLASS} AND l.objid = {LOCK_WRITE_BLOCK}))"
            ),
            &[&names],
        )
        .await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Ends a session. One that may not be ended is an error for the application's, and waited for otherwise.
pub(super) async fn terminate(client: &Client, pid: i32, role: &str, must: bool) -> Result<bool, Failure> {
    match client.query_one("SELECT pg_catalog.pg_terminate_backend($1)", &[&pid]).await {
        Ok(row) => Ok(row.get(0)),
        Err(e) if e.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
            if must {
                let message = format!(
                    "sessions of role {role} cannot be ended; next: GRANT pg_signal_backend TO the migration role (a superuser's sessions can never be ended)"
                );
                return Err(Failure::new(Reason::PrivilegeMissing, message));
            }
            Ok(false)
        }
        Err(e) => Err(classify(&e)),
    }
}

/// Takes over a gate that another session closed: from now on it lets this session pass. The read-only default is left
/// as it is. Returns since when the gate is closed.
///
/// # Errors
/// Database errors.
pub async fn take_over(
    client: &mut Client,
    spec: &ControlSpec,
    direction: Direction,
    attempt: u32,
) -> Result<Option<Timestamp>, Failure> {
    let tx = client.transaction().await?;
    let row = tx
        .query_opt(
            "UPDATE credit_migration.write_block AS g SET pid = a.pid, backend_start = a.backend_start
             FROM pg_catalog.pg_stat_get_activity(pg_backend_pid()) a WHERE g.blocked AND g.migration_uid = $1 RETURNING g.blocked_at",
            &[&spec.uid],
        )
        .await?;
    // The way back may take over from the way there: what was set before the window is in that one's intent. It then counts
    // as acknowledged: the flag may be at the old value already, so nobody may open the gate on the new schema by himself.
    tx.execute(
        "INSERT INTO credit_migration.window_record AS i
             (migration_uid, direction, attempt, started_at, deadline, prior_read_only, sessions, restored_at, switch_acknowledged_at)
         SELECT o.migration_uid, $2, $3, o.started_at, o.deadline, o.prior_read_only, o.sessions, o.restored_at,
                CASE WHEN o.direction = $2 THEN o.switch_acknowledged_at ELSE coalesce(o.switch_acknowledged_at, clock_timestamp()) END
         FROM credit_migration.window_record o
         WHERE o.migration_uid = $1 AND o.finished_at IS NULL ORDER BY o.started_at LIMIT 1
         ON CONFLICT (migration_uid, direction) DO UPDATE SET attempt = excluded.attempt, finished_at = NULL, outcome = NULL,
             reason = NULL, message = NULL,
             sessions = CASE WHEN i.finished_at IS NULL THEN i.sessions ELSE excluded.sessions END,
             restored_at = CASE WHEN i.finished_at IS NULL THEN i.restored_at ELSE excluded.restored_at END,
             switch_acknowledged_at = coalesce(i.switch_acknowledged_at, excluded.switch_acknowledged_at)",
        &[&spec.uid, &direction.sql_name(), &i32::try_from(attempt).unwrap_or(i32::MAX)],
    )
    .await?;
    tx.commit().await?;
    Ok(row.map(|row| row.get(0)))
}

/// Ends the comparison of balances that may still run beside the window.
///
/// # Errors
/// Database errors.
pub async fn terminate_comparison(client: &Client) -> Result<(), Failure> {
    let own = "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity
               WHERE application_name = 'credit-migration/comparison' AND datname = current_database() AND usename = session_user";
    client.query(own, &[]).await?;
    Ok(())
}

/// Notes in the database that the controller is about to flip the flag. Done before the controller is told so.
///
/// # Errors
/// Database errors.
pub async fn acknowledge_switch(client: &Client, spec: &ControlSpec, direction: Direction) -> Result<(), Failure> {
    client
        .execute(
            "UPDATE credit_migration.window_record SET switch_acknowledged_at = coalesce(switch_acknowledged_at, clock_timestamp())
             WHERE migration_uid = $1 AND direction = $2",
            &[&spec.uid, &direction.sql_name()],
        )
        .await?;
    Ok(())
}

/// Keeps what is reported of the window, for the pod that may have to go on with it.
///
/// # Errors
/// Database errors.
pub async fn save_progress(
    client: &Client,
    spec: &ControlSpec,
    direction: Direction,
    progress: &WindowProgress,
) -> Result<(), Failure> {
    client
        .execute(
            "UPDATE credit_migration.window_record SET progress = $3 WHERE migration_uid = $1 AND direction = $2",
            &[&spec.uid, &direction.sql_name(), &Json(progress)],
        )
        .await?;
    Ok(())
}

/// Opens the gate and records how the window ended, in one transaction; then gives the exclusive lock back.
///
/// Returns when it was opened, by the server's clock; `None` if no window was open.
///
/// # Errors
/// Database errors; the gate is as it was, or open.
pub async fn disable(
    client: &mut Client,
    spec: &ControlSpec,
    direction: Direction,
    end: &RecordedEnd,
    progress: &WindowProgress,
) -> Result<Option<Timestamp>, Failure> {
    let tx = client.transaction().await?;
    let unblocked_at = tx
        .query_opt(
            "UPDATE credit_migration.write_block SET blocked = false, unblocked_at = clock_timestamp(), pid = NULL, backend_start = NULL
             WHERE blocked AND migration_uid = $1 RETURNING unblocked_at",
            &[&spec.uid],
        )
        .await?
        .map(|row| row.get::<_, Timestamp>(0));
    tx.execute(
        "UPDATE credit_migration.window_record SET finished_at = clock_timestamp(), outcome = $3, reason = $4, message = $5,
                progress = CASE WHEN direction = $2 THEN $6 ELSE progress END
         WHERE migration_uid = $1 AND finished_at IS NULL",
        &[
            &spec.uid,
            &direction.sql_name(),
            &match end.schema {
                SchemaInPlace::Old => "rolled_back",
                SchemaInPlace::New => "released",
            },
            &end.failure.as_ref().map(|failure| failure.reason.as_str()),
            &end.failure.as_ref().map(|failure| failure.message.as_str()),
            &Json(&WindowProgress { released_at: unblocked_at.or(progress.released_at), ..progress.clone() }),
        ],
    )
    .await?;
    tx.commit().await?;
    // Held as often as it was taken; what remained would block writes with the gate open.
    while holds_exclusive_lock(client).await? {
        client.query_one("SELECT pg_catalog.pg_advisory_unlock($1, $2)", &[&LOCK_CLASS, &LOCK_WRITE_BLOCK]).await?;
    }
    Ok(unblocked_at)
}

/// Whether this session holds the exclusive side of the gate's lock.
///
/// # Errors
/// Database errors.
pub async fn holds_exclusive_lock(client: &Client) -> Result<bool, Failure> {
    let row = client
        .query_one(
            "SELECT EXISTS (SELECT FROM pg_catalog.pg_locks WHERE pid = pg_backend_pid() AND granted AND mode = 'ExclusiveLock'
                            AND locktype = 'advisory' AND classid = $1::int4::oid AND objid = $2::int4::oid)",
            &[&LOCK_CLASS, &LOCK_WRITE_BLOCK],
        )
        .await?;
    Ok(row.get(0))
}
