//! What keeps a window from blocking writes: searched while they are open.
//!
//! A window ends the sessions that are in its way. What it cannot end would be found with writes blocked: a prepared
//! transaction, a vacuum against wraparound, a superuser's session. Of others that have locked a protected table for
//! long, such as a dump or a report, the forward window waits for the end. A rollback does not wait for those: it is
//! urgent.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tokio_postgres::{Client, Row, error::SqlState};

use super::{
    ControlSpec, OWN_SESSION, Table, protected, replication::replication, triggers::deadlock_timeout, with_children,
};
use crate::{
    api::{Direction, Obstacle, ObstacleKind, Standby},
    runner::Failure,
};

/// SQL: this mode of a lock keeps the window from taking its first one, `SHARE ROW EXCLUSIVE`.
const REFUSES: &str = "NOT IN ('AccessShareLock', 'RowShareLock')";

/// Transactions other than the session's that have locked one of the tables of `$1`, each with the first of them.
/// Everybody sees pid, role and name of a session and all locks, but the query and the start of a transaction only of
/// own roles: so a vacuum against wraparound is known by the age of its table.
/// A prepared transaction has no process; its number is that of its own lock. The window ends sessions of the runner's
/// own that only read.
fn holders_query() -> String {
    format!(
        "SELECT DISTINCT ON (l.virtualtransaction, l.pid)
        l.virtualtransaction, l.pid, t.name, coalesce(a.usename, p.owner)::text, a.application_name,
        coalesce(a.xact_start, p.prepared), p.transaction::text, coalesce(r.rolsuper, false),
        a.usename = session_user,
        coalesce(a.query, '') LIKE '%(to prevent wraparound)%'
            OR age(c.relfrozenxid) > least(current_setting('autovacuum_freeze_max_age')::bigint,
                (SELECT option_value::bigint FROM pg_catalog.pg_options_to_table(c.reloptions)
                 WHERE option_name = 'autovacuum_freeze_max_age'))
            OR mxid_age(c.relminmxid) > least(current_setting('autovacuum_multixact_freeze_max_age')::bigint,
                (SELECT option_value::bigint FROM pg_catalog.pg_options_to_table(c.reloptions)
                 WHERE option_name = 'autovacuum_multixact_freeze_max_age')),
        clock_timestamp(), a.pid IS NOT NULL,
        bool_or(l.mode {REFUSES}) OVER (PARTITION BY l.virtualtransaction, l.pid)
    FROM pg_catalog.pg_locks l
    JOIN unnest($1::text[], $2::text[]) AS t (sql, name) ON l.relation = pg_catalog.to_regclass(t.sql)::oid
    JOIN pg_catalog.pg_class c ON c.oid = l.relation
    LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
    LEFT JOIN pg_catalog.pg_roles r ON r.oid = a.usesysid
    LEFT JOIN pg_catalog.pg_locks x ON l.pid IS NULL AND x.pid IS NULL AND x.locktype = 'transactionid'
        AND x.virtualtransaction = l.virtualtransaction
    LEFT JOIN pg_catalog.pg_prepared_xacts p ON p.transaction = x.transactionid
    WHERE l.locktype = 'relation' AND l.granted
      AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
      AND l.pid IS DISTINCT FROM pg_backend_pid()
      AND (l.mode {REFUSES} OR NOT coalesce({OWN_SESSION}, false))
    ORDER BY 1, 2, t.name"
    )
}

/// Connections that this role may still open. Who is connected is visible to everybody.
const FREE_CONNECTIONS: &str = "SELECT greatest(0, least(
        current_setting('max_connections')::bigint - current_setting('superuser_reserved_connections')::bigint
            - coalesce(current_setting('reserved_connections', true), '0')::bigint - s.clients,
        CASE WHEN d.datconnlimit >= 0 THEN d.datconnlimit - s.here END,
        CASE WHEN r.rolconnlimit >= 0 THEN r.rolconnlimit - s.own END))
    FROM pg_catalog.pg_database d, pg_catalog.pg_roles r,
        (SELECT count(*) AS clients, count(*) FILTER (WHERE datname = current_database()) AS here,
                count(*) FILTER (WHERE usename = session_user) AS own
         FROM pg_catalog.pg_stat_activity
         WHERE usename IS NOT NULL AND coalesce(backend_type, 'client backend') = 'client backend') AS s
    WHERE d.datname = current_database() AND r.rolname = session_user";

