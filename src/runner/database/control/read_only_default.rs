//! The read-only default of the database, and the sessions that started with it.
//!
//! The default applies to every role, and a session keeps the one that it started with: a pool that reconnected
//! inside the window would stay read-only. So every session that started between blocking and restoring is ended, of
//! whatever role.
//!
//! # Caveats
//! - Of a role that it is no member of (with inheritance), the migration role cannot see when a session started. Then
//!   the session counts as inside if its pid was not there when writes were blocked, once: when the default is
//!   restored.
//! - The sessions of a superuser cannot be ended; the log names them.

use jiff::Timestamp;
use tokio_postgres::{Client, error::SqlState, types::ToSql};

use super::{ControlSpec, OWN_SESSION, drain::terminate_all, ident, literal, sessions::Session};
use crate::{api::Reason, runner::Failure};

/// SQL: the read-only default of the database, NULL if it has none.
pub(super) const SETTING: &str = "(SELECT split_part(c, '=', 2)
    FROM pg_catalog.pg_db_role_setting s JOIN pg_catalog.pg_database d ON d.oid = s.setdatabase
    CROSS JOIN unnest(s.setconfig) AS c
    WHERE d.datname = current_database() AND s.setrole = 0 AND c LIKE 'default_transaction_read_only=%')";

/// Restores the read-only default of before the window, and ends the sessions that were opened meanwhile. Called
/// again, it ends the rest of those. The write block is not changed.
///
/// Returns until when such sessions may have started, by the server's clock; `None` if no window is recorded as open.
///
/// # Errors
/// Database errors; `PrivilegeMissing` with the statement.
pub async fn restore_default(client: &Client, spec: &ControlSpec) -> Result<Option<Timestamp>, Failure> {
    let row = client
        .query_opt(
            &format!(
                "SELECT prior_read_only, current_database()::text, restored_at, sessions, {SETTING}
                 FROM credit_migration.window_record
                 WHERE migration_uid = $1 AND finished_at IS NULL ORDER BY started_at LIMIT 1"
            ),
            &[&spec.uid],
        )
        .await?;
    let Some(row) = row else { return Ok(None) };
    if let Some(restored) = row.get(2) {
        // Sessions that started since then are ordinary ones, mostly of the new version.
        return Ok(Some(restored));
    }
    let database = ident(row.get(1));
    let prior = row.get::<_, Option<&str>>(0);
    let sql = match prior {
        Some(prior) => format!("ALTER DATABASE {database} SET default_transaction_read_only = {}", literal(prior)),
        None => format!("ALTER DATABASE {database} RESET default_transaction_read_only"),
    };
    // An operator may have restored it.
    let needed = row.get::<_, Option<&str>>(4) != prior;
    client.batch_execute(if needed { &sql } else { "" }).await.map_err(|e| match e.code() {
        Some(&SqlState::INSUFFICIENT_PRIVILEGE) => Failure::new(
            Reason::PrivilegeMissing,
            format!(
                "the read-only default is still set: {}; next, as the owner of the database: {sql}",
                Failure::from(&e).message
            ),
        ),
        _ => Failure::from(&e),
    })?;
    // After the commit: a session that starts before it has the old default.
    let restored: Timestamp = client.query_one("SELECT clock_timestamp()", &[]).await?.get(0);
    terminate_sessions(client, restored, Some(row.get::<_, Option<Vec<i32>>>(3).unwrap_or_default())).await?;
    // After they were ended: if this is interrupted, all of it is repeated.
    client
        .execute(
            "UPDATE credit_migration.window_record SET restored_at = $2 WHERE migration_uid = $1 AND finished_at IS \
                NULL",
            &[&spec.uid, &restored],
        )
        .await?;
    Ok(Some(restored))
}

/// Ends the sessions that are known to have started between the write block and `until`: one that was connecting may
/// not have been visible the first time.
///
/// # Errors
/// Database errors.
pub async fn terminate_read_only_sessions(client: &Client, until: Timestamp) -> Result<(), Failure> {
    terminate_sessions(client, until, None).await
}

/// With `present_at_block`, the pids of the sessions that existed then, it also ends those whose start is not visible
/// and that did not exist.
async fn terminate_sessions(
    client: &Client,
    until: Timestamp,
    present_at_block: Option<Vec<i32>>,
) -> Result<(), Failure> {
    // The runner's own sessions are writable by their start-up options. Other programs of the migration role are not.
    let inside = format!(
        "FROM pg_catalog.pg_stat_activity a CROSS JOIN credit_migration.write_block g
         LEFT JOIN pg_catalog.pg_roles r ON r.oid = a.usesysid
         WHERE a.datname = current_database() AND a.pid <> pg_backend_pid()
           AND coalesce(a.backend_type, 'client backend') = 'client backend'
           AND NOT {OWN_SESSION}
           AND CASE WHEN a.backend_start IS NULL THEN coalesce(a.pid <> ALL ($2::integer[]), false)
                    ELSE a.backend_start BETWEEN g.blocked_at AND $1 END
           AND coalesce(r.rolsuper, false)"
    );
    let parameters: [&(dyn ToSql + Sync); 2] = [&until, &present_at_block];
    let superusers = client.query(&format!("SELECT {} {inside}", Session::COLUMNS), &parameters).await?;
    let left = superusers.iter().map(|row| (Session::read(row), false));
    let ended = terminate_all(client, &format!("{inside} IS FALSE"), &parameters, false).await?;
    for (session, _) in ended.into_iter().chain(left).filter(|(_, signalled)| !signalled) {
        tracing::warn!(
            pid = session.pid,
            role = session.role_name(),
            "a session that started inside the window was not ended: it is read-only, unless it is gone"
        );
    }
    Ok(())
}
