//! Schema, tables and functions, and the claim of the database for one migration.

use tokio_postgres::{Client, GenericClient};

use super::{
    BalancesTable, ControlSpec, LOCK_CHANGE, LOCK_CLASS, define, exists,
    functions::{block_writes_function, create_track_changes_function},
    ident,
    owner::{check_schema, control_role, revoke_foreign_rights},
};
use crate::{api::Reason, runner::Failure, shared::quoted::Quoted};

const TABLES: &str = "
CREATE SCHEMA IF NOT EXISTS credit_migration;
-- Which migration this database belongs to: at most one row.
CREATE TABLE IF NOT EXISTS credit_migration.claim (
    only_one boolean PRIMARY KEY DEFAULT true CHECK (only_one),
    migration_uid text NOT NULL, migration_name text NOT NULL, since timestamptz NOT NULL DEFAULT clock_timestamp());
-- At most one row; without one writes are allowed, so that they are in a restored copy (dumps leave out the data).
CREATE TABLE IF NOT EXISTS credit_migration.write_block (
    only_one boolean PRIMARY KEY DEFAULT true CHECK (only_one),
    blocked boolean NOT NULL, migration_uid text NOT NULL, blocked_at timestamptz, unblocked_at timestamptz, deadline \
    timestamptz,
    pid integer, backend_start timestamptz);
-- The transaction that may write while writes are blocked: it inserts its number, and deletes it before it commits.
CREATE TABLE IF NOT EXISTS credit_migration.exempt_transaction (xid text PRIMARY KEY);
-- One row for each user, with a new number at each write; user_id NULL means every user (TRUNCATE). The key is for \
logical
-- replication, which needs one.
CREATE TABLE IF NOT EXISTS credit_migration.changed_users (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, user_id \
text UNIQUE);
CREATE TABLE IF NOT EXISTS credit_migration.baseline (
    migration_uid text, user_id text, balance numeric, PRIMARY KEY (migration_uid, user_id));
-- When each balance that was not tracked was that of the baseline, with its users and their total, and by which facts
-- that has remained so: at most one row.
CREATE TABLE IF NOT EXISTS credit_migration.compared (
    migration_uid text PRIMARY KEY, facts text NOT NULL, users bigint NOT NULL, total numeric NOT NULL,
    compared_at timestamptz NOT NULL DEFAULT clock_timestamp());
-- Users whose balance was written since the cutover, as far as a rollback has emptied the change tracking.
CREATE TABLE IF NOT EXISTS credit_migration.written_users (
    migration_uid text, user_id text, PRIMARY KEY (migration_uid, user_id));
-- Users whose balance was not that of the baseline when the window last compared it; at most 10,000. NULL: none.
CREATE TABLE IF NOT EXISTS credit_migration.unexplained_balances (
    migration_uid text, user_id text, expected numeric, found numeric, compared_at timestamptz NOT NULL,
    PRIMARY KEY (migration_uid, user_id));
-- The schema that the baseline was taken of: SHA-256 of each object.
CREATE TABLE IF NOT EXISTS credit_migration.schema_objects (
    migration_uid text, object text, sha256 text NOT NULL, PRIMARY KEY (migration_uid, object));
-- Tables that are moved out of the way: where they were, and where they are. Cleanup leaves them: the decision to keep
-- has yet to be a while ago.
CREATE TABLE IF NOT EXISTS credit_migration.parked_tables (
    migration_uid text, place bigint NOT NULL, schema text, name text, parked_in text NOT NULL,
    schema_is_new boolean NOT NULL, parked_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (migration_uid, schema, name));
-- What was granted on them and their sequences, in the order of the lists of grants. grantor NULL: the owner.
-- grantee NULL: PUBLIC.
CREATE TABLE IF NOT EXISTS credit_migration.parked_grants (
    migration_uid text, place bigint, kind text NOT NULL, schema text NOT NULL, name text NOT NULL, column_name text,
    grantor text, grantee text, privilege text NOT NULL, grantable boolean NOT NULL,
    PRIMARY KEY (migration_uid, place));
-- texts: of each statement its number, how it starts, and how long it took. started_at, xid: of the transaction that
-- ran the SQL and inserts this row; xid is the xmin of the rows that it wrote. snapshot: after that transaction.
-- down_sql: as it was approved. All columns are made here: to add one later would wait for each dump of the database.
CREATE TABLE IF NOT EXISTS credit_migration.ledger (
    migration_uid text, step text CHECK (step IN ('up', 'down')), sql_sha256 text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp(), statements integer NOT NULL, seconds double precision \
    NOT NULL,
    reconciled_users bigint NOT NULL, texts jsonb, started_at timestamptz, xid text, snapshot text, down_sql text,
    PRIMARY KEY (migration_uid, step));
