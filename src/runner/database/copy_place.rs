//! Whether the copy of the database for the rehearsals can be made where the spec wants it: next to the original, or on
//! another server. Asked by Preflight, and again before each copy.
//!
//! # Contract
//! - Free space cannot be seen by SQL: `rehearsal.maxSize` says how much there is.
//! - On another server are all roles that the database names. Which roles are members of which is that server's own.

use tokio_postgres::Client;

use super::{
    connection::Target,
    control::{self, ident},
    version::{SET_ROLE_RIGHT, SUPPORTED, ServerVersion},
};
use crate::{
    api::{Reason, Standby, bytes_text},
    runner::Failure,
    shared::quantity,
};

/// How far a standby may be behind before a copy is written, in bytes.
const MAX_STANDBY_LAG: u64 = 1 << 30;
/// How many of a kind a message names.
const MAX_NAMED: usize = 10;

/// What a copy next to the original needs, and who waits for its WAL.
#[derive(Clone, Debug, Default)]
struct Room {
    /// Bytes of the database.
    size: u64,
    slots: Vec<Slot>,
    standbys: Vec<Standby>,
    /// Whether the role may see the standbys.
    visible: bool,
}

/// A replication slot.
#[derive(Clone, Debug)]
struct Slot {
    name: String,
    active: bool,
    /// Bytes of WAL that it keeps.
    kept: u64,
    /// Bytes that may be written before it is lost; `None` without `max_slot_wal_keep_size`.
    safe: Option<u64>,
}

/// The copy can be made next to the original, whose session is `client`. Says the figures.
///
/// # Errors
/// `CopyTooRisky` with observed value and limit; those of a database error.
pub async fn next_to_original(client: &Client, max_size: &str) -> Result<String, Failure> {
    let count = |n: i64| u64::try_from(n).unwrap_or(0);
    let size = client.query_one("SELECT pg_database_size(current_database())", &[]).await?;
    let slots = "SELECT slot_name::text, active,
                        coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0)::bigint, safe_wal_size
                 FROM pg_replication_slots WHERE restart_lsn IS NOT NULL ORDER BY 1";
    let slots = client.query(slots, &[]).await?;
    let slot = |row: &tokio_postgres::Row| Slot {
        name: row.get(0),
        active: row.get(1),
        kept: count(row.get(2)),
        safe: row.get::<_, Option<i64>>(3).map(count),
    };
    let replication = match control::wal_position(client).await? {
        Some(position) => control::replication(client, &position).await?,
        None => Default::default(),
    };
    let room = Room {
        size: count(size.get(0)),
        slots: slots.iter().map(slot).collect(),
        standbys: replication.standbys,
        visible: replication.visible,
    };
    room.judge(max_size).map_err(|why| {
        let next = "set spec.rehearsal.connection to another server, or, if there is room, spec.rehearsal.maxSize";
        Failure::new(Reason::CopyTooRisky, format!("{why}; next: {next}"))
    })
}

impl Room {
    /// The figures, or why the copy must not be made here.
    fn judge(&self, max_size: &str) -> Result<String, String> {
        let Self { size, slots, standbys, visible } = self;
        let limit = quantity::milli(max_size).and_then(|milli| u64::try_from(milli / 1000).ok()).unwrap_or(u64::MAX);
        let (size_text, limit_text) = (bytes_text(*size), format!("limit {max_size} (spec.rehearsal.maxSize)"));
        if *size > limit {
            return Err(format!("a copy next to the original needs {size_text}, {limit_text}"));
        }
        for Slot { name, active, kept, safe } in slots {
            // The copy is written to the WAL, too.
            if let Some(safe) = safe.filter(|safe| safe < size) {
                return Err(format!(
                    "slot {name} is lost after {} more of WAL, limit {size_text}, which the copy writes \
                        (max_slot_wal_keep_size)",
                    bytes_text(safe)
                ));
            }
            let needed = size.saturating_mul(2).saturating_add(*kept);
            if !active && safe.is_none() && needed > limit {
                return Err(format!(
                    "slot {name}, which no one reads, keeps {} of WAL and would keep that of the copy: {} with the \
                        copy, {limit_text}",
                    bytes_text(*kept),
                    bytes_text(needed)
                ));
            }
        }
        if let Some(Standby { name, behind_bytes }) = standbys.iter().find(|one| one.behind_bytes > MAX_STANDBY_LAG) {
            let (behind, limit) = (bytes_text(*behind_bytes), bytes_text(MAX_STANDBY_LAG));
            return Err(format!(
                "standby {name} is {behind} of WAL behind, limit {limit}; it would have the copy, too"
            ));
        }
        let kept = slots.iter().map(|slot| slot.kept).max().unwrap_or(0);
        let behind = match (visible, standbys.iter().map(|standby| standby.behind_bytes).max()) {
            (false, _) => "standbys cannot be seen (pg_read_all_stats)".to_owned(),
            (true, Some(bytes)) => format!("{} standbys, at most {} behind", standbys.len(), bytes_text(bytes)),
            (true, None) => "no standby".to_owned(),
        };
        Ok(format!(
            "next to the original: {size_text}, {limit_text}; {} slots, which keep at most {} of WAL; {behind}; free \
                space cannot be seen by SQL",
            slots.len(),
            bytes_text(kept)
        ))
    }
}

