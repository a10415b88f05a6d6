//! Waiting for the controller with writes blocked.

use std::{
    pin::pin,
    time::{Duration, Instant},
};

use tokio_postgres::Client;

use super::{
    Channel, WindowOutcome,
    background::{comparison, probe},
    session::{Comparing, PING_INTERVAL, POLL_INTERVAL, WindowTask},
};
use crate::{
    api::{
        Direction, NotShownKind, Reason, SchemaInPlace, UNEXPLAINED_BALANCES,
        window_rules::{EndCause, Ending, Move, WindowActivity},
    },
    runner::{
        Failure, UnlessLost,
        database::control::{self, window_record, write_block},
    },
};

/// How long the switch, or unblocking, waits until it is shown again that writes are blocked.
const VERIFY_AGAIN_LIMIT: Duration = Duration::from_secs(2);

/// From a comparison that failed to the next one.
const COMPARISON_PAUSE: Duration = Duration::from_secs(1);

impl<C: Channel> WindowTask<'_, C> {
    /// Waits for the controller with writes blocked. Forward, the full comparison runs in parallel.
    pub(super) async fn await_cutover(&mut self, client: &mut Client) -> Result<WindowOutcome, Failure> {
        let up = self.plan.direction == Direction::Forward;
        // The restarted application needs ordinary sessions: the triggers are what blocks writes.
        // One that is not restored must not keep the task from its orders: it is retried below.
        let mut restored = self.try_restore_default(client).await?.is_ok();
        self.save_and_report(client).await?;
        if up && !write_block::holds_exclusive_lock(client).await? {
            self.retake_exclusive_lock(client).await?;
        }
        (self.unexplained_reported, self.comparing) = (false, Comparing::Counts);
        let (session, spec, channel) = (self.kept.comparison.clone(), self.control_spec(), self.channel);
        let mut comparing = pin!(comparison(&session, spec, Duration::ZERO));
        let mut probing = pin!(probe(channel));
        let mut pinged = Instant::now();
        loop {
            match self.next_move(WindowActivity::AwaitingCutover) {
                Move::End(ending @ Ending::Finish(SchemaInPlace::New, EndCause::Ordered)) if up => {
                    if self.verified_again().await {
                        return self.end(client, ending, None).await;
                    }
                    // Otherwise the contacts would not be notified: with this order nothing else ends the window.
                    if self.overdue() && !self.progress.stuck {
                        self.become_stuck(client).await?;
                    }
                    continue;
                }
                Move::End(ending) => return self.end(client, ending, None).await,
                Move::BecomeStuck => {
                    self.become_stuck(client).await?;
                    continue;
                }
                Move::AcknowledgeSwitch => {
                    self.acknowledge_switch(client).await?;
                    // Comparison and probe go on while it waits for standbys.
                    if self.progress.switch_acknowledged {
                        continue;
                    }
                }
                Move::ReportUnexplained => {
                    self.report_unexplained();
                    continue;
                }
                Move::Wait | Move::ReplaceOtherPod | Move::BlockWrites => {}
            }
            // It may have read before a write went through.
            if self.comparing == Comparing::Restart {
                comparing.set(comparison(&session, spec, Duration::ZERO));
                self.comparing = Comparing::Counts;
            }
            // A discarded one is not awaited: restarted at once it would be discarded again.
            let compare = up && self.progress.comparison.is_none() && self.comparing == Comparing::Counts;
            tokio::select! {
                compared = &mut comparing, if compare => {
                    // Also for the case that this result is discarded: the future has ended.
                    comparing.set(comparison(&session, spec, COMPARISON_PAUSE));
                    match compared {
                        Ok(compared) => {
                            self.progress.comparison = Some(compared);
                            self.save_and_report(client).await?;
                        }
                        Err(failure) => self.report_not_compared(failure),
                    }
                }
                answers = &mut probing => {
                    probing.set(probe(channel));
                    if let Some((version, asked)) = answers {
                        (self.progress.observed_version, self.progress.observed_at) = (Some(version), Some(asked));
                        // A failure that was reported stays reported.
                        self.reports.send_modify(|(progress, _)| progress.clone_from(&self.progress));
                    }
                }
                _ = tokio::time::timeout(POLL_INTERVAL, self.orders.changed()) => {}
            }
            if pinged.elapsed() > PING_INTERVAL {
                self.holds_block(client).await?;
                restored = restored || self.try_restore_default(client).await?.is_ok();
                self.save_again(client).await?;
                pinged = Instant::now();
            }
        }
    }

    /// Whether the write block is on and this session's own. Reports it if not: it was changed by hand. Once it is
    /// again, balances are compared again.
    async fn holds_block(&mut self, client: &Client) -> Result<bool, Failure> {
        match self.bounded(client, write_block::is_held(client, self.control_spec())).await.unless_lost()? {
            Ok(true) => {
                if self.comparing == Comparing::Discarded {
                    self.comparing = Comparing::Restart;
                }
                return Ok(true);
            }
            Ok(false) => {
                let message = "writes are not blocked any more, or not by this session: the row of \
                    credit_migration.write_block was changed, or a write-block trigger is not enabled; the switch is \
                    not acknowledged, and writes are not unblocked; next: order Rollback";
                tracing::error!("{message}");
                self.discard_comparison();
                self.report(Some(Failure::new(Reason::WritesNotBlocked, message)));
            }
            Err(failure) => tracing::warn!(error = %failure, "the write block cannot be read"),
        }
        Ok(false)
    }

    /// Until it succeeds, writes are not unblocked on the new schema.
    fn report_not_compared(&self, Failure { reason, message }: Failure) {
        let message = format!("the full comparison of balances failed, and is retried: {message}");
        tracing::warn!(%reason, message);
        self.report(Some(Failure::new(reason, message)));
    }

    /// What was compared, or is being compared, while writes may have gone through says nothing.
    fn discard_comparison(&mut self) {
        self.progress.comparison = None;
        (self.comparing, self.unexplained_reported) = (Comparing::Discarded, false);
    }

    /// `false` if an ordinary session of the application may write, asked again: the first answer may be minutes old.
    /// Order and deadline are not held up.
    async fn verified_again(&mut self) -> bool {
        let (asked, started) = (self.next_move(WindowActivity::AwaitingCutover), Instant::now());
        let verified = {
            let mut verifying = pin!(self.verify_blocked());
            loop {
                tokio::select! {
                    verified = &mut verifying => break verified,
                    () = tokio::time::sleep(POLL_INTERVAL) => {}
                }
                if self.next_move(WindowActivity::AwaitingCutover) != asked {
                    return false;
                }
                if started.elapsed() > VERIFY_AGAIN_LIMIT {
                    break Err(Failure::new(Reason::LockTimeout, "the second verification takes too long"));
                }
            }
        };
        match verified {
            Ok(verification) => {
                self.progress.verification = Some(verification);
                true
            }
            Err(failure) if failure.reason == Reason::WritesNotBlocked => {
                tracing::error!(error = %failure, "writes are not blocked any more");
                self.discard_comparison();
                self.report(Some(failure));
                self.wait().await;
                false
            }
            // Row and triggers of the write block are as they were when it was verified. A lock of another session, or
            // a lost one, must not keep writes blocked.
            Err(failure) => {
                self.note_not_shown(NotShownKind::WritesBlocked, failure);
                true
            }
        }
    }

    /// In the database before it is reported. If that fails, the caller asks the rules again.
    async fn acknowledge_switch(&mut self, client: &Client) -> Result<(), Failure> {
        if !self.holds_block(client).await? {
            self.wait().await;
            return Ok(());
        }
        if !self.standbys_have_replayed(client).await? {
            self.wait().await;
            return Ok(());
        }
        if !self.verified_again().await {
            return Ok(());
        }
        let acknowledging = window_record::acknowledge_switch(client, self.control_spec(), self.plan.direction);
        match self.bounded(client, acknowledging).await.unless_lost()? {
            Ok(()) => {
                self.progress.switch_acknowledged = true;
                self.save_and_report(client).await
            }
            Err(failure) => {
                tracing::warn!(error = %failure, "the switch is not acknowledged yet, will be retried");
                self.report(Some(failure));
                self.wait().await;
                Ok(())
            }
        }
    }

    /// The block is that of an earlier session, whose end released the lock. The row of the write block blocks writes
    /// without it: neither order nor deadline waits for the lock.
    async fn retake_exclusive_lock(&mut self, client: &Client) -> Result<(), Failure> {
        let spec = self.control_spec();
        let mut draining = pin!(control::drain(client, spec, None, spec.lock_timeout * 3));
        while self.next_move(WindowActivity::AwaitingCutover) == Move::Wait {
            tokio::select! {
                drained = &mut draining => {
                    if let Err(failure) = drained.unless_lost()? {
                        tracing::warn!(error = %failure, "the lock of the write block is not taken again");
                    }
                    return Ok(());
                }
                () = self.wait() => {}
            }
        }
        Ok(())
    }

    /// Past an acknowledged switch only an order unblocks writes.
    async fn become_stuck(&mut self, client: &Client) -> Result<(), Failure> {
        self.progress.stuck = true;
        self.progress.deadline_passed = true;
        let failure = self.overdue_failure();
        tracing::error!(
            error = %failure,
            "writes stay blocked: the switch of the application had started; manual intervention required"
        );
        self.report(Some(failure));
        self.save(client).await
    }

    /// After unblocking, a rollback would lose what is written from then on: the controller or an operator must order
    /// it now.
    fn report_unexplained(&mut self) {
        if let Some(comparison) = &self.progress.comparison {
            let message = format!(
                "{}: writes stay blocked; next: see which by {UNEXPLAINED_BALANCES}; order Rollback",
                comparison.differences()
            );
            self.report(Some(Failure::new(Reason::BalancesUnexplained, message)));
        }
        self.unexplained_reported = true;
    }
}
