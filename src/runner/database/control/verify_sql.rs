//! `verifyUp` and `verifyDown`: what a query of the spec says of the SQL, before it is committed.

use tokio_postgres::{Row, Transaction, types::Type};

use super::ControlSpec;
use crate::{
    api::{Direction, Reason},
    runner::{
        Failure,
        database::connection::{PIN_SEARCH_PATH_SQL, USE_OWN_SEARCH_PATH_SQL},
    },
};

/// Runs the query that verifies a direction's SQL, if there is one: at least one row, at least one boolean, and every
/// boolean true. NULL does not count as true.
///
/// # Errors
/// `VerifyUpFailed` or `VerifyDownFailed`. Values are not shown, they may be personal.
pub(super) async fn verify(tx: &Transaction<'_>, spec: &ControlSpec, direction: Direction) -> Result<(), Failure> {
    let (query, field, reason) = match direction {
        Direction::Forward => (&spec.verify_up, "verifyUp", Reason::VerifyUpFailed),
        Direction::Rollback => (&spec.verify_down, "verifyDown", Reason::VerifyDownFailed),
    };
    let Some(query) = query else { return Ok(()) };
    tx.batch_execute(USE_OWN_SEARCH_PATH_SQL).await?;
    let rows = tx.query(query, &[]).await.map_err(|e| Failure::from(&e).message);
    let rows = match rows {
        Ok(rows) => tx.batch_execute(PIN_SEARCH_PATH_SQL).await.map(|()| Ok(rows))?,
        Err(message) => Err(message),
    };
    rows.and_then(|rows| judge(&rows)).map_err(|message| {
        let next =
            format!("run the query by hand; correct the {} SQL, or spec.migration.{field}", direction.sql_name());
        Failure::new(reason, format!("{field}: {message}; next: {next}"))
    })
}

/// What is wrong with an answer.
fn judge(rows: &[Row]) -> Result<(), String> {
    let Some(first) = rows.first() else { return Err("the query answered no row, at least 1 is needed".to_owned()) };
    if first.columns().iter().all(|column| *column.type_() != Type::BOOL) {
        return Err("the query has no boolean column, at least 1 is needed: it passes whatever it finds; write it as \
            SELECT count(*) = 0 AS good FROM ..."
            .to_owned());
    }
    for (number, row) in rows.iter().enumerate() {
        for (index, column) in row.columns().iter().enumerate() {
            if *column.type_() == Type::BOOL && row.get::<_, Option<bool>>(index) != Some(true) {
                let (name, number) = (column.name(), number + 1);
                return Err(format!("column {name} of row {number} of {} is not true", rows.len()));
            }
        }
    }
    Ok(())
}
