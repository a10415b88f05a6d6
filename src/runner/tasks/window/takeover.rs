//! Becoming the one task that works: a second pod waits for the first, unless that one hangs.
//!
//! A pod that was killed in the middle of a statement leaves its session behind: the server looks for its client when the statement
//! ends, or every second if it can ([`Target::connect`](crate::runner::postgres::Target::connect)). Until then that session has the
//! lock, and the tables. Before the deadline it may also be the session of a pod that is well; past it, or when the way back is
//! ordered, one that has been at the same statement for long is ended. The time doubles with each: of two pods that are both well
//! one must come to its end.

use tokio_postgres::Client;

use super::{Channel, session::WindowTask};
use crate::{
    api::{
        Reason, WindowState,
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
    /// Waits until no other task works on this database. With writes blocked it says so past the deadline or on `Rollback`, and ends
    /// the other's session; a session that it may not end is `Held`.
    pub(super) async fn acquire_worker_lock(&mut self, client: &Client) -> Result<(), Failure> {
        let mut reported = None;
        while !worker_lock::try_acquire(client).await? {
            let writes_blocked = self.writes_blocked(client).await?;
            if self.next_move(WindowActivity::WaitingForOtherPod { writes_blocked }) == Move::ReplaceOtherPod
                && let Some(holder) = worker_lock::lock_holder(client).await?
            {
                let pid = holder.pid;
                let refusal = if holder.idle_for >= self.idle_limit {
                    self.terminate_other(client, &holder).await?
                } else {
                    None
                };
                if reported != Some((pid, refusal.is_some())) {
                    reported = Some((pid, refusal.is_some()));
                    self.report_waiting(client, &holder, refusal).await?;
                }
            }
            let _ = tokio::time::timeout(self.plan.poll, self.orders.changed()).await;
        }
        Ok(())
    }

    /// Whether writes are blocked by this migration, as far as that can be read; keeps until when.
    async fn writes_blocked(&mut self, client: &Client) -> Result<bool, Failure> {
        match worker_lock::blocked_until(client, self.control_spec()).await.unless_lost()? {
            Ok(Some(deadline)) => {
                self.deadline = Some(deadline);
                Ok(true)
            }
            Ok(None) => Ok(false),
            Err(failure) => {
                tracing::warn!(error = %failure, "the gate cannot be read");
                Ok(false)
            }
        }
    }

    /// Ends a silent session; why it may not be ended, if so.
    async fn terminate_other(&mut self, client: &Client, holder: &LockHolder) -> Result<Option<Failure>, Failure> {
        let pid = holder.pid;
        match worker_lock::terminate(client, holder).await? {
            Termination::Signalled => {
                tracing::warn!(pid, idle_for = ?holder.idle_for, "the session of the pod before is ended");
                self.idle_limit *= 2;
                Ok(None)
            }
            Termination::Refused(why) => Ok(Some(Failure::new(
                Reason::PrivilegeMissing,
                format!(
                    "session {pid} of role {} holds the window and may not be ended ({why}); next, as a superuser: SELECT pg_terminate_backend({pid});",
                    holder.role
                ),
            ))),
        }
    }

    /// Reports on whom it waits for; without this nobody would know why nothing happens.
    async fn report_waiting(
        &mut self,
        client: &Client,
        holder: &LockHolder,
        refusal: Option<Failure>,
    ) -> Result<(), Failure> {
        // Not an empty report in the place of the other's.
        if let Some(record) =
            window_record::recorded_state(client, self.control_spec(), self.plan.direction).await?.record
            && record.finished.is_none()
        {
            self.progress = record.progress;
            self.progress.switch_acknowledged = record.switch_acknowledged;
        }
        if refusal.is_some() {
            self.progress.state = WindowState::Held;
            self.progress.deadline_passed = self.overdue();
        }
        let note = refusal.unwrap_or_else(|| {
            let message = format!(
                "session {} of the pod before still holds the window, silent for {} s; it is ended after {} s",
                holder.pid,
                holder.idle_for.as_secs(),
                self.idle_limit.as_secs()
            );
            Failure::new(Reason::ConnectionLost, message)
        });
        tracing::error!(reason = %note.reason, error = %note, "the window waits for another session");
        self.report(Some(note));
        Ok(())
    }

    /// The gate was closed by an earlier session: lets this one pass, and takes the lock again.
    pub(super) async fn resume_block(&mut self, client: &mut Client) -> Result<(), Failure> {
        self.writes_may_be_blocked = true;
        let blocked_at =
            write_block::take_over(client, self.control_spec(), self.plan.direction, self.plan.attempt).await?;
        // Read after it was adopted: what the way there has acknowledged binds the way back.
        if let Some(record) =
            window_record::recorded_state(client, self.control_spec(), self.plan.direction).await?.record
        {
            self.deadline = Some(record.deadline);
            self.progress = record.progress;
            self.progress.switch_acknowledged = record.switch_acknowledged;
        }
        self.progress.blocked_at = blocked_at;
        // An earlier window's end is not this one's.
        self.progress.released_at = None;
        self.progress.deadline_passed = false;
        Ok(())
    }
}
