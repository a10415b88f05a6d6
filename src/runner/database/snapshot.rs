//! Transactions that read one moment of the database.

use tokio_postgres::{Client, IsolationLevel, Transaction};

use crate::runner::Failure;

/// Whether a transaction may write, whatever the database's default says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// READ ONLY.
    Read,
    /// READ WRITE.
    Write,
}

/// A REPEATABLE READ transaction: all that it reads is of one moment.
///
/// # Errors
/// Those of a database error.
pub async fn snapshot(client: &mut Client, access: Access) -> Result<Transaction<'_>, Failure> {
    let transaction = client.build_transaction().isolation_level(IsolationLevel::RepeatableRead);
    transaction.read_only(access == Access::Read).start().await.map_err(Failure::from)
}
