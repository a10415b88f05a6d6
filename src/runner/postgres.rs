//! Connections to PostgreSQL: TLS as the URL says, one connection per step, errors as [`Failure`]s.

use tokio_postgres::Client;

use super::Failure;

/// Where and how to connect: the parsed URL and the authorities to trust.
#[derive(Clone)]
pub struct Target {}

impl Target {
    /// Same server, other database.
    pub fn with_database(&self, _name: &str) -> Self {
        todo!()
    }

    /// Opens one connection named `credit-migration/<step>`, with `default_transaction_read_only=off` as start-up option.
    pub async fn connect(&self, _step: &str) -> Result<Client, Failure> {
        todo!()
    }
}
