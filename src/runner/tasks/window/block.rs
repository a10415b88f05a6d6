//! Blocking writes, and verifying that they are blocked.

use std::{pin::pin, time::Duration};

use jiff::Timestamp;
use tokio_postgres::Client;

use super::{
    Channel, WindowOutcome,
    session::{CONTROL_LIMIT, POLL_INTERVAL, WindowTask},
};
use crate::{
    api::{
        Direction, Reason, SchemaInPlace, WindowState,
        window_rules::{Move, WindowActivity, when_blocking_failed},
    },
    runner::{
        Failure, UnlessLost,
        database::control::{self, jitter, write_block},
    },
};

/// Attempts to block writes.
const BLOCK_ATTEMPTS: u32 = 3;

impl<C: Channel> WindowTask<'_, C> {
    pub(super) async fn block_writes(
        &mut self,
        mut client: Client,
        deadline: Timestamp,
    ) -> Result<WindowOutcome, Failure> {
        self.enter(WindowState::Blocking);
        self.report(None);
        self.deadline = Some(deadline);
        // Set before the call: if the connection is lost during it, writes may be blocked.
        self.writes_may_be_blocked = true;
        let (spec, direction, attempt) = (self.control_spec(), self.plan.direction, self.plan.attempt);
        let mut attempts = 0;
        let blocked_at = loop {
            attempts += 1;
            let token = client.cancel_token();
            let enabling = write_block::enable(&mut client, spec, direction, attempt, deadline);
            match self.target.bounded(token, CONTROL_LIMIT, enabling).await.unless_lost()? {
                Ok(blocked_at) => break blocked_at,
                // Another session changes settings of the database, or one of the control tables.
                Err(failure)
                    if matches!(failure.reason, Reason::LockTimeout | Reason::DatabaseUnavailable)
                        && attempts < BLOCK_ATTEMPTS
                        && self.next_move(WindowActivity::Standby) == Move::BlockWrites =>
                {
                    tracing::warn!(error = %failure, "writes are not blocked yet, will be retried");
                    tokio::time::sleep(jitter(Duration::from_millis(50))).await;
                }
                Err(failure) => {
                    // Blocking failed: writes are allowed as before.
                    self.writes_may_be_blocked = false;
                    self.enter(direction.schema_before().final_state());
                    return Err(failure);
                }
            }
        };
        self.progress.blocked_at = Some(blocked_at);
        self.secure_block(client, blocked_at).await
    }

    /// Makes sure that writes are blocked. Then runs the SQL (forward) or waits for the controller (rollback).
    pub(super) async fn secure_block(
        &mut self,
        mut client: Client,
        blocked_at: Timestamp,
    ) -> Result<WindowOutcome, Failure> {
        let secured = {
            let mut securing = pin!(self.drain_and_verify(&client, blocked_at));
            loop {
                if let Move::End(ending) = self.next_move(WindowActivity::Blocking) {
                    break Err((ending, None));
                }
                tokio::select! {
                    secured = &mut securing => break secured.unless_lost()?.map_err(|failure| {
                        let acknowledged = self.progress.switch_acknowledged;
                        (when_blocking_failed(self.plan.direction, acknowledged), Some(failure))
                    }),
                    () = tokio::time::sleep(POLL_INTERVAL) => {}
                }
            }
        };
        match secured {
            Ok((ended, verification)) => {
                self.progress.terminated_sessions += ended;
                self.progress.verification = Some(verification);
                // What kept it from being verified has ended.
                self.report(None);
            }
            Err((ending, failure)) => return self.end(&mut client, ending, failure).await,
        }
        self.record_blocked(&client).await?;
        self.enter(WindowState::Blocked);
        if self.plan.direction == Direction::Forward {
            self.save_and_report(&client).await?;
            let approved = match self.approved_down_sql(&client).await.unless_lost()? {
                Ok(down) => self.approved_up_sql().map(|up| (up, down)),
                Err(failure) => Err(failure),
            };
            return match approved {
                Ok((Some(up), down)) => self.apply_sql(client, up, &down).await,
                Ok((None, _)) => self.finish(&mut client, SchemaInPlace::Old, None).await,
                Err(failure) => self.finish(&mut client, SchemaInPlace::Old, Some(failure)).await,
            };
        }
        self.progress.users_written_since =
            match control::users_written_within(&mut client, self.control_spec()).await.unless_lost()? {
                Ok(users) => Some(users),
                // A figure for the report only: it is left out if it takes too long.
                Err(failure) => {
                    tracing::warn!(error = %failure, "written users are not counted");
                    None
                }
            };
        self.await_cutover(&mut client).await
    }

    /// Drains the database and verifies the write block. Returns how many sessions were ended, and the verification.
    pub(super) async fn drain_and_verify(
        &self,
        client: &Client,
        blocked_at: Timestamp,
    ) -> Result<(u32, String), Failure> {
        // Past an acknowledged switch the deadline stops nothing: one that has passed would leave no time to drain,
        // and each rollback would fail at once.
        let deadline = self.orders().deadline.or(self.deadline).filter(|_| !self.progress.switch_acknowledged);
        let left = deadline.map_or(Duration::MAX, |deadline| {
            Duration::try_from(deadline.duration_since(self.channel.now())).unwrap_or_default()
        });
        let limit = (self.control_spec().lock_timeout * 3 + Duration::from_secs(1)).min(left);
        let ended = control::drain(client, self.control_spec(), Some(blocked_at), limit).await?;
        loop {
            match self.verify_blocked().await.unless_lost() {
                Ok(verified) => return Ok((ended, verified?)),
                // This session, which has the locks, is not given up for the other one.
                Err(lost) => {
                    tracing::warn!(error = %lost, "the write block is not verified yet, will be retried");
                    self.report(Some(lost));
                    tokio::time::sleep(jitter(Duration::from_millis(100))).await;
                }
            }
        }
    }

    /// Verifies on a session of its own that writes are blocked.
    pub(super) async fn verify_blocked(&self) -> Result<String, Failure> {
        let client = self.kept.verification.take().await?;
        let verified = control::verify_writes_blocked(&client, self.control_spec()).await;
        self.kept.verification.keep(client);
        verified
    }
}
