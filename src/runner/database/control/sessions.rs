//! Other sessions, as messages name them: by pid, role and application. Never by what they do: a query's text may hold
//! personal data.

use std::{
    fmt,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio_postgres::{Client, Row};

use crate::{
    runner::{Failure, database::connection::Target},
    shared::quoted::Quoted,
};

/// How often the holders of a lock are looked up while a statement waits for it.
const LOOKUP_INTERVAL: Duration = Duration::from_millis(100);

/// A session of the server. Its role and application are visible without any right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Session {
    pub(super) pid: i32,
    /// `None` for an autovacuum.
    pub(super) role: Option<String>,
    application: String,
}

impl Session {
    /// Columns of `pg_stat_activity a` that [`Session::read`] reads.
    pub(super) const COLUMNS: &str = "a.pid, a.usename::text, coalesce(a.application_name, '')";

    /// Its role; empty for an autovacuum.
    pub(super) fn role_name(&self) -> &str {
        self.role.as_deref().unwrap_or_default()
    }

    /// The session of a row with [`Session::COLUMNS`].
    pub(super) fn read(row: &Row) -> Self {
        Self { pid: row.get(0), role: row.get(1), application: row.get(2) }
    }
}

impl fmt::Display for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.role {
            Some(role) => write!(f, "pid {} (role {role}, application {})", self.pid, Quoted(&self.application)),
            None => write!(f, "pid {} (autovacuum)", self.pid),
        }
    }
}

/// Who kept a session waiting for a lock, as last seen. After the wait the server does not know it any more.
#[derive(Default)]
pub struct LockHolders(Mutex<Vec<String>>);

impl LockHolders {
    /// Looks up who blocks the session of this pid, on a session of its own, for as long as it is polled. The first
    /// look-up is after `delay`, so that a statement that does not wait needs no further connection.
    pub async fn watch(&self, target: &Target, pid: i32, delay: Duration) {
        tokio::time::sleep(delay).await;
        let client = loop {
            match target.connect("locks").await {
                Ok(client) => break client,
                Err(failure) => tracing::warn!(error = %failure, "the holders of locks are not looked up yet"),
            }
            tokio::time::sleep(LOOKUP_INTERVAL).await;
        };
        loop {
            match blockers(&client, pid).await {
                Ok(found) if found.is_empty() => {}
                Ok(found) => *self.0.lock().unwrap_or_else(PoisonError::into_inner) = found,
                // The SQL goes on without the names.
                Err(failure) => return tracing::warn!(error = %failure, "the holders of locks are not looked up"),
            }
            tokio::time::sleep(LOOKUP_INTERVAL).await;
        }
    }

    /// A failure that is due to a lock, with the sessions that had it.
    #[must_use]
    pub fn name_in(&self, failure: Failure) -> Failure {
        let found = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if found.is_empty() {
            return failure;
        }
        let Failure { reason, message } = failure;
        Failure::new(
            reason,
            format!("{message}; the lock was held by {}; next: end that transaction", found.join(", ")),
        )
    }
}

/// Sessions that block another one. A prepared transaction has none: the server gives it the pid 0.
async fn blockers(client: &Client, pid: i32) -> Result<Vec<String>, Failure> {
    let query = format!(
        "SELECT {} FROM (SELECT DISTINCT pid FROM unnest(pg_catalog.pg_blocking_pids($1)) AS pid) AS b
         LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = b.pid ORDER BY 1",
        Session::COLUMNS
    );
    let rows = client.query(&query, &[&pid]).await?;
    let name = |row: &Row| match row.get::<_, Option<i32>>(0) {
        Some(_) => Session::read(row).to_string(),
        None => "a prepared transaction (see pg_prepared_xacts)".to_owned(),
    };
    Ok(rows.iter().map(name).collect())
}
