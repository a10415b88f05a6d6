//! Positions in the write-ahead log, and the standbys that replay it.

use tokio_postgres::Client;

use crate::{
    api::{Replication, Standby},
    runner::{Failure, UnlessLost},
};

/// The server's position in the write-ahead log. `None` if it does not say.
///
/// # Errors
/// A lost connection.
pub async fn wal_position(client: &Client) -> Result<Option<String>, Failure> {
    let asked = client.query_one("SELECT pg_catalog.pg_current_wal_lsn()::text", &[]).await;
    match asked.map_err(Failure::from).unless_lost()? {
        Ok(row) => Ok(row.get(0)),
        Err(failure) => {
            tracing::warn!(error = %failure, "the position in the write-ahead log is not known");
            Ok(None)
        }
    }
}

/// Creates a restore point, if the role may. Returns whether it did.
///
/// # Errors
/// A lost connection.
pub async fn restore_point(client: &Client, name: &str) -> Result<bool, Failure> {
    let create = async {
        let may = "SELECT pg_catalog.has_function_privilege('pg_catalog.pg_create_restore_point(text)', 'EXECUTE')
        AND pg_catalog.current_setting('wal_level') <> 'minimal'";
        if !client.query_one(may, &[]).await?.get::<_, bool>(0) {
            return Ok(false);
        }
        client.execute("SELECT pg_catalog.pg_create_restore_point($1)", &[&name]).await?;
        Ok(true)
    };
    let created: Result<bool, Failure> = create.await;
    Ok(created.unless_lost()?.unwrap_or_else(|failure| {
        tracing::warn!(error = %failure, "no restore point is created");
        false
    }))
}

/// How far the streaming standbys have replayed up to a position. A receiver that replays nothing, such as
/// `pg_receivewal`, and a subscriber of logical replication are none.
///
/// # Errors
/// Database errors.
pub async fn replication(client: &Client, position: &str) -> Result<Replication, Failure> {
    let query = "SELECT coalesce(nullif(r.application_name, ''), host(r.client_addr), 'pid ' || r.pid),
                        greatest(pg_catalog.pg_wal_lsn_diff($1::text::pg_catalog.pg_lsn, r.replay_lsn), 0)::bigint,
                        r.state IS NOT NULL, r.state = 'streaming' AND r.replay_lsn IS NOT NULL
                 FROM pg_catalog.pg_stat_replication r
                 WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_replication_slots s
                                   WHERE s.active_pid = r.pid AND s.slot_type = 'logical')
                 ORDER BY 1";
    let rows = client.query(query, &[&position]).await?;
    // Of a role without pg_read_all_stats everything but their number is hidden.
    let visible = rows.iter().all(|row| row.get(2));
    let standbys = rows
        .iter()
        .filter(|row| row.get::<_, Option<bool>>(3) == Some(true))
        .map(|row| Standby { name: row.get(0), behind_bytes: u64::try_from(row.get::<_, i64>(1)).unwrap_or_default() });
    Ok(Replication { visible, standbys: standbys.collect() })
}