/// How long a standby may take to replay what was committed.
const REPLAY_LIMIT: Duration = Duration::from_secs(Obstacle::REPLAY_SECONDS);

/// Finds obstacles, and remembers what only several searches show.
#[derive(Default)]
pub struct ObstacleFinder {
    /// When a transaction was first seen whose start is not visible.
    first_seen: HashMap<String, Timestamp>,
    /// Since when the lock is refused, and nothing is seen that refuses it.
    refused_since: Option<(Instant, Timestamp)>,
    /// Since when a position in the write-ahead log waits for the standbys.
    unreplayed: Option<(Instant, Timestamp, String)>,
    /// The last search has not shown if the standbys replay.
    awaits_standbys: bool,
}

/// A transaction that has locked a protected table.
struct Holder {
    transaction: String,
    found: Obstacle,
    superuser: bool,
    own_role: bool,
    old_table: bool,
    /// Its process is seen.
    alive: bool,
    /// With its lock the one of the window is refused.
    refuses: bool,
    now: Timestamp,
}

impl Holder {
    fn read(row: &Row) -> Self {
        let number: Option<String> = row.get(6);
        let found = Obstacle {
            table: row.get(2),
            pid: row.get(1),
            role: row.get(3),
            application_name: row.get(4),
            transaction: number,
            since: row.get(5),
            ..Obstacle::new(ObstacleKind::LongTransaction)
        };
        Self {
            transaction: row.get(0),
            found,
            superuser: row.get(7),
            own_role: row.get::<_, Option<bool>>(8).unwrap_or_default(),
            old_table: row.get::<_, Option<bool>>(9).unwrap_or_default(),
            alive: row.get(11),
            refuses: row.get(12),
            now: row.get(10),
        }
    }

    /// What kind of obstacle it is; `None` if the window ends it, or it ends soon.
    fn kind(&self, spec: &ControlSpec, direction: Direction, deadlock_timeout: Duration) -> Option<ObstacleKind> {
        let Obstacle { pid, role, since, .. } = &self.found;
        let Some(role) = role.as_ref().filter(|_| pid.is_some()) else {
            let gives_way = !self.old_table && spec.lock_timeout > deadlock_timeout;
            return match (pid, &self.found.transaction) {
                (None, Some(_)) => Some(ObstacleKind::PreparedTransaction),
                // No role, so it is an autovacuum.
                (Some(_), _) if self.alive && !gives_way => Some(ObstacleKind::Vacuum),
                _ => None,
            };
        };
        let age = since.map(|since| self.now.duration_since(since));
        let long = age.is_some_and(|age| Duration::try_from(age).is_ok_and(|age| age >= spec.long_transaction));
        let ended = spec.application_roles.contains(role);
        let waits = direction == Direction::Forward || self.own_role;
        match (self.superuser, long && waits && !ended) {
            (true, _) => Some(ObstacleKind::SuperuserSession),
            (false, true) => Some(ObstacleKind::LongTransaction),
            (false, false) => None,
        }
    }
}

impl ObstacleFinder {
    /// Searches once. `sessions_open`: the window has all connections that it needs. The lock of the protected tables
    /// is tried, without waiting, and released at once.
    ///
    /// # Errors
    /// Database errors.
    pub async fn find(
        &mut self,
        client: &Client,
        spec: &ControlSpec,
        direction: Direction,
        sessions_open: bool,
    ) -> Result<Vec<Obstacle>, Failure> {
        // A search that fails is an obstacle by itself.
        self.awaits_standbys = false;
        let tables = with_children(client, &protected(client, spec).await?).await?;
        let refused = lock_is_refused(client, &tables).await?;
        let holders = self.holders(client, &tables).await?;
        let deadlock_timeout = deadlock_timeout(client).await?;
        let mut found: Vec<Obstacle> = holders
            .iter()
            .filter_map(|holder| {
                Some(Obstacle { kind: holder.kind(spec, direction, deadlock_timeout)?, ..holder.found.clone() })
            })
            .collect();
        let seen =
            refused && (holders.iter().any(|holder| holder.refuses) || lock_is_waited_for(client, &tables).await?);
        if !refused || seen {
            self.refused_since = None;
        } else {
            let now: Timestamp = client.query_one("SELECT clock_timestamp()", &[]).await?.get(0);
            let (start, since) = *self.refused_since.get_or_insert((Instant::now(), now));
            if start.elapsed() >= spec.long_transaction {
                found.push(Obstacle { since: Some(since), ..Obstacle::new(ObstacleKind::LockRefused) });
            }
        }
        if direction == Direction::Forward {
            found.extend(self.standbys_behind(client).await?);
        }
        if !sessions_open {
            let free: i64 = client.query_one(FREE_CONNECTIONS, &[]).await?.get(0);
            found.push(Obstacle::too_few_connections(u32::try_from(free).unwrap_or_default()));
        }
        found.sort_by_key(|obstacle| (obstacle.kind, obstacle.since, obstacle.pid));
        found.truncate(Obstacle::MAX_REPORTED);
        Ok(found)
    }

