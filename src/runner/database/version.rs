//! Which versions of the server are supported, and what one has that another has not.

use std::{fmt, ops::RangeInclusive};

use tokio_postgres::Client;

use crate::runner::Failure;

/// Major versions of the server that are supported. The client programs are those of the newest. `tests/habits`
/// compares all places that name them.
pub const SUPPORTED: RangeInclusive<u32> = 13..=18;

/// SQL: the right on another role that allows `SET ROLE`, for `pg_has_role`. Since 16 membership alone does not.
pub(in crate::runner) const SET_ROLE_RIGHT: &str = "CASE WHEN \
    pg_catalog.current_setting('server_version_num')::integer >= 160000 THEN 'SET' ELSE 'MEMBER' END";

/// Version of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerVersion {
    /// First number: 15 of 15.14.
    pub major: u32,
}

impl ServerVersion {
    /// That of the session's server.
    ///
    /// # Errors
    /// Those of a database error.
    pub async fn of(client: &Client) -> Result<Self, Failure> {
        let row = client.query_one("SELECT current_setting('server_version_num')::int", &[]).await?;
        Ok(Self { major: u32::try_from(row.get::<_, i32>(0) / 10_000).unwrap_or_default() })
    }

    /// SQL: provider and locale of a row of `pg_database`. There is one since 15, renamed in 17.
    pub(super) fn locale_columns(self) -> &'static str {
        match self.major {
            17.. => "datlocprovider::text, datlocale",
            15..17 => "datlocprovider::text, daticulocale",
            _ => "'c', NULL::text",
        }
    }

    /// Whether it knows each setting that `pg_restore` sets. That of 17 and newer sets `transaction_timeout`, whatever
    /// the server's version.
    pub(in crate::runner) fn knows_settings_of_restore(self) -> bool {
        self.major >= 17
    }
}

impl fmt::Display for ServerVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PostgreSQL {}", self.major)
    }
}