/// The copy can be made on another server, to which `target` leads and where `other` is a session. Says the figures.
///
/// # Errors
/// `ServerTooOld`, `ServerTooNew`, `HostUnreachable` if it is a standby, `CopyTooRisky` if it is the original's server,
/// `ExtensionMissing`, `RoleMissing`,
/// `PrivilegeMissing`; those of a database error.
pub async fn elsewhere(
    original: &Client,
    other: &Client,
    target: &Target,
    application_roles: &[String],
) -> Result<String, Failure> {
    let (from, to) = (ServerVersion::of(original).await?, ServerVersion::of(other).await?);
    fits(from, to)?;
    if other.query_one("SELECT pg_is_in_recovery()", &[]).await?.get(0) {
        let message = "spec.rehearsal.connection leads to a standby; next: put the primary's address into its Secret";
        return Err(Failure::new(Reason::HostUnreachable, message));
    }
    let identifier = "SELECT system_identifier FROM pg_control_system()";
    let [own, its]: [i64; 2] =
        [original.query_one(identifier, &[]).await?.get(0), other.query_one(identifier, &[]).await?.get(0)];
    if own == its {
        let message = "spec.rehearsal.connection leads to the original's own server (one system identifier); next: \
            leave it out, so that disk, slots and standbys are checked, or name another server";
        return Err(Failure::new(Reason::CopyTooRisky, message));
    }
    let extensions = original.query("SELECT extname::text FROM pg_extension ORDER BY 1", &[]).await?;
    let extensions: Vec<String> = extensions.iter().map(|row| row.get(0)).collect();
    let query = "SELECT name FROM unnest($1::text[]) AS name
                 WHERE name NOT IN (SELECT name::text FROM pg_available_extensions) ORDER BY 1";
    if let Some(missing) = named(other, query, &extensions).await? {
        let message = format!(
            "the server of spec.rehearsal.connection has no extension {missing}; next: install it there, or choose \
                another server"
        );
        return Err(Failure::new(Reason::ExtensionMissing, message));
    }
    let roles = roles_of(original, application_roles).await?;
    let query = "SELECT name FROM unnest($1::text[]) AS name
                 WHERE name NOT IN (SELECT rolname::text FROM pg_roles) ORDER BY 1";
    if let Some(missing) = named(other, query, &roles).await? {
        let message = format!(
            "the server of spec.rehearsal.connection has no role {missing}, and the database has owners or rights of \
                it; next: CREATE ROLE them there, without LOGIN"
        );
        return Err(Failure::new(Reason::RoleMissing, message));
    }
    let query = format!(
        "SELECT rolname::text FROM pg_roles
         WHERE rolname::text = ANY ($1) AND NOT pg_has_role(session_user, oid, {SET_ROLE_RIGHT}) ORDER BY 1"
    );
    let application_roles = application_roles.to_vec();
    if let Some(missing) = named(other, &query, &application_roles).await? {
        let message = format!(
            "role {0} of spec.rehearsal.connection is no member of {missing}; next: GRANT them TO {1}; there",
            target.user(),
            ident(target.user())
        );
        return Err(Failure::new(Reason::PrivilegeMissing, message));
    }
    let size = original.query_one("SELECT pg_database_size(current_database())", &[]).await?;
    Ok(format!(
        "on another server, {to} at {}: {} of {from}; {} roles and {} extensions are there; memberships are those of \
            that server; its free space cannot be seen by SQL",
        target.host_port(),
        bytes_text(u64::try_from(size.get::<_, i64>(0)).unwrap_or(0)),
        roles.len(),
        extensions.len()
    ))
}

