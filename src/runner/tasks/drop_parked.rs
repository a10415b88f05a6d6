//! Task `DropParked`: drops the tables that the migration has parked, a given time after the decision to keep.
//!
//! # Contract
//! - Drops the tables that the control schema has on record for this migration, in one transaction, and nothing that
//!   depends on them.
//! - Idempotent. Refused while another migration has claimed the database.

use crate::{
    api::Reason,
    runner::{
        Failure,
        context::TaskContext,
        database::{
            control::{drop_parked, with_parked},
            table_users::TableUsage,
        },
    },
};

/// Drops them.
///
/// # Errors
/// Those of [`drop_parked`]; `ParkedTableInUse` names what depends on them.
pub async fn run(context: &TaskContext<'_>) -> Result<String, Failure> {
    let mut client = context.settings.target()?.connect("drop-parked").await?;
    let control_spec = context.control_spec();
    match drop_parked(&mut client, &control_spec).await {
        Ok(dropped) => Ok(format!("{dropped} parked tables dropped")),
        Err(Failure { reason: Reason::ParkedTableInUse, message }) => {
            let tables = with_parked(&client, &control_spec, vec![]).await?;
            let used = TableUsage::read(&client, &tables, &[]).await?.evidence().appended();
            Err(Failure::new(Reason::ParkedTableInUse, message.replacen("; next: ", &format!("{used}; next: "), 1)))
        }
        Err(failure) => Err(failure),
    }
}
