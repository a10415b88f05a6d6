//! How a window ends: rolled back, stuck, or with writes unblocked.

use std::time::Duration;

use tokio_postgres::Client;
use tracing::field::display;

use super::{Channel, WindowOutcome, session::WindowTask};
use crate::{
    api::{
        Reason, SchemaInPlace,
        window_rules::{EndCause, Ending},
    },
    runner::{
        Failure, UnlessLost,
        database::control::{
            self, Applied, jitter, read_only_default,
            window_record::{self, RecordedEnd},
            write_block,
        },
    },
};

/// Attempts of a rollback that cannot get a lock: a long read must not keep writes blocked.
const ROLLBACK_ATTEMPTS: u32 = 30;

impl<C: Channel> WindowTask<'_, C> {
    /// Runs the down SQL and finishes; `cause` is why the window is no success even if this works.
    pub(super) async fn roll_back(
        &mut self,
        client: &mut Client,
        cause: Option<Failure>,
    ) -> Result<WindowOutcome, Failure> {
        let mut attempts = 0;
        // The comparison after the up SQL says nothing about the rollback.
        self.progress.comparison = None;
        loop {
            attempts += 1;
            // The comparison may still be reading the tables that the SQL is about to change.
            control::terminate_comparison(client).await?;
            match control::run_down(client, self.control_spec(), &self.down).await.unless_lost()? {
                Ok(Applied::NotApplicable) => return self.finish(client, SchemaInPlace::Old, cause).await,
                Ok(Applied::Now { .. } | Applied::Earlier { .. }) => return self.rolled_back(client, cause).await,
                Err(failure) if failure.reason == Reason::LockTimeout && attempts < ROLLBACK_ATTEMPTS => {
                    // Writes are blocked and must not stay so: sessions that hold the tables are ended.
                    self.report(Some(failure));
                    let limit = self.control_spec().lock_timeout * 2;
                    // A session that could not be ended blocks the next attempt, too.
                    let _ =
                        control::drain(client, self.control_spec(), self.channel.now(), limit).await.unless_lost()?;
                    tokio::time::sleep(jitter(Duration::from_millis(50))).await;
                }
                Err(failure) => {
                    self.progress.stuck = true;
                    window_record::save_progress(client, self.control_spec(), self.plan.direction, &self.progress)
                        .await?;
                    return Ok(self.end_stuck(Some(failure)));
                }
            }
        }
    }

    /// The down SQL is committed: compares every balance once more while writes are blocked, then unblocks writes.
    pub(super) async fn rolled_back(
        &mut self,
        client: &mut Client,
        cause: Option<Failure>,
    ) -> Result<WindowOutcome, Failure> {
        match control::compare(client, self.control_spec()).await.unless_lost()? {
            Ok(comparison) => self.progress.comparison = Some(comparison),
            // The transaction compared them, too: only the figures are missing.
            Err(failure) => tracing::warn!(error = %failure, "balances not compared after the rollback"),
        }
        self.finish(client, SchemaInPlace::Old, cause).await
    }

    /// Ends with writes blocked: manual intervention is required.
    fn end_stuck(&mut self, failure: Option<Failure>) -> WindowOutcome {
        self.progress.stuck = true;
        let (reason, error) = (failure.as_ref().map(|f| display(f.reason)), failure.as_ref().map(display));
        tracing::error!(reason, error, "writes stay blocked, manual intervention required");
        WindowOutcome { progress: self.progress.clone(), failure }
    }

    /// Ends the window as the rules say; `failure` is the one at hand, if there is one.
    pub(super) async fn end(
        &mut self,
        client: &mut Client,
        ending: Ending,
        failure: Option<Failure>,
    ) -> Result<WindowOutcome, Failure> {
        let (Ending::Rollback(cause)
        | Ending::Finish(_, cause)
        | Ending::Stuck(cause)
        | Ending::NothingBlocked(_, cause)) = ending;
        let failure = match cause {
            EndCause::Ordered => None,
            EndCause::Overdue => Some(self.overdue_failure()),
            EndCause::Failed => failure,
        };
        self.progress.deadline_passed |= cause == EndCause::Overdue && ending != Ending::NothingBlocked(None, cause);
        match ending {
            Ending::Rollback(_) => self.roll_back(client, failure).await,
            Ending::Finish(schema, _) => self.finish(client, schema, failure).await,
            Ending::Stuck(_) => Ok(self.end_stuck(failure)),
            Ending::NothingBlocked(schema, _) => {
                if let Some(schema) = schema {
                    self.enter(schema.final_state());
                }
                Ok(WindowOutcome { progress: self.progress.clone(), failure })
            }
        }
    }

    /// Restores the read-only default and unblocks writes; `schema` is the one in place.
    pub(super) async fn finish(
        &mut self,
        client: &mut Client,
        schema: SchemaInPlace,
        failure: Option<Failure>,
    ) -> Result<WindowOutcome, Failure> {
        let restored = read_only_default::restore_default(client, self.control_spec()).await.unless_lost()?;
        // A default that cannot be restored is no reason to keep writes blocked.
        let failure = failure.or_else(|| restored.as_ref().err().cloned());
        self.enter(schema.final_state());
        let end = RecordedEnd { schema, failure };
        let unblocked_at =
            write_block::disable(client, self.control_spec(), self.plan.direction, &end, &self.progress).await?;
        self.writes_may_be_blocked = false;
        self.progress.unblocked_at = unblocked_at.or(self.progress.unblocked_at.take());
        if let Ok(Some(until)) = restored
            && let Err(failure) = read_only_default::terminate_read_only_sessions(client, until).await
        {
            tracing::warn!(error = %failure, "sessions opened inside the window may still be read-only");
        }
        Ok(WindowOutcome { progress: self.progress.clone(), failure: end.failure })
    }
}
