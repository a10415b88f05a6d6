//! The comparisons of a window: of the balances that are not tracked on standby, of the others with writes blocked.

use std::time::Duration;

use tokio_postgres::{Client, Transaction, error::SqlState};

use super::{
    ControlSpec, balances,
    baseline::{DIFFERS, WrittenUsers, compare_with, count, record_all},
    millis, trigger_lock_timeout,
    unchanged::{Facts, Unchanged, store},
};
use crate::{
    api::{Comparison, Direction, Reason},
    runner::{
        Failure,
        database::snapshot::{Access, snapshot},
    },
};

/// Attempts of a comparison that meets a TRUNCATE, or what alters the table.
const ATTEMPTS: u32 = 3;

/// What a comparison of the balances that are not tracked has shown.
#[derive(Clone, Copy, Debug, Default)]
pub struct Untracked {
    /// They are those of the baseline, and the catalogs show whether that remains so.
    pub known: bool,
    /// Users whose balance was another than that of the baseline, although no write of them was tracked.
    pub differing: u64,
}

/// Compares the balances that are not tracked with the baseline, with writes open, unless they are known to be
/// unchanged and `again` is false: so that the window has to compare the tracked ones only. Returns whether that is
/// known now, or can never be; then the window compares all.
///
/// Forward a difference is a failure. A rollback keeps the balances that it finds: the baseline is recorded again.
///
/// # Errors
/// `BalancesUnexplained`; `TableMissing`, `ColumnMissing`, database errors.
pub async fn compare_untracked(
    client: &mut Client,
    spec: &ControlSpec,
    direction: Direction,
    again: bool,
) -> Result<Untracked, Failure> {
    let mut attempts = 0;
    loop {
        attempts += 1;
        let tx = locked_snapshot(client, spec, Some(trigger_lock_timeout(spec))).await?;
        match compare_in(&tx, spec, direction, again).await {
            Ok(known) => match tx.commit().await {
                Err(error) if attempts < ATTEMPTS && is_conflict(&error) => {}
                done => return done.map(|()| known).map_err(Failure::from),
            },
            // A table that was rewritten meanwhile is empty in an older snapshot.
            Err(failure) if attempts < ATTEMPTS && failure.reason == Reason::BalancesUnexplained => {}
            Err(failure) => return Err(failure),
        }
    }
}

/// A snapshot that was taken under a lock on the balances: one from before it would show a table that is rewritten
/// meanwhile as empty.
async fn locked_snapshot<'a>(
    client: &'a mut Client,
    spec: &ControlSpec,
    lock_timeout: Option<Duration>,
) -> Result<Transaction<'a>, Failure> {
    let table = balances(client, spec).await?.table.sql();
    let tx = snapshot(client, Access::Write).await?;
    let limit = lock_timeout.map(|limit| format!("SET LOCAL lock_timeout = {}; ", millis(limit)));
    tx.batch_execute(&format!("{}LOCK TABLE {table} IN ACCESS SHARE MODE", limit.unwrap_or_default())).await?;
    Ok(tx)
}

fn is_conflict(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&SqlState::T_R_SERIALIZATION_FAILURE)
}

async fn compare_in(
    tx: &Transaction<'_>,
    spec: &ControlSpec,
    direction: Direction,
    again: bool,
) -> Result<Untracked, Failure> {
    let balances = balances(tx, spec).await?;
    if !again {
        if Unchanged::read(tx, spec, &balances).await?.is_some() {
            return Ok(Untracked { known: true, differing: 0 });
        }
        // A comparison of all would take its time each time, and show nothing that lasts.
        if Facts::read(tx, &balances).await?.is_none() {
            return Ok(Untracked::default());
        }
    }
    // After a TRUNCATE all are tracked: the next refresh records the baseline again.
    if matches!(WrittenUsers::tracked(tx).await?, WrittenUsers::All) {
        return Ok(Untracked::default());
    }
    let query = format!(
        "SELECT count(b.user_id), coalesce(sum(b.balance), 0)::text, count(*) FILTER (WHERE {DIFFERS} AND NOT EXISTS
             (SELECT FROM credit_migration.changed_users c WHERE c.user_id = coalesce(b.user_id, t.id)))
         FROM {}",
        WrittenUsers::All.joined(&balances)
    );
    let row = tx.query_one(&query, &[&spec.uid]).await?;
    let compared = Comparison { users: count(&row, 0), unexplained: count(&row, 2), total_balance: row.get(1) };
    if compared.unexplained == 0 {
        return Ok(Untracked { known: store(tx, spec, &balances, Some(&compared)).await?, differing: 0 });
    }
    let untracked = format!("{}, although no write of them was tracked", compared.differences());
    match direction {
        Direction::Forward => Err(Failure::new(
            Reason::BalancesUnexplained,
            format!("{untracked}; next: find out what writes past the triggers, then let the Backup step run again"),
        )),
        Direction::Rollback => {
            tracing::warn!("{untracked}; a rollback keeps them as they are");
            tx.execute("DELETE FROM credit_migration.baseline WHERE migration_uid = $1", &[&spec.uid]).await?;
            record_all(tx, spec, &balances).await?;
            let differing = compared.unexplained;
            let compared = compare_with(tx, spec, &balances, WrittenUsers::All).await?;
            Ok(Untracked { known: store(tx, spec, &balances, Some(&compared)).await?, differing })
        }
    }
}

/// Compares with writes blocked: the tracked balances, if the others are known to be unchanged, otherwise all, after
/// which that is known. Returns whether all were compared, too.
///
/// # Errors
/// `TableMissing`, `ColumnMissing`, database errors.
pub async fn compare_blocked(client: &mut Client, spec: &ControlSpec) -> Result<(Comparison, bool), Failure> {
    let tx = locked_snapshot(client, spec, None).await?;
    let balances = balances(&tx, spec).await?;
    if let Some(unchanged) = Unchanged::read(&tx, spec, &balances).await? {
        let users = WrittenUsers::to_compare(&tx).await?;
        if compare_with(&tx, spec, &balances, users).await?.unexplained == 0 {
            return Ok((unchanged.comparison(), false));
        }
    }
    let compared = compare_with(&tx, spec, &balances, WrittenUsers::All).await?;
    if compared.unexplained == 0 {
        store(&tx, spec, &balances, Some(&compared)).await?;
        tx.commit().await?;
    }
    Ok((compared, true))
}
