//! Which SQL is run: as approved, from the ConfigMap or from the database.

use tokio_postgres::Client;

use super::{Channel, session::WindowTask};
use crate::{
    api::{Direction, Reason},
    runner::{
        Failure,
        database::control::{self, Sql},
    },
};

impl<'a, C: Channel> WindowTask<'a, C> {
    /// The up SQL, which must be the approved one. `None` in a rollback, which does not run it.
    pub(super) fn approved_up_sql(&self) -> Result<Option<&'a Sql>, Failure> {
        if self.plan.direction == Direction::Rollback {
            return Ok(None);
        }
        require_approved("up", &self.plan.up, &self.plan.inputs.up_sha256).map(Some)
    }

    /// The down SQL: as mounted, or as the database stored it. Read where it is needed: a pod that has to unblock
    /// writes needs none.
    pub(super) async fn approved_down_sql(&self, client: &Client) -> Result<Sql, Failure> {
        let approved = &self.plan.inputs.down_sha256;
        let failure = match require_approved("down", &self.plan.down, approved) {
            Ok(mounted) => return Ok(mounted.clone()),
            Err(failure) => failure,
        };
        match control::stored_down_sql(client, self.control_spec(), approved).await? {
            Some(stored) => {
                tracing::warn!(
                    error = %failure,
                    "the down SQL is run as it was when the up SQL was committed"
                );
                Ok(stored)
            }
            None => Err(failure),
        }
    }
}

/// The SQL must be what the controller read, the approvers approved and the rehearsal ran.
fn require_approved<'a>(name: &str, mounted: &'a Result<Sql, Failure>, approved: &str) -> Result<&'a Sql, Failure> {
    let mounted = mounted.as_ref().map_err(Failure::clone)?;
    if mounted.sha256 == approved {
        return Ok(mounted);
    }
    let found = &mounted.sha256;
    let message =
        format!("the {name} SQL is {found}, approved was {approved}; next: restore it, or approve the new plan");
    Err(Failure::new(Reason::SqlChanged, message))
}
