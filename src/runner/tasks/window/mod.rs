//! The window task: blocks writes, runs the SQL, waits for the controller, opens the gate. Always ends, or tells.
//!
//! ```text
//!             API server                                             PostgreSQL
//!  order ──> poller ──┐                                     ┌──> session: gate, ledger, SQL
//!                     ├─ watch ─> task (session.rs) ────────┤
//!  status <─ reporter ┘           never waits for the       └──> side sessions: proof, comparison
//!                                 API server
//! ```
//!
//! # Contract
//! - A second task on the same database (a pod started twice, or again) waits until the first is gone, reads gate, intent
//!   and ledger, and goes on from there. Past the deadline, or on `Rollback`, it ends the first one's session if that hangs.
//! - The API server is asked and told on the side: a server that hangs delays no decision, not even the deadline's.
//! - What is acknowledged (`Switch`) is in the database before it is reported.
//! - Past the deadline, or when the `MigrationRun` is gone: the old state is restored while the switch has not been
//!   acknowledged; else writes stay blocked (`Held`), and the task goes on obeying `UnblockWrites` and `Rollback`.
//! - Told to end, it asks at once whether its `MigrationRun` is there. If so, or without an answer, it stops where it is: the
//!   next pod goes on. If not, no other pod will come: it ends the window as above, and ends itself even if it is `Held`.

pub(in crate::runner) mod api_channel;
mod apply_sql;
mod await_cutover;
mod background;
mod block;
mod finish;
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
/// `stop` is cancelled when the process is told to end.
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
    // The end is worth some patience; without the API server it is told by the pod's end, and by the database.
    let final_report = async {
        while channel.report(&outcome.progress, outcome.failure.as_ref()).await.is_err_and(|e| e != ChannelError::Gone)
        {
            tokio::time::sleep(plan.poll).await;
        }
    };
    if tokio::time::timeout(Duration::from_secs(10), final_report).await.is_err() {
        tracing::warn!(state = ?outcome.progress.state, "the end of the window could not be reported to the API server");
    }
    tracing::info!(state = ?outcome.progress.state, error = outcome.failure.as_ref().map(tracing::field::display), "the window task ends");
    outcome
}

/// The session of the task, for whoever ends the task in the middle.
#[derive(Default)]
struct CurrentSession(Mutex<Option<CancelToken>>);

impl CurrentSession {
    /// From now on the task works by this session.
    fn set(&self, token: CancelToken) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(token);
    }

    /// Cancels what the session is at. A server that is in the middle of a statement does not see that its client went away: it
    /// would keep its locks, and the next pod waiting, for as long as the statement takes.
    async fn cancel(&self, target: &Target) {
        let token = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(token) = token
            && let Err(failure) = target.cancel(token).await
        {
            tracing::warn!(error = %failure, "statement not cancelled");
        }
    }
}