/// The first names that a query finds, `None` if it finds none.
async fn named(client: &Client, query: &str, names: &Vec<String>) -> Result<Option<String>, Failure> {
    let found = client.query(query, &[names]).await?;
    let more = found.len().saturating_sub(MAX_NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let first: Vec<&str> = found.iter().take(MAX_NAMED).map(|row| row.get(0)).collect();
    Ok((!first.is_empty()).then(|| format!("{}{more}", first.join(", "))))
}

/// Roles that the database names: owners, and who has rights or policies.
async fn roles_of(original: &Client, application_roles: &[String]) -> Result<Vec<String>, Failure> {
    let query = "SELECT DISTINCT r.rolname::text FROM pg_roles AS r
                 WHERE r.rolname::text = ANY ($1) OR r.oid IN (
                     SELECT d.refobjid FROM pg_shdepend AS d JOIN pg_database AS b ON b.datname = current_database()
                     WHERE d.refclassid = 'pg_authid'::regclass AND d.deptype IN ('o', 'a', 'r')
                       AND (d.dbid = b.oid OR d.classid = 'pg_database'::regclass AND d.objid = b.oid))
                 ORDER BY 1";
    let rows = original.query(query, &[&application_roles.to_vec()]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// A dump can be restored by a server of the same or a newer version.
fn fits(original: ServerVersion, other: ServerVersion) -> Result<(), Failure> {
    let found = format!("the server of spec.rehearsal.connection is {other}, the original {original}");
    let newest = *SUPPORTED.end();
    if other.major < original.major {
        let message = format!("{found}: it must not be older; next: choose a server of {original} or newer");
        return Err(Failure::new(Reason::ServerTooOld, message));
    }
    if other.major > newest {
        let message = format!("{found}, the newest supported is {newest}; next: choose an older server");
        return Err(Failure::new(Reason::ServerTooNew, message));
    }
    Ok(())
}

/// The role of the session may create the scratch database.
///
/// # Errors
/// `PrivilegeMissing`; those of a database error.
pub async fn may_create(client: &Client, target: &Target) -> Result<String, Failure> {
    let query = "SELECT rolcreatedb OR rolsuper FROM pg_roles WHERE rolname = current_user";
    match client.query_one(query, &[]).await?.get(0) {
        true => Ok("granted".to_owned()),
        false => Err(Failure::new(
            Reason::PrivilegeMissing,
            format!(
                "role {} may not create the scratch database; next: ALTER ROLE {} CREATEDB;",
                target.user(),
                ident(target.user())
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GI: u64 = 1 << 30;

    fn slot(active: bool, kept: u64, safe: Option<u64>) -> Slot {
        Slot { name: "s".to_owned(), active, kept, safe }
    }

    #[rstest::rstest]
    #[case::small(GI, vec![], 0, None)]
    #[case::large(11 * GI, vec![], 0, Some("needs 11.8 GB, limit 10Gi (spec.rehearsal.maxSize)"))]
    #[case::read(4 * GI, vec![slot(true, 9 * GI, None)], 0, None)]
    #[case::not_read(4 * GI, vec![slot(false, 3 * GI, None)], 0, Some("slot s, which no one reads, keeps 3.2 GB"))]
    #[case::not_read_and_small(4 * GI, vec![slot(false, GI, None)], 0, None)]
    #[case::lost(4 * GI, vec![slot(true, 0, Some(GI))], 0, Some("slot s is lost after 1.0 GB more of WAL"))]
    #[case::safe(4 * GI, vec![slot(false, 9 * GI, Some(5 * GI))], 0, None)]
    #[case::behind(GI, vec![], 2 * GI, Some("standby a is 2.1 GB of WAL behind, limit 1.0 GB"))]
    fn a_copy_next_to_the_original_has_limits(
        #[case] size: u64,
        #[case] slots: Vec<Slot>,
        #[case] behind_bytes: u64,
        #[case] refused: Option<&str>,
    ) {
        let standbys = vec![Standby { name: "a".to_owned(), behind_bytes }];
        let judged = Room { size, slots, standbys, visible: true }.judge("10Gi");
        match refused {
            Some(words) => assert!(judged.clone().unwrap_err().contains(words), "{judged:?}"),
            None => assert!(judged.clone().unwrap().contains("free space cannot be seen"), "{judged:?}"),
        }
    }

    #[test]
    fn only_a_server_of_the_same_or_a_newer_version_fits() {
        let reason = |from, to| {
            fits(ServerVersion { major: from }, ServerVersion { major: to }).err().map(|failure| failure.reason)
        };
        let newest = *SUPPORTED.end();
        assert_eq!((reason(15, 15), reason(15, newest)), (None, None));
        assert_eq!(reason(16, 15), Some(Reason::ServerTooOld));
        assert_eq!(reason(15, newest + 1), Some(Reason::ServerTooNew));
    }
}
