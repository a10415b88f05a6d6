//! Blocking writes, and verifying that they are blocked.

use std::{pin::pin, time::Duration};

use jiff::Timestamp;
use tokio_postgres::Client;

use super::{
    Channel, WindowOutcome,
    session::{POLL_INTERVAL, WindowTask},
};
use crate::{
    api::{
        Direction, SchemaInPlace, WindowState,
        window_rules::{Move, WindowActivity, when_blocking_failed},
    },
    runner::{
        Failure, UnlessLost,
        database::control::{self, read_only_default, write_block},
    },
};

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
        let blocked_at = match write_block::enable(
            &mut client,
            self.control_spec(),
            self.plan.direction,
            self.plan.attempt,
            deadline,
        )
        .await
        .unless_lost()?
        {
            Err(failure) => {
                // Blocking failed: writes are allowed as before.
                self.writes_may_be_blocked = false;
                self.enter(self.plan.direction.schema_before().final_state());
                return Err(failure);
            }
            Ok(blocked_at) => blocked_at,
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
            }
            Err((ending, failure)) => return self.end(&mut client, ending, failure).await,
        }
        self.enter(WindowState::Blocked);
        if self.plan.direction == Direction::Forward {
            self.save_and_report(&client).await?;
            return match self.approved_up_sql() {
                Ok(Some(up)) => self.apply_sql(client, up).await,
                Ok(None) => self.finish(&mut client, SchemaInPlace::Old, None).await,
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
        // The old version is about to be started and needs ordinary sessions: the triggers are what blocks writes.
        self.restore_read_only_default(&client).await?;
        self.save_and_report(&client).await?;
        self.await_cutover(&mut client).await
    }

    /// A default that cannot be restored (the SQL gave the database another owner) must not keep the task from its
    /// orders: `finish` retries it, and reports the failure.
    pub(super) async fn restore_read_only_default(&self, client: &Client) -> Result<(), Failure> {
        if let Err(failure) = read_only_default::restore_default(client, self.control_spec()).await.unless_lost()? {
            tracing::error!(error = %failure, "the read-only default is not restored");
        }
        Ok(())
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
        let ended = control::drain(client, self.control_spec(), blocked_at, limit).await?;
        Ok((ended, control::verify_writes_blocked(self.target, self.control_spec()).await?))
    }
}