    /// Whether the next search has yet to show if the standbys replay.
    pub fn awaits_standbys(&self) -> bool {
        self.awaits_standbys
    }

    /// Standbys for which the switch would wait: they have not replayed what was committed for long. A role that cannot
    /// see them waits for none.
    async fn standbys_behind(&mut self, client: &Client) -> Result<Vec<Obstacle>, Failure> {
        // What a standby with a delay waits with is a commit; the next one ends what comes before it.
        client.batch_execute("SELECT pg_catalog.pg_current_xact_id()").await?;
        if self.unreplayed.is_none() {
            let now = "SELECT clock_timestamp(), pg_catalog.pg_current_wal_insert_lsn()::text";
            let row = client.query_one(now, &[]).await?;
            self.unreplayed = Some((Instant::now(), row.get(0), row.get(1)));
        }
        let Some((asked, since, position)) = &self.unreplayed else { return Ok(Vec::new()) };
        let (long, since) = (asked.elapsed() >= REPLAY_LIMIT, *since);
        let mut behind = replication(client, position).await?.standbys;
        behind.retain(|standby| standby.behind_bytes > 0);
        // Not asked of the clock again: it may have passed the limit since.
        self.awaits_standbys = !behind.is_empty() && !long;
        if behind.is_empty() {
            self.unreplayed = None;
        }
        let obstacle = |Standby { name, behind_bytes }| Obstacle {
            application_name: Some(name),
            behind_bytes: Some(behind_bytes),
            since: Some(since),
            ..Obstacle::new(ObstacleKind::StandbyNotReplaying)
        };
        Ok(behind.into_iter().filter(|_| long).map(obstacle).collect())
    }

    async fn holders(&mut self, client: &Client, tables: &[Table]) -> Result<Vec<Holder>, Failure> {
        let (sql, names): (Vec<String>, Vec<String>) =
            tables.iter().map(|table| (table.sql(), table.to_string())).unzip();
        let rows = client.query(&holders_query(), &[&sql, &names]).await?;
        let mut holders: Vec<Holder> = rows.iter().map(Holder::read).collect();
        self.first_seen.retain(|transaction, _| holders.iter().any(|holder| holder.transaction == *transaction));
        for holder in &mut holders {
            let first_seen = *self.first_seen.entry(holder.transaction.clone()).or_insert(holder.now);
            holder.found.since.get_or_insert(first_seen);
        }
        Ok(holders)
    }
}

/// Whether another session waits for a lock with which that of the window is refused: behind one that only reads, which
/// the window can end.
async fn lock_is_waited_for(client: &Client, tables: &[Table]) -> Result<bool, Failure> {
    let names: Vec<String> = tables.iter().map(Table::sql).collect();
    let query = format!(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_locks l WHERE l.locktype = 'relation' AND NOT l.granted
           AND l.mode {REFUSES}
           AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
           AND l.relation = ANY (SELECT pg_catalog.to_regclass(name)::oid FROM unnest($1::text[]) AS name))"
    );
    Ok(client.query_one(&query, &[&names]).await?.get(0))
}

/// Whether the lock that the window takes first is refused now.
async fn lock_is_refused(client: &Client, tables: &[Table]) -> Result<bool, Failure> {
    if tables.is_empty() {
        return Ok(false);
    }
    let names: Vec<String> = tables.iter().map(Table::sql).collect();
    // In one message: the lock lasts for no round trip.
    let attempt = format!("BEGIN; LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE NOWAIT; ROLLBACK", names.join(", "));
    let Err(error) = client.batch_execute(&attempt).await else { return Ok(false) };
    if error.as_db_error().is_some() {
        client.batch_execute("ROLLBACK").await?;
    }
    match error.code() {
        Some(&SqlState::LOCK_NOT_AVAILABLE) => Ok(true),
        _ => Err(Failure::from(&error)),
    }
}
