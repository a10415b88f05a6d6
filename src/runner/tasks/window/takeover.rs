//! Becoming the one task that works: a second pod waits for the first, unless that one hangs.
//!
//! A pod that was killed while a statement ran leaves its session behind. The server checks for its client when the
//! statement ends, or every second if it can
//! ([`Target::connect`](crate::runner::database::connection::Target::connect)). Until then that session has the lock,
//! and the tables. Before the deadline it may also be the session of a healthy pod. Past it, or when the rollback is
//! ordered, a session that has run the same statement for long is ended. The limit doubles each time: of two healthy
//! pods one must reach its end.

use std::time::{Duration, Instant};

use tokio_postgres::Client;

use super::{
    Channel,
    session::{CONTROL_LIMIT, WindowTask},
};
use crate::{
    api::{
        Reason, Time,
        window_rules::{Move, WindowActivity},
    },
    runner::{
        Failure, UnlessLost,
        database::control::{
            window_record,
            worker_lock::{self, LockHolder, Termination},
            write_block,
        },
    },
};

impl<C: Channel> WindowTask<'_, C> {
    /// Waits until no other task works on this database. With writes blocked, past the deadline or on `Rollback`, it
    /// reports so and ends the other session. It is stuck if it has no right to.
    pub(super) async fn acquire_worker_lock(&mut self, client: &Client) -> Result<(), Failure> {
        let mut reported = None;
        let mut met: Option<(i32, Instant)> = None;
        while !worker_lock::try_acquire(client).await? {
            let blocked_until = self.blocked_until(client).await?;
            self.deadline = blocked_until.or(self.deadline);
            let writes_blocked = blocked_until.is_some();
            if self.next_move(WindowActivity::WaitingForOtherPod { writes_blocked }) == Move::ReplaceOtherPod
                && let Some(holder) = worker_lock::lock_holder(client).await?
            {
                let pid = holder.pid;
                let since = met.filter(|(met, _)| *met == pid).map_or_else(Instant::now, |(_, since)| since);
                met = Some((pid, since));
                // What is not visible counts from when it was met.
                let idle = holder.idle_for.unwrap_or_else(|| since.elapsed());
                let refusal =
                    if idle >= self.idle_limit { self.terminate_other(client, &holder, idle).await? } else { None };
                if reported != Some((pid, refusal.is_some())) {
                    reported = Some((pid, refusal.is_some()));
                    self.report_waiting(client, (pid, idle), refusal).await?;
                }
            }
            let _ = tokio::time::timeout(self.plan.poll, self.orders.changed()).await;
        }
        Ok(())
    }

    /// The deadline of the write block, if this migration blocks writes and as far as that can be read.
    async fn blocked_until(&self, client: &Client) -> Result<Option<Time>, Failure> {
        match worker_lock::blocked_until(client, self.control_spec()).await.unless_lost()? {
            Ok(deadline) => Ok(deadline),
            Err(failure) => {
                tracing::warn!(error = %failure, "the write block cannot be read");
                Ok(None)
            }
        }
    }

    /// Ends an idle session; returns why it cannot, if so.
    async fn terminate_other(
        &mut self,
        client: &Client,
        holder: &LockHolder,
        idle: Duration,
    ) -> Result<Option<Failure>, Failure> {
        let pid = holder.pid;
        match worker_lock::terminate(client, holder).await? {
            Termination::Signalled => {
                tracing::warn!(pid, idle_seconds = idle.as_secs(), "the session of the previous pod is ended");
                self.idle_limit *= 2;
                Ok(None)
            }
            Termination::Refused(why) => Ok(Some(Failure::new(
                Reason::PrivilegeMissing,
                format!(
                    "session {pid} of role {} has the lock of the window and cannot be ended ({why}); next, as a \
                     superuser: SELECT pg_terminate_backend({pid});",
                    holder.role
                ),
            ))),
        }
    }

    /// Reports which session it waits for: without this no one would know why nothing happens.
    async fn report_waiting(
        &mut self,
        client: &Client,
        (pid, idle): (i32, Duration),
        refusal: Option<Failure>,
    ) -> Result<(), Failure> {
        // The report of the other pod must not be replaced by an empty one.
        if let Some(record) =
            window_record::recorded_state(client, self.control_spec(), self.plan.direction).await?.record
            && record.finished.is_none()
        {
            self.progress = record.progress;
            self.progress.switch_acknowledged = record.switch_acknowledged;
        }
        if refusal.is_some() {
            self.progress.stuck = true;
            self.progress.deadline_passed = self.overdue();
        }
        let note = refusal.unwrap_or_else(|| {
            let message = format!(
                "session {} of the previous pod still has the lock of the window, idle for {} s; it is ended after {} \
                    s",
                pid,
                idle.as_secs(),
                self.idle_limit.as_secs()
            );
            Failure::new(Reason::ConnectionLost, message)
        });
        tracing::error!(reason = %note.reason, error = %note, "the window waits for another session");
        self.report(Some(note));
        Ok(())
    }

    /// Writes were blocked by an earlier session: lets this one pass, and takes the lock again.
    pub(super) async fn resume_block(&mut self, client: &mut Client) -> Result<(), Failure> {
        let (token, limit) = (client.cancel_token(), CONTROL_LIMIT);
        let taking_over = write_block::take_over(client, self.control_spec(), self.plan.direction, self.plan.attempt);
        let blocked_at = self.target.bounded(token, limit, taking_over).await?;
        // Read after it was taken over: what the forward window acknowledged binds the rollback.
        if let Some(record) =
            window_record::recorded_state(client, self.control_spec(), self.plan.direction).await?.record
        {
            self.deadline = Some(record.deadline);
            self.progress = record.progress;
            self.progress.switch_acknowledged = record.switch_acknowledged;
        }
        self.progress.blocked_at = blocked_at;
        // The end of an earlier window is not that of this one.
        self.progress.unblocked_at = None;
        self.progress.deadline_passed = false;
        Ok(())
    }
}
