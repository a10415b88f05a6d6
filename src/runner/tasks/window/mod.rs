//! The window task: blocks writes, runs the SQL, waits for the controller, unblocks writes.
//!
//! Called by the runner's dispatch. Imports `notify` of the tasks, `database`, `clients`, `report`, `context` and
//! `failure` of the runner, `api` and `telemetry`.
//!
//! ```text
//!             API server                                             PostgreSQL
//!  order ──> poller ──┐                                     ┌──> session: write block, ledger, SQL
//!                     ├─ watch ─> task (session.rs) ────────┤
//!  status <─ reporter ┘           never waits for the       └──> other sessions: verification, comparison
//!                                 API server
//! ```
//! What the task does next is decided by [`window_rules`](crate::api::window_rules).
//!
//! # Contract
//! - A second task on the same database (a pod that was started twice, or again) waits until the first has ended, reads
//!   write block, window record and ledger, and resumes from there. Past the deadline, or on `Rollback`, it ends the
//!   session of the first one if that hangs.
//! - The API server is asked, and receives reports, in the background: a server that hangs delays no decision, not even
//!   the one at the deadline.
//! - What is acknowledged (`Switch`) is in the database before it is reported.
//! - Past the deadline, or when the `MigrationRun` is gone: the old state is restored while the switch has not been
//!   acknowledged. Otherwise writes stay blocked (`stuck`), and the task continues to obey `UnblockWrites` and
//!   `Rollback`.
//! - On SIGTERM it asks at once whether its `MigrationRun` exists. If so, or without an answer, it stops where it is,
//!   and the next pod resumes. If not, no other pod will come: it ends the window as above, and ends even if it is
//!   stuck.

pub(in crate::runner) mod api_channel;
mod apply_sql;
mod await_cutover;
mod background;
mod block;
mod finish;
mod kept;
mod orders;
mod plan;
mod session;
mod sql;
mod standby;
mod takeover;

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::watch;
use tokio_postgres::CancelToken;
use tokio_util::sync::CancellationToken;

use self::orders::{Orders, WindowReport, handover, poll, reporter};
pub use self::{
    orders::{Channel, ChannelError},
    plan::{WindowOutcome, WindowPlan},
};
use crate::{
    api::{WindowOrder, WindowProgress},
    runner::{Failure, database::connection::Target},
};

/// Runs a window task to its end. See the head of this file.
///
/// `stop` is cancelled when the process receives SIGTERM.
pub async fn run<C: Channel>(
    channel: &C,
    target: &Target,
    plan: &WindowPlan,
    stop: &CancellationToken,
) -> WindowOutcome {
    let WindowOrder { command, deadline } = plan.order;
    let (order_sender, orders) = watch::channel(Orders { command, deadline, gone: false, last_pod: false });
    let session = CurrentSession::default();
    let (reports, report_receiver) = watch::channel::<WindowReport>((WindowProgress::default(), None));
    let reported = report_receiver.clone();
    let task = session::WindowTask::new(channel, target, plan, &session, orders, reports);
    let outcome = tokio::select! {
        outcome = task.run() => outcome,
        never = poll(channel, plan.poll, &order_sender) => match never {},
        never = reporter(channel, plan.poll, report_receiver) => match never {},
        () = handover(channel, plan.poll, &order_sender, stop) => {
            let progress = reported.borrow().0.clone();
            session.cancel(target).await;
            return WindowOutcome { progress, failure: Some(Failure::terminated()) };
        }
    };
    // Without the API server the end of the pod reports the end of the task, and the database has the result.
    let final_report = async {
        while channel.report(&outcome.progress, outcome.failure.as_ref()).await.is_err_and(|e| e != ChannelError::Gone)
        {
            tokio::time::sleep(plan.poll).await;
        }
    };
    if tokio::time::timeout(Duration::from_secs(10), final_report).await.is_err() {
        tracing::warn!(state = %outcome.progress.state, "the end of the window could not be reported to the API \
            server");
    }
    let error = outcome.failure.as_ref().map(tracing::field::display);
    tracing::info!(state = %outcome.progress.state, error, "the window task ends");
    outcome
}

/// The session of the task, for a caller that cancels the task.
#[derive(Default)]
struct CurrentSession(Mutex<Option<CancelToken>>);

impl CurrentSession {
    /// Sets the session that the task uses from now on.
    fn set(&self, token: CancelToken) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(token);
    }

    /// Cancels the statement of the session. A server that is running a statement does not notice that its client has
    /// gone: it would keep its locks, and let the next pod wait, for as long as the statement takes.
    async fn cancel(&self, target: &Target) {
        let token = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(token) = token
            && let Err(failure) = target.cancel(token).await
        {
            tracing::warn!(error = %failure, "statement not cancelled");
        }
    }
}
