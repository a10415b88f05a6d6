//! The functions of the triggers.

use tokio_postgres::GenericClient;

use super::{BalancesTable, LOCK_CLASS, LOCK_WRITE_BLOCK, define};
use crate::runner::Failure;

/// Function of the write-block trigger. While writes are blocked it lets pass one transaction: that of the server
/// process which the row of the write block names, if the transaction has written its own number into
/// `credit_migration.exempt_transaction`. Only roles that may act as the functions' owner can write there, under
/// whatever login; no other transaction sees the number, and none gets it again. So neither the name of a login nor
/// the start of a process matters, which the owner cannot see of a login that it is no member of. The row is read
/// before the lock is tried, so that refused writers never have the lock which the window is about to take.
pub(super) fn block_writes_function() -> String {
    format!(
        "CREATE OR REPLACE FUNCTION credit_migration.block_writes() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $block_writes$
DECLARE
    block record;
BEGIN
    SELECT g.migration_uid, g.deadline, g.pid INTO block FROM credit_migration.write_block AS g WHERE \
    g.blocked;
    IF FOUND THEN
        IF block.pid = pg_backend_pid()
           AND EXISTS (SELECT FROM credit_migration.exempt_transaction AS e
                       WHERE e.xid = pg_current_xact_id_if_assigned()::text) THEN
            RETURN NULL;
        END IF;
        RAISE EXCEPTION USING ERRCODE = '25006', MESSAGE = format('writes to %I.%I are blocked by migration %s until \
        at most %s',
            TG_TABLE_SCHEMA, TG_TABLE_NAME, block.migration_uid,
            to_char(block.deadline AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'));
    END IF;
    -- A snapshot from before the write block never shows it; a lock does not depend on snapshots.
    IF NOT pg_try_advisory_xact_lock_shared({LOCK_CLASS}, {LOCK_WRITE_BLOCK}) THEN
        RAISE EXCEPTION USING ERRCODE = '25006',
            MESSAGE = format('writes to %I.%I are blocked by a credit migration', TG_TABLE_SCHEMA, TG_TABLE_NAME);
    END IF;
    RETURN NULL;
END
$block_writes$;
REVOKE ALL ON FUNCTION credit_migration.block_writes() FROM PUBLIC;"
    )
}

/// Function of the change-tracking triggers. Column names are compiled in: reading them from the row at run time
/// would cost every write much more.
///
/// It writes one row for each user, however often the balance is written: weeks may follow the window. No writer
/// waits for it that does not wait already: the same transaction has locked the user's balance before. An UPDATE that
/// changes the user of a row takes two statements, since an INSERT must not update one row twice.
///
/// A table of an earlier version has no unique index: there each write gets a row. Creating the index would block
/// writers.
///
/// Returns its body.
pub(super) async fn track_changes_body(
    client: &impl GenericClient,
    balances: &BalancesTable,
) -> Result<String, Failure> {
    let once = tracks_once(client).await?;
    let BalancesTable { user, balance, .. } = balances;
    let record = |user: String| {
        let conflict = if once { " ON CONFLICT (user_id) DO UPDATE SET id = DEFAULT" } else { "" };
        format!("INSERT INTO credit_migration.changed_users (user_id) VALUES ({user}::text){conflict};")
    };
    let (old, new) = (record(format!("OLD.{user}")), record(format!("NEW.{user}")));
    Ok(format!(
        "
BEGIN
    IF TG_OP = 'UPDATE' THEN
        IF OLD.{user}::text IS DISTINCT FROM NEW.{user}::text THEN
            {old}
            {new}
        ELSIF OLD.{balance} IS DISTINCT FROM NEW.{balance} THEN
            {new}
        END IF;
    ELSIF TG_OP = 'INSERT' THEN
        {new}
    ELSIF TG_OP = 'DELETE' THEN
        {old}
    ELSE
        INSERT INTO credit_migration.changed_users (user_id) VALUES (NULL);
    END IF;
    RETURN NULL;
END
"
    ))
}

/// Until the end of a transaction that gives the balances other names, in place of the function that knows the old
/// ones: one write of any balance makes it compare all.
pub(super) async fn create_track_any_change_function(tx: &impl GenericClient) -> Result<(), Failure> {
    let function = "CREATE OR REPLACE FUNCTION credit_migration.track_changes() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $track_changes$
BEGIN
    IF NOT EXISTS (SELECT FROM credit_migration.changed_users WHERE user_id IS NULL) THEN
        INSERT INTO credit_migration.changed_users (user_id) VALUES (NULL);
    END IF;
    RETURN NULL;
END
$track_changes$";
    define(tx, function).await
}

/// Whether the change tracking has one row for each user, and not one for each write.
pub(super) async fn tracks_once(client: &impl GenericClient) -> Result<bool, Failure> {
    let unique = "SELECT EXISTS (
        SELECT FROM pg_catalog.pg_index i
        JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
        WHERE i.indrelid = pg_catalog.to_regclass('credit_migration.changed_users') AND i.indisunique AND i.indisvalid
          AND i.indpred IS NULL AND i.indnkeyatts = 1 AND a.attname = 'user_id')";
    Ok(client.query_one(unique, &[]).await?.get(0))
}

/// What the function of the change-tracking triggers sets, as the catalog has it.
pub(super) const TRACK_CHANGES_SETTINGS: &str = "search_path=pg_catalog, pg_temp";

/// Creates the function of the change-tracking triggers, to match its table. One that is as it should be is left alone:
/// that it was not altered shows that no write went untracked.
pub(super) async fn create_track_changes_function(
    tx: &impl GenericClient,
    balances: &BalancesTable,
) -> Result<(), Failure> {
    let body = track_changes_body(tx, balances).await?;
    let same = "SELECT FROM pg_catalog.pg_proc p
        WHERE p.oid = pg_catalog.to_regproc('credit_migration.track_changes')::oid AND p.prosrc = $1 AND p.prosecdef
          AND p.proconfig = ARRAY[$2]";
    if tx.query_opt(same, &[&body, &TRACK_CHANGES_SETTINGS]).await?.is_some() {
        return Ok(());
    }
    let function = format!(
        "CREATE OR REPLACE FUNCTION credit_migration.track_changes() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $track_changes${body}$track_changes$;
REVOKE ALL ON FUNCTION credit_migration.track_changes() FROM PUBLIC;"
    );
    define(tx, &function).await
}
