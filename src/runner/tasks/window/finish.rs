//! How a window ends: rolled back, stuck, or with writes unblocked.

use std::time::Duration;

use jiff::Timestamp;
use tokio_postgres::Client;
use tracing::field::display;

use super::{
    Channel, WindowOutcome,
    session::{CONTROL_LIMIT, WindowTask},
};
use crate::{
    api::{
        Comparison, Direction, NotShownKind, Reason, SchemaInPlace, WindowState,
        window_rules::{EndCause, Ending, Move, WindowActivity},
    },
    runner::{
        Failure, UnlessLost,
        database::control::{
            self, Applied, jitter, millis, read_only_default, window_record::RecordedEnd, write_block,
        },
    },
};

/// Attempts of a rollback that cannot get a lock: a long read must not keep writes blocked.
const ROLLBACK_ATTEMPTS: u32 = 30;
/// Pause between two attempts to restore the read-only default.
const RESTORE_INTERVAL: Duration = Duration::from_millis(200);

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
            if let Err(failure) = control::terminate_readers(client).await.unless_lost()? {
                tracing::warn!(error = %failure, "readers of the tables are not ended");
            }
            let applied = match self.approved_down_sql(client).await {
                Ok(down) => control::run_down(client, self.control_spec(), &down).await,
                Err(failure) => Err(failure),
            };
            match applied.unless_lost()? {
                Ok(Applied::NotApplicable) => return self.finish(client, SchemaInPlace::Old, cause).await,
                Ok(Applied::Now { .. } | Applied::Earlier { .. }) => return self.rolled_back(client, cause).await,
                Err(failure) if failure.reason == Reason::LockTimeout && attempts < ROLLBACK_ATTEMPTS => {
                    // Writes are blocked and must not stay so: sessions that hold the tables are ended.
                    self.report(Some(failure));
                    let limit = self.control_spec().lock_timeout * 2;
                    // A session that could not be ended blocks the next attempt, too.
                    let _ = control::drain(client, self.control_spec(), None, limit).await.unless_lost()?;
                    tokio::time::sleep(jitter(Duration::from_millis(50))).await;
                }
                Err(failure) => {
                    self.progress.stuck = true;
                    self.save(client).await?;
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
        if self.plan.direction == Direction::Rollback {
            self.record_committed(client).await?;
        }
        match self.compare_again(client).await.unless_lost()? {
            Ok((comparison, _)) => {
                if comparison.unexplained > 0 {
                    control::list_unexplained(client, self.control_spec()).await;
                }
                self.progress.comparison = Some(comparison);
            }
            // The transaction compared them, too: only the figures are missing.
            Err(failure) => tracing::warn!(error = %failure, "balances not compared after the rollback"),
        }
        self.finish(client, SchemaInPlace::Old, cause).await
    }

    /// With the limits of the migration for each statement.
    async fn compare_again(&self, client: &mut Client) -> Result<(Comparison, bool), Failure> {
        let spec = self.control_spec();
        let (statement, lock) = (millis(spec.statement_timeout), millis(spec.lock_timeout));
        client.batch_execute(&format!("SET statement_timeout = {statement}; SET lock_timeout = {lock}")).await?;
        let compared = control::compare_blocked(client, spec).await;
        client.batch_execute("RESET statement_timeout; RESET lock_timeout").await?;
        compared
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
            Ending::Finish(schema, _) => match self.restore_default(client, schema, failure.as_ref()).await? {
                Ok(until) => self.unblock(client, schema, failure, until).await,
                Err((Ending::Rollback(_), _)) => self.roll_back(client, failure).await,
                Err((_, stuck)) => Ok(self.end_stuck(Some(stuck))),
            },
            Ending::Stuck(_) => Ok(self.end_stuck(failure)),
            Ending::NothingBlocked(schema, _) => {
                if let Some(schema) = schema {
                    self.enter(schema.final_state());
                }
                Ok(WindowOutcome { progress: self.progress.clone(), failure })
            }
        }
    }

    /// Restores the read-only default and unblocks writes on the old schema.
    pub(super) async fn finish(
        &mut self,
        client: &mut Client,
        schema: SchemaInPlace,
        failure: Option<Failure>,
    ) -> Result<WindowOutcome, Failure> {
        match self.restore_default(client, schema, failure.as_ref()).await? {
            Ok(until) => self.unblock(client, schema, failure, until).await,
            Err((_, stuck)) => Ok(self.end_stuck(Some(stuck))),
        }
    }

    /// Restores the read-only default, until it is restored or the rules end the window in another way: with the
    /// default that the window has set, every new session of the application is read-only. `cause` is why the
    /// window is no success.
    async fn restore_default(
        &mut self,
        client: &Client,
        schema: SchemaInPlace,
        cause: Option<&Failure>,
    ) -> Result<Result<Option<Timestamp>, (Ending, Failure)>, Failure> {
        loop {
            let failure = match self.try_restore_default(client).await? {
                Ok(until) => return Ok(Ok(until)),
                Err(failure) => failure,
            };
            let both = match cause {
                Some(cause) => {
                    Failure::new(failure.reason, format!("{}; the window ends because of {cause}", failure.message))
                }
                None => failure,
            };
            match self.next_move(WindowActivity::RestoringDefault { schema }) {
                Move::End(ending) => return Ok(Err((ending, both))),
                Move::BecomeStuck => {
                    (self.progress.stuck, self.progress.deadline_passed) = (true, true);
                    self.save(client).await?;
                }
                _ => {}
            }
            self.report(Some(both));
            tokio::time::sleep(jitter(RESTORE_INTERVAL)).await;
        }
    }

    /// One attempt to restore the read-only default; writes are not unblocked before one succeeds. Returns when it was
    /// restored.
    pub(super) async fn try_restore_default(
        &self,
        client: &Client,
    ) -> Result<Result<Option<Timestamp>, Failure>, Failure> {
        let restoring = read_only_default::restore_default(client, self.control_spec());
        let restored = self.bounded(client, restoring).await.unless_lost()?;
        if let Err(failure) = &restored {
            tracing::error!(error = %failure, "the read-only default is not restored, will be retried");
        }
        Ok(restored)
    }

    /// Unblocks writes; `schema` is the one in place, `until` is when the read-only default was restored.
    async fn unblock(
        &mut self,
        client: &mut Client,
        schema: SchemaInPlace,
        failure: Option<Failure>,
        until: Option<Timestamp>,
    ) -> Result<WindowOutcome, Failure> {
        self.record_unblocked(client).await?;
        self.enter(schema.final_state());
        let end = RecordedEnd { schema, failure };
        let token = client.cancel_token();
        let disabling = write_block::disable(client, self.control_spec(), self.plan.direction, &end, &self.progress);
        let unblocked_at = self.target.bounded(token, CONTROL_LIMIT, disabling).await?;
        self.writes_may_be_blocked = false;
        self.progress.unblocked_at = unblocked_at.or(self.progress.unblocked_at.take());
        if let Some(until) = until
            && let Err(failure) = read_only_default::terminate_read_only_sessions(client, until).await
        {
            tracing::warn!(error = %failure, "sessions opened inside the window may still be read-only");
        }
        Ok(self.verified_end(end.failure).await)
    }

    /// The end of a window after which writes are unblocked, as an ordinary session of the application shows. If such a
    /// session is refused, the window does not claim it.
    pub(super) async fn verified_end(&mut self, failure: Option<Failure>) -> WindowOutcome {
        match control::verify_writes_unblocked(self.target, self.control_spec()).await {
            Ok(evidence) => tracing::info!(evidence, "writes are unblocked"),
            Err(refused) if refused.reason == Reason::WritesStillBlocked => {
                self.progress.state = WindowState::Blocked;
                self.progress.unblocked_at = None;
                return self.end_stuck(Some(refused));
            }
            Err(not_shown) => self.note_not_shown(NotShownKind::WritesUnblocked, not_shown),
        }
        WindowOutcome { progress: self.progress.clone(), failure }
    }
}