-- sessions: that existed when writes were blocked; restored_at: since when the read-only default is restored.
CREATE TABLE IF NOT EXISTS credit_migration.window_record (
    migration_uid text, direction text CHECK (direction IN ('up', 'down')), attempt integer NOT NULL,
    started_at timestamptz NOT NULL, deadline timestamptz NOT NULL, prior_read_only text, switch_acknowledged_at \
    timestamptz,
    finished_at timestamptz, outcome text, reason text, message text, progress jsonb, sessions integer[], \
    restored_at timestamptz,
    PRIMARY KEY (migration_uid, direction));
REVOKE ALL ON SCHEMA credit_migration FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA credit_migration FROM PUBLIC;
";

/// Whether this migration owns the database. An error if another does.
async fn owns_database(client: &impl GenericClient, spec: &ControlSpec) -> Result<bool, Failure> {
    if !exists(client, "claim").await? {
        return Ok(false);
    }
    check_owner(client, spec).await?;
    let row = client
        .query_one("SELECT EXISTS (SELECT FROM credit_migration.claim WHERE migration_uid = $1)", &[&spec.uid])
        .await?;
    Ok(row.get(0))
}

/// Creates schema, tables and functions, and claims the database if `claim`, in one transaction.
pub(super) async fn create_schema(
    client: &mut Client,
    spec: &ControlSpec,
    balances: &BalancesTable,
    claim: bool,
) -> Result<(), Failure> {
    let tx = client.transaction().await?;
    // Two runners that create the same objects at once would fail with errors that no one understands.
    tx.batch_execute(&format!(
        "SET LOCAL client_min_messages = warning; SELECT pg_catalog.pg_advisory_xact_lock({LOCK_CLASS}, {LOCK_CHANGE})"
    ))
    .await?;
    check_schema(&tx, spec).await?;
    if let Some(owner) = control_role(&tx, spec).await? {
        tx.batch_execute(&format!("SET LOCAL ROLE {}", ident(&owner))).await?;
    }
    // Under the lock under which Cleanup deletes the claim.
    if !claim && !owns_database(&tx, spec).await? {
        let message =
            "triggers and baseline of this migration do not exist any more; next: let the Backup step run again";
        return Err(Failure::new(Reason::BalancesUnexplained, message));
    }
    define(&tx, TABLES).await?;
    let missing = "SELECT name FROM unnest($1::text[]) AS name
        WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_roles r WHERE r.rolname::text = name)";
    if let Some(row) = tx.query(missing, &[&spec.application_roles]).await?.first() {
        let message = format!(
            "role {} does not exist; next: correct spec.database.applicationRoles",
            Quoted(row.get::<_, &str>(0))
        );
        return Err(Failure::new(Reason::RoleMissing, message));
    }
    tx.execute(
        "INSERT INTO credit_migration.claim (migration_uid, migration_name) VALUES ($1, $2) ON CONFLICT DO NOTHING",
        &[&spec.uid, &spec.name],
    )
    .await?;
    let owner = tx
        .query_one(
            "SELECT migration_uid, migration_name, to_char(since AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') \
                FROM credit_migration.claim",
            &[],
        )
        .await?;
    if owner.get::<_, &str>(0) != spec.uid {
        let (uid, name, since): (&str, &str, &str) = (owner.get(0), owner.get(1), owner.get(2));
        let message = format!(
            "the database is claimed by migration {name} (uid {uid}) since {since}; next: let it end, or abort it with \
                a \
             MigrationDecision"
        );
        return Err(Failure::new(Reason::DatabaseInUse, message));
    }
    define(&tx, &block_writes_function()).await?;
    create_track_changes_function(&tx, balances).await?;
    revoke_foreign_rights(&tx).await?;
    tx.commit().await.map_err(Failure::from)
}

/// Inside a transaction: an error if another migration owns the database.
pub(crate) async fn check_owner(client: &impl GenericClient, spec: &ControlSpec) -> Result<(), Failure> {
    let row = client
        .query_opt(
            "SELECT migration_uid, migration_name FROM credit_migration.claim WHERE migration_uid <> $1",
            &[&spec.uid],
        )
        .await?;
    match row {
        None => Ok(()),
        Some(row) => {
            let message = format!(
                "the database is claimed by migration {} (uid {})",
                row.get::<_, &str>(1),
                row.get::<_, &str>(0)
            );
            Err(Failure::new(Reason::DatabaseInUse, message))
        }
    }
}
