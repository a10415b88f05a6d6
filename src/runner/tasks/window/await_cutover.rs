//! Waiting for the controller with writes blocked.

use std::{pin::pin, time::Instant};

use jiff::Timestamp;
use tokio_postgres::Client;

use super::{
    Channel, Outcome,
    background::{comparison, probe},
    session::{PING, TICK, Task, ping},
};
use crate::{
    api::{Comparison, Direction, Reason, SchemaInPlace, WindowCommand, WindowState},
    runner::{Failure, UnlessLost, database::control::write_block},
};

impl<C: Channel> Task<'_, C> {
    /// Waits for the controller with writes blocked. On the way there the full comparison runs beside.
    pub(super) async fn hold(&mut self, client: &mut Client) -> Result<Outcome, Failure> {
        let up = self.plan.direction == Direction::Forward;
        if up && !write_block::locked(client).await? {
            // Taken over from an earlier session, whose end gave the lock back.
            let closed_at = self.progress.blocked_at.unwrap_or(Timestamp::UNIX_EPOCH);
            let drained = write_block::drain(client, self.subject(), closed_at, self.subject().lock_timeout * 3).await;
            // The gate's row blocks writes all the same; orders and deadline must not wait for the lock.
            if let Err(failure) = drained.unless_lost()? {
                tracing::warn!(message = failure.message, "the gate's lock is not had again");
            }
        }
        let (target, subject, channel) = (self.target, self.subject(), self.channel);
        let mut comparing = pin!(comparison(target, subject));
        let mut probing = pin!(probe(channel));
        let mut pinged = Instant::now();
        loop {
            let orders = self.orders();
            let acknowledged = self.progress.switch_acknowledged;
            match orders.command {
                WindowCommand::Rollback => return self.undo(client, None).await,
                WindowCommand::UnblockWrites if !up => return self.finish(client, SchemaInPlace::New, None).await,
                WindowCommand::UnblockWrites => match &self.progress.comparison {
                    Some(Comparison { unexplained: 0, .. }) => {
                        return self.finish(client, SchemaInPlace::New, None).await;
                    }
                    // Released, the way back would lose what was written since; a person or the controller must order the rollback.
                    Some(Comparison { unexplained, users, .. }) => {
                        let message = format!(
                            "{unexplained} of {users} users have a balance that nothing explains, limit 0: the gate stays closed; next: order Rollback"
                        );
                        self.report(Some(Failure::new(Reason::BalancesUnexplained, message)));
                    }
                    None => {}
                },
                _ => {}
            }
            let waiting = orders.command != WindowCommand::UnblockWrites
                || self.progress.comparison.as_ref().is_some_and(|c| c.unexplained > 0);
            if self.overdue() && waiting && self.progress.state != WindowState::Held {
                if acknowledged || orders.command == WindowCommand::UnblockWrites {
                    self.progress.state = WindowState::Held;
                    self.progress.deadline_passed = true;
                    let failure = self.overdue_failure();
                    tracing::error!(
                        message = failure.message,
                        "writes stay blocked: the switch of the application had begun; a person must order UnblockWrites or Rollback"
                    );
                    write_block::save_progress(client, self.subject(), self.plan.direction, &self.progress).await?;
                    self.report(Some(failure));
                } else if up {
                    self.progress.deadline_passed = true;
                    let failure = self.overdue_failure();
                    return self.undo(client, Some(failure)).await;
                } else {
                    return self.overdue_end(client, SchemaInPlace::New).await;
                }
            } else if orders.command >= WindowCommand::Switch && !acknowledged && !self.overdue() {
                write_block::acknowledge_switch(client, self.subject(), self.plan.direction).await?;
                self.progress.switch_acknowledged = true;
                self.milestone(client).await?;
            }
            if self.progress.state == WindowState::Held && orders.last_pod {
                // No order can come any more, and the session would keep whoever goes on waiting.
                return self.held(self.overdue_failure()).await;
            }
            let compare = up && self.progress.comparison.is_none();
            tokio::select! {
                comparison = &mut comparing, if compare => {
                    self.progress.comparison = Some(comparison);
                    self.milestone(client).await?;
                }
                answers = &mut probing => {
                    probing.set(probe(channel));
                    if let Some((version, asked)) = answers {
                        (self.progress.observed_version, self.progress.observed_at) = (Some(version), Some(asked));
                        // What is wrong, if something is, stays told.
                        self.reports.send_modify(|(progress, _)| progress.clone_from(&self.progress));
                    }
                }
                _ = tokio::time::timeout(TICK, self.orders.changed()) => {}
            }
            if pinged.elapsed() > PING {
                ping(client).await?;
                pinged = Instant::now();
            }
        }
    }
}
