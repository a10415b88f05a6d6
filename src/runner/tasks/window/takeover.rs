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
            worker_lock::{self, Ended, Holder},
            write_block,
        },
    },
};

impl<C: Channel> WindowTask<'_, C> {
    /// Waits until no other task works on this database. With writes blocked it says so past the deadline or on `Rollback`, and ends
    /// the other's session; a session that it may not end is `Held`.
    pub(super) async fn take_the_work(&mut self, client: &Client) -> Result<(), Failure> {
        let mut told = None;
        while !worker_lock::try_work(client).await? {
            let writes_blocked = self.writes_blocked(client).await?;
            if self.next_move(WindowActivity::WaitingForOtherPod { writes_blocked }) == Move::ReplaceOtherPod
                && let Some(holder) = worker_lock::holder(client).await?
            {
                let pid = holder.pid;
                let refused =
                    if holder.silent >= self.stale { self.end_the_other(client, &holder).await? } else { None };
                if told != Some((pid, refused.is_some())) {
                    told = Some((pid, refused.is_some()));
                    self.tell_of(client, &holder, refused).await?;
                }
            }
            let _ = tokio::time::timeout(self.plan.poll, self.orders.changed()).await;
        }
        Ok(())
    }

    /// Whether writes are blocked by this migration, as far as that can be read; keeps until when.
    async fn writes_blocked(&mut self, client: &Client) -> Result<bool, Failure> {
        match worker_lock::closed_until(client, self.control_spec()).await.unless_lost()? {
            Ok(Some(deadline)) => {
                self.deadline = Some(deadline);
                Ok(true)
            }
            Ok(None) => Ok(false),
            Err(failure) => {
                tracing::warn!(message = failure.message, "the gate cannot be read");
                Ok(false)
            }
        }
    }

    /// Ends a silent session; why it may not be ended, if so.
    async fn end_the_other(&mut self, client: &Client, holder: &Holder) -> Result<Option<Failure>, Failure> {
        let pid = holder.pid;
        match worker_lock::end(client, holder).await? {
            Ended::Told => {
                tracing::warn!(pid, silent = ?holder.silent, "the session of the pod before is ended");
                self.stale *= 2;
                Ok(None)
            }
            Ended::Refused(why) => Ok(Some(Failure::new(
                Reason::PrivilegeMissing,
                format!(
                    "session {pid} of role {} holds the window and may not be ended ({why}); next, as a superuser: SELECT pg_terminate_backend({pid});",
                    holder.role
                ),
            ))),
        }
    }

    /// Reports on whom it waits for; without this nobody would know why nothing happens.
    async fn tell_of(&mut self, client: &Client, holder: &Holder, refused: Option<Failure>) -> Result<(), Failure> {
        // Not an empty report in the place of the other's.
        if let Some(intent) = write_block::observe(client, self.control_spec(), self.plan.direction).await?.intent
            && intent.finished.is_none()
        {
            self.progress = intent.progress;
            self.progress.switch_acknowledged = intent.switch_acknowledged;
        }
        if refused.is_some() {
            self.progress.state = WindowState::Held;
            self.progress.deadline_passed = self.overdue();
        }
        let note = refused.unwrap_or_else(|| {
            let message = format!(
                "session {} of the pod before still holds the window, silent for {} s; it is ended after {} s",
                holder.pid,
                holder.silent.as_secs(),
                self.stale.as_secs()
            );
            Failure::new(Reason::ConnectionLost, message)
        });
        tracing::error!(reason = %note.reason, message = note.message, "the window waits for another session");
        self.report(Some(note));
        Ok(())
    }

    /// The gate was closed by an earlier session: lets this one pass, and takes the lock again.
    pub(super) async fn take_over(&mut self, client: &mut Client) -> Result<(), Failure> {
        self.opened = true;
        let closed_at = write_block::adopt(client, self.control_spec(), self.plan.direction, self.plan.attempt).await?;
        // Read after it was adopted: what the way there has acknowledged binds the way back.
        if let Some(intent) = write_block::observe(client, self.control_spec(), self.plan.direction).await?.intent {
            self.deadline = Some(intent.deadline);
            self.progress = intent.progress;
            self.progress.switch_acknowledged = intent.switch_acknowledged;
        }
        self.progress.blocked_at = closed_at;
        // An earlier window's end is not this one's.
        self.progress.released_at = None;
        self.progress.deadline_passed = false;
        Ok(())
    }
}
