//! What SQL does outside of its database, although its text does not show it: dynamic SQL, functions. The server's
//! shared catalogs show it: a transaction that writes to one has it locked to its end. So what other sessions do at the
//! same time does not count.

use std::collections::BTreeSet;

use tokio_postgres::Transaction;

use super::StopSignal;
use crate::{
    api::Reason,
    runner::{Failure, database::connection::USE_OWN_SEARCH_PATH_SQL},
};

/// Catalogs that all databases of a server share, as far as migrations have no business with them.
const WRITTEN_CATALOGS: &str = "SELECT DISTINCT c.relname::text FROM pg_catalog.pg_locks l
    JOIN pg_catalog.pg_class c ON c.oid = l.relation
    WHERE l.pid = pg_catalog.pg_backend_pid() AND l.locktype = 'relation' AND l.database = 0 AND l.granted
      AND l.mode NOT IN ('AccessShareLock', 'RowShareLock')
      AND c.relname::text IN ('pg_authid', 'pg_auth_members', 'pg_database', 'pg_db_role_setting', 'pg_parameter_acl',
                              'pg_replication_origin', 'pg_subscription', 'pg_tablespace')
    ORDER BY 1";

/// Roles, memberships and settings, one line each: what it is, and its state. Passwords are not readable.
const SHARED_OBJECTS: &str = "SELECT 'role ' || r.rolname, r::text FROM pg_catalog.pg_roles r
    UNION ALL
    SELECT 'membership of ' || m.member::regrole || ' in ' || m.roleid::regrole, m.admin_option::text
    FROM pg_catalog.pg_auth_members m
    UNION ALL
    SELECT 'settings of ' || CASE s.setrole WHEN 0 THEN 'all roles' ELSE 'role ' || s.setrole::regrole END
           || coalesce(' in database ' || d.datname, ''), s.setconfig::text
    FROM pg_catalog.pg_db_role_setting s LEFT JOIN pg_catalog.pg_database d ON d.oid = s.setdatabase";

/// The shared objects of the server at one moment.
pub struct SharedObjects(BTreeSet<(String, String)>);

impl SharedObjects {
    /// Reads them at the start of a transaction.
    ///
    /// # Errors
    /// Database errors.
    pub async fn read(tx: &Transaction<'_>) -> Result<Self, Failure> {
        let rows = tx.query(SHARED_OBJECTS, &[]).await?;
        let line = |row: &tokio_postgres::Row| (row.get(0), row.get::<_, Option<String>>(1).unwrap_or_default());
        Ok(Self(rows.iter().map(line).collect()))
    }

    /// Commits a transaction that has written to no shared catalog; `sql` names what was run in it. It is the last
    /// check: queries and deferred triggers have effects, too.
    ///
    /// # Errors
    /// `SqlOutsideDatabase` with the names of what differs from this; what a deferred constraint fails with;
    /// `DeadlinePassed` when stopped; database errors.
    pub async fn commit_unchanged(self, tx: Transaction<'_>, sql: &str, stop: &StopSignal) -> Result<(), Failure> {
        // Deferred triggers are the spec's own: they find what its SQL finds.
        tx.batch_execute(&format!(
            "{USE_OWN_SEARCH_PATH_SQL}; SET CONSTRAINTS ALL IMMEDIATE; SET LOCAL search_path = pg_catalog"
        ))
        .await?;
        let rows = tx.query(WRITTEN_CATALOGS, &[]).await?;
        if rows.is_empty() {
            // Deferred triggers may have taken long.
            stop.check()?;
            return tx.commit().await.map_err(Failure::from);
        }
        let written: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
        let now = Self::read(&tx).await?;
        let names: BTreeSet<&str> = self.0.symmetric_difference(&now.0).map(|(name, _)| name.as_str()).collect();
        let names = match names.is_empty() {
            true => "no role, membership or setting differs".to_owned(),
            false => names.into_iter().collect::<Vec<_>>().join(", "),
        };
        let message = format!(
            "{sql} changes what all databases of the server share ({}): {names}; nothing of it remains; \
             next: do that before or after the migration, and remove it from the SQL",
            written.join(", ")
        );
        Err(Failure::new(Reason::SqlOutsideDatabase, message))
    }
}
