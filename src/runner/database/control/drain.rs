//! Ending the sessions that are in the way of a window.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tokio_postgres::{Client, error::SqlState, types::ToSql};

use super::{
    ControlSpec, LOCK_CLASS, LOCK_WRITE_BLOCK, OWN_SESSION, Table, protected, sessions::Session, with_children,
    worker_lock::try_lock,
};
use crate::{api::Reason, runner::Failure};

/// Sessions of a rehearsal of the rollback, by the name that connections have.
pub const ROLLBACK_REHEARSAL: &str = "rollback-rehearsal";

/// Sessions of other roles in this database. Of a role that it is no member of, the migration role sees only pid and
/// name: neither when a session or its transaction started, nor what it does.
const OTHER_SESSIONS: &str = "FROM pg_catalog.pg_stat_activity a
    WHERE a.datname = current_database() AND a.pid <> pg_backend_pid() AND a.usename <> session_user";

/// Ends the application's sessions that are older than `blocked_at`, then every other session that has a lock on a
/// protected table (after a grace of one lock time-out), and takes the lock of the write block exclusively. Returns how
/// many of the application's sessions were ended.
///
/// Once writes are blocked there is no `blocked_at`: the application's sessions have been ended, and those that are
/// there are of the version that is to serve next. Only who has a lock is ended then.
///
/// # Errors
/// `PrivilegeMissing` with the `GRANT`; `LockTimeout` with the sessions that are left after `limit`.
pub async fn drain(
    client: &Client,
    spec: &ControlSpec,
    blocked_at: Option<Timestamp>,
    limit: Duration,
) -> Result<u32, Failure> {
    let start = Instant::now();
    let tables = with_children(client, &protected(client, spec).await?).await?;
    // By pid: a session that was signalled may still exist in the next round.
    let mut terminated = BTreeSet::new();
    terminate_application(client, spec, blocked_at, true, &mut terminated).await?;
    let holders_at_start: Vec<i32> = lock_holders(client, &tables).await?.iter().map(|session| session.pid).collect();
    loop {
        // A session that was connecting when writes were blocked may be visible only now.
        let sessions = terminate_application(client, spec, blocked_at, false, &mut terminated).await?;
        let blockers: Vec<_> = lock_holders(client, &tables)
            .await?
            .into_iter()
            .filter(|session| holders_at_start.contains(&session.pid))
            .collect();
        if start.elapsed() >= spec.lock_timeout.min(limit / 2) {
            let pids: Vec<i32> = blockers.iter().map(|session| session.pid).collect();
            terminate_all(client, &format!("{OTHER_SESSIONS} AND a.pid = ANY ($1)"), &[&pids], false).await?;
        }
        if sessions.is_empty() && blockers.is_empty() && try_lock(client, LOCK_WRITE_BLOCK).await? {
            return Ok(u32::try_from(terminated.len()).unwrap_or(u32::MAX));
        }
        if start.elapsed() >= limit {
            let names: Vec<String> = blockers.iter().chain(&sessions).map(ToString::to_string).collect();
            let who = if names.is_empty() {
                // Neither is a session of another role.
                "a prepared transaction (see pg_prepared_xacts), or by another session of the migration role (see \
                    pg_locks)"
                    .to_owned()
            } else {
                names.join(", ")
            };
            let message = format!(
                "the protected tables are locked by {who} for more than {:.1} s; next: end that transaction",
                limit.as_secs_f64()
            );
            return Err(Failure::new(Reason::LockTimeout, message));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Ends the sessions of the application older than `blocked_at`. Where their age is not visible, `age_unknown` decides.
/// Returns them; the pids of those that were signalled are added to `terminated`.
async fn terminate_application(
    client: &Client,
    spec: &ControlSpec,
    blocked_at: Option<Timestamp>,
    age_unknown: bool,
    terminated: &mut BTreeSet<i32>,
) -> Result<Vec<Session>, Failure> {
    let Some(blocked_at) = blocked_at else { return Ok(vec![]) };
    let sessions = format!("{OTHER_SESSIONS} AND a.usename::text = ANY ($1) AND coalesce(a.backend_start < $2, $3)");
    let ended = terminate_all(client, &sessions, &[&spec.application_roles, &blocked_at, &age_unknown], true).await?;
    terminated.extend(ended.iter().filter(|(_, signalled)| *signalled).map(|(session, _)| session.pid));
    Ok(ended.into_iter().map(|(session, _)| session).collect())
}

/// Ends the sessions `a` of a clause (SQL, from `FROM` on) by one statement, however many there are. Returns them, and
/// whether each was signalled. If there is no right to end one, they are ended one by one as by [`terminate`].
pub(super) async fn terminate_all(
    client: &Client,
    sessions: &str,
    parameters: &[&(dyn ToSql + Sync)],
    must: bool,
) -> Result<Vec<(Session, bool)>, Failure> {
    let query = |signal: &str| format!("SELECT {}, {signal} {sessions}", Session::COLUMNS);
    match client.query(&query("pg_catalog.pg_terminate_backend(a.pid)"), parameters).await {
        Ok(rows) => return Ok(rows.iter().map(|row| (Session::read(row), row.get(3))).collect()),
        Err(e) if e.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {}
        Err(e) => return Err(Failure::from(&e)),
    }
    let mut ended = Vec::new();
    for row in client.query(&query("false"), parameters).await? {
        let session = Session::read(&row);
        let signalled = terminate(client, session.pid, session.role_name(), must).await?;
        ended.push((session, signalled));
    }
    Ok(ended)
}

/// Sessions of other roles that have a lock on one of the tables, or share the lock of the write block.
async fn lock_holders(client: &Client, tables: &[Table]) -> Result<Vec<Session>, Failure> {
    let names: Vec<String> = tables.iter().map(Table::sql).collect();
    let rows = client
        .query(
            &format!(
                "SELECT {} {OTHER_SESSIONS} AND EXISTS (SELECT FROM pg_catalog.pg_locks l WHERE l.pid = a.pid
                   AND l.granted
                   AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
                   AND (l.locktype = 'relation' AND l.relation = ANY (SELECT pg_catalog.to_regclass(name)::oid FROM \
                   unnest($1::text[]) AS name)
                        OR l.locktype = 'advisory' AND l.classid = {LOCK_CLASS} AND l.objid = {LOCK_WRITE_BLOCK}))",
                Session::COLUMNS
            ),
            &[&names],
        )
        .await?;
    Ok(rows.iter().map(Session::read).collect())
}

/// Ends a session. If there is no right to, that is an error for a session that `must` end; others are waited for.
async fn terminate(client: &Client, pid: i32, role: &str, must: bool) -> Result<bool, Failure> {
    match client.query_one("SELECT pg_catalog.pg_terminate_backend($1)", &[&pid]).await {
        Ok(row) => Ok(row.get(0)),
        Err(e) if e.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
            if must {
                let message = format!(
                    "sessions of role {role} cannot be ended; next: GRANT pg_signal_backend TO the migration role (a \
                        superuser's sessions can never be ended)"
                );
                return Err(Failure::new(Reason::PrivilegeMissing, message));
            }
            Ok(false)
        }
        Err(e) => Err(Failure::from(&e)),
    }
}

/// Ends what may still read the tables in parallel to the window: the comparison of balances, and a rehearsal of the
/// rollback whose pod is being removed.
///
/// # Errors
/// Database errors.
pub async fn terminate_readers(client: &Client) -> Result<(), Failure> {
    let names = ["comparison", ROLLBACK_REHEARSAL].map(|step| format!("credit-migration/{step}"));
    let own = format!(
        "SELECT pg_catalog.pg_terminate_backend(a.pid) FROM pg_catalog.pg_stat_activity a
         WHERE a.application_name = ANY ($1) AND a.datname = current_database() AND {OWN_SESSION}"
    );
    client.query(&own, &[&names.as_slice()]).await?;
    Ok(())
}
