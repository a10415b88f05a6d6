//! Task `DropParked`: drops the tables that the migration has parked, when the time after the decision to keep has passed.
//!
//! # Contract
//! - Drops the tables that the control schema has on record for this migration, in one transaction, and nothing that
//!   depends on them.
//! - Idempotent. Refused while another migration has claimed the database.

use crate::runner::{Failure, context::TaskContext, database::control::drop_parked};

/// Drops them.
///
/// # Errors
/// Those of [`drop_parked`].
pub async fn run(context: &TaskContext<'_>) -> Result<String, Failure> {
    let mut client = context.settings.target()?.connect("drop-parked").await?;
    let dropped = drop_parked(&mut client, &context.control_spec()).await?;
    Ok(format!("{dropped} parked tables dropped"))
}
