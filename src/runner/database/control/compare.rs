//! The comparisons of a window: of the balances that are not tracked on standby, of the others with writes blocked.

use tokio_postgres::{Client, Transaction, error::SqlState};

use super::{
    ControlSpec, balances,
    baseline::{DIFFERS, WrittenUsers, compare_with, count, record_all},
    unchanged::{Unchanged, store},
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

/// Compares the balances that are not tracked with the baseline, with writes open, unless they are known to be
/// unchanged and `again` is false: so that the window has to compare the tracked ones only. Returns whether that is
/// known now; where it cannot be, the window compares all.
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
) -> Result<bool, Failure> {
    let mut attempts = 0;
    loop {
        attempts += 1;
        let tx = snapshot(client, Access::Write).await?;
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

fn is_conflict(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&SqlState::T_R_SERIALIZATION_FAILURE)
}

async fn compare_in(
    tx: &Transaction<'_>,
    spec: &ControlSpec,
    direction: Direction,
    again: bool,
) -> Result<bool, Failure> {
    let balances = balances(tx, spec).await?;
    tx.batch_execute(&format!("LOCK TABLE {} IN ACCESS SHARE MODE", balances.table.sql())).await?;
    if !again && Unchanged::read(tx, spec, &balances).await?.is_some() {
        return Ok(true);
    }
    // After a TRUNCATE all are tracked: the next refresh records the baseline again.
    if matches!(WrittenUsers::tracked(tx).await?, WrittenUsers::All) {
        return Ok(false);
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
        return store(tx, spec, &balances, Some(&compared)).await;
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
            let compared = compare_with(tx, spec, &balances, WrittenUsers::All).await?;
            store(tx, spec, &balances, Some(&compared)).await
        }
    }
}

/// Compares with writes blocked: the tracked balances, if the others are known to be unchanged, otherwise all, after
/// which that is known. Returns whether all were compared, too.
///
/// # Errors
/// `TableMissing`, `ColumnMissing`, database errors.
pub async fn compare_blocked(client: &mut Client, spec: &ControlSpec) -> Result<(Comparison, bool), Failure> {
    let tx = snapshot(client, Access::Write).await?;
    let balances = balances(&tx, spec).await?;
    tx.batch_execute(&format!("LOCK TABLE {} IN ACCESS SHARE MODE", balances.table.sql())).await?;
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
