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

mod background;
mod finish;
mod session;
mod sql;
mod takeover;

use std::{
    future::Future,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use tokio::sync::watch;
use tokio_postgres::CancelToken;
use tokio_util::sync::CancellationToken;

use crate::{
    api::{Reason, RunInputs, WindowCommand, WindowOrder, WindowProgress},
    runner::{
        Failure,
        database::control::{Sql, Step, Subject},
        postgres::Target,
        work::Work,
    },
};

/// How often in a row the run must be missing before it counts as gone.
const GONE: u32 = 3;
/// How often in a row the API server must refuse a task that was told to end: one that has just been started may refuse
/// for a moment.
const DENIED: u32 = 12;
/// How long a task that was told to end asks for its run. It works on meanwhile.
const LAST_WORD: Duration = Duration::from_secs(10);

/// How a call to the API server fails.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChannelError {
    /// It may work later.
    #[error("the API server cannot be reached: {0}")]
    Unreachable(String),
    /// The pod's account, or its right to read the run, is not there (401, 403).
    #[error("the API server refuses this pod: {0}")]
    Denied(String),
    /// The `MigrationRun` does not exist any more, or it or its namespace is being deleted.
    #[error("the MigrationRun is gone")]
    Gone,
}

/// The way to the controller. Each call should have a time-out of its own; a call that hangs delays only the next one.
pub trait Channel: Sync {
    /// Reads the controller's order; `Standby` as long as there is none.
    fn order(&self) -> impl Future<Output = Result<WindowOrder, ChannelError>> + Send;
    /// Whether another pod can come after this one, `Gone` if not. Asked when the task was told to end.
    fn successor(&self) -> impl Future<Output = Result<(), ChannelError>> + Send {
        async { self.order().await.map(drop) }
    }
    /// Reports progress, and what is wrong if something is. Called again with something newer if it fails.
    fn report(
        &self,
        progress: &WindowProgress,
        note: Option<&Failure>,
    ) -> impl Future<Output = Result<(), ChannelError>> + Send;
    /// Asks the application for its running version; `None` without a probe or an answer. Asked a few times a second while writes are
    /// blocked and the controller is waited for.
    fn probe_version(&self) -> impl Future<Output = Option<String>> + Send;
    /// The wall clock, to which deadlines are compared.
    fn now(&self) -> Timestamp;
}

/// What a window task is to do.
#[derive(Clone, Debug)]
pub struct WindowPlan {
    /// Names and limits.
    pub subject: Subject,
    /// Way there (`Task::Window`) or way back (`Task::RollbackWindow`).
    pub direction: Step,
    /// Attempt of the run.
    pub attempt: u32,
    /// The up SQL as mounted, or why it cannot be used: of no interest on the way back, and once it is committed.
    pub up: Result<Sql, Failure>,
    /// The down SQL as mounted, or why it cannot be used: once the up SQL is committed the database has it, too.
    pub down: Result<Sql, Failure>,
    /// What the controller saw.
    pub inputs: RunInputs,
    /// The order that is known already: that of the run as it was read, or as an earlier container of this pod kept it.
    pub order: WindowOrder,
    /// How often the API server is asked for an order, usually 250 ms.
    pub poll: Duration,
}

/// How a window task ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The last progress: `Released` or `RolledBack`; `Held` if writes stay blocked; anything earlier if nothing was opened.
    pub progress: WindowProgress,
    /// Why it is no success. `DeadlinePassed` if the task ended the window by itself, `PodFailed` if another pod is to go on.
    pub failure: Option<Failure>,
}

/// What the controller wants, as far as it is known.
#[derive(Clone, Debug)]
struct Orders {
    command: WindowCommand,
    deadline: Option<Timestamp>,
    gone: bool,
    /// Told to end, and nobody comes after.
    last_pod: bool,
}

/// What is reported.
type Report = (WindowProgress, Option<Failure>);

/// Runs a window task to its end. See the head of this file.
///
/// `stop` is cancelled when the process is told to end.
pub async fn run<C: Channel>(channel: &C, target: &Target, plan: &WindowPlan, stop: &CancellationToken) -> Outcome {
    let WindowOrder { command, deadline } = plan.order;
    let (orders_in, orders) = watch::channel(Orders { command, deadline, gone: false, last_pod: false });
    let running = Running::default();
    let (reports, reports_out) = watch::channel::<Report>((WindowProgress::default(), None));
    let reported = reports_out.clone();
    let task = session::Task::new(channel, target, plan, &running, orders, reports);
    let outcome = tokio::select! {
        outcome = task.run() => outcome,
        never = poll(channel, plan.poll, &orders_in) => match never {},
        never = reporter(channel, plan.poll, reports_out) => match never {},
        () = handed_over(channel, plan.poll, &orders_in, stop) => {
            let progress = reported.borrow().0.clone();
            running.cancel(target).await;
            return Outcome { progress, failure: Some(Work::stopped()) };
        }
    };
    // The end is worth some patience; without the API server it is told by the pod's end, and by the database.
    let last = async {
        while channel.report(&outcome.progress, outcome.failure.as_ref()).await.is_err_and(|e| e != ChannelError::Gone)
        {
            tokio::time::sleep(plan.poll).await;
        }
    };
    if tokio::time::timeout(Duration::from_secs(10), last).await.is_err() {
        tracing::warn!(state = ?outcome.progress.state, "the end of the window could not be reported to the API server");
    }
    tracing::info!(state = ?outcome.progress.state, failure = ?outcome.failure, "the window task ends");
    outcome
}

/// The session of the task, for whoever ends the task in the middle.
#[derive(Default)]
struct Running(Mutex<Option<CancelToken>>);

impl Running {
    /// From now on the task works by this session.
    fn is(&self, token: CancelToken) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(token);
    }

    /// Cancels what the session is at. A server that is in the middle of a statement does not see that its client went away: it
    /// would keep its locks, and the next pod waiting, for as long as the statement takes.
    async fn cancel(&self, target: &Target) {
        let token = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(token) = token
            && let Err(failure) = target.cancel(token).await
        {
            tracing::warn!(message = failure.message, "statement not cancelled");
        }
    }
}

/// The SQL must be what the controller saw, people approved and the rehearsal ran.
fn as_approved<'a>(name: &str, mounted: &'a Result<Sql, Failure>, approved: &str) -> Result<&'a Sql, Failure> {
    let mounted = mounted.as_ref().map_err(Failure::clone)?;
    if mounted.sha256 == approved {
        return Ok(mounted);
    }
    let found = &mounted.sha256;
    let message =
        format!("the {name} SQL is {found}, approved was {approved}; next: restore it, or approve the new plan");
    Err(Failure::new(Reason::SqlChanged, message))
}

enum Never {}

/// Asks for orders for ever. Orders only move forward; one that was given stays given while the server is unreachable.
async fn poll<C: Channel>(channel: &C, every: Duration, orders: &watch::Sender<Orders>) -> Never {
    let mut missing = 0;
    loop {
        match channel.order().await {
            Ok(order) => {
                missing = 0;
                orders.send_if_modified(|known| {
                    let deadline = order.deadline.or(known.deadline);
                    let command = order.command.max(known.command);
                    let modified = command != known.command || deadline != known.deadline;
                    (known.command, known.deadline) = (command, deadline);
                    modified
                });
            }
            // Not on a single word: what follows undoes a migration.
            Err(ChannelError::Gone) if missing < GONE => missing += 1,
            Err(ChannelError::Gone) => {
                orders.send_if_modified(|known| !std::mem::replace(&mut known.gone, true));
            }
            Err(error) => {
                // What is not an answer says nothing of the run: the row is broken.
                missing = 0;
                tracing::warn!(%error, "no order");
            }
        }
        tokio::time::sleep(every).await;
    }
}

/// Ends when the task was told to end and another pod will go on. When none will, the run counts as gone and the task ends
/// the window by itself.
async fn handed_over<C: Channel>(
    channel: &C,
    every: Duration,
    orders: &watch::Sender<Orders>,
    stop: &CancellationToken,
) {
    stop.cancelled().await;
    let orphaned = tokio::time::timeout(LAST_WORD, orphaned(channel, every)).await.unwrap_or(false);
    if orphaned || orders.borrow().gone {
        tracing::warn!("told to end, and no pod will come after this one: the window is ended");
        orders.send_modify(|known| (known.gone, known.last_pod) = (true, true));
        std::future::pending::<()>().await;
    }
}

/// Whether nobody will come after this pod. In a namespace that is being deleted the pod's own account and rights may go
/// before it, so a lasting refusal counts, too. Were it wrong, the old state would be back a little early: the next pod reads
/// so in the database.
async fn orphaned<C: Channel>(channel: &C, every: Duration) -> bool {
    let (mut missing, mut denied) = (0, 0);
    loop {
        match channel.successor().await {
            Ok(()) => return false,
            Err(ChannelError::Gone) => missing += 1,
            Err(ChannelError::Denied(_)) => denied += 1,
            Err(ChannelError::Unreachable(_)) => (missing, denied) = (0, 0),
        }
        if missing > GONE || denied > DENIED {
            return true;
        }
        tokio::time::sleep(every).await;
    }
}

/// Reports the newest progress whenever there is a newer one, again after a failure.
async fn reporter<C: Channel>(channel: &C, every: Duration, mut reports: watch::Receiver<Report>) -> Never {
    loop {
        if reports.changed().await.is_err() {
            // The task is about to end; its outcome is reported by the caller.
            std::future::pending::<()>().await;
        }
        loop {
            let (progress, note) = reports.borrow_and_update().clone();
            match channel.report(&progress, note.as_ref()).await {
                Ok(()) | Err(ChannelError::Gone) => break,
                Err(error) => tracing::warn!(%error, "progress not reported"),
            }
            tokio::time::sleep(every).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use tokio::sync::Notify;

    use super::*;

    /// Gives these answers, then none.
    struct Script {
        answers: Mutex<VecDeque<ChannelError>>,
        over: Notify,
    }

    impl Channel for Script {
        async fn order(&self) -> Result<WindowOrder, ChannelError> {
            let next = self.answers.lock().unwrap().pop_front();
            match next {
                Some(error) => Err(error),
                None => {
                    self.over.notify_one();
                    std::future::pending().await
                }
            }
        }

        async fn report(&self, _: &WindowProgress, _: Option<&Failure>) -> Result<(), ChannelError> {
            Ok(())
        }

        async fn probe_version(&self) -> Option<String> {
            None
        }

        fn now(&self) -> Timestamp {
            Timestamp::UNIX_EPOCH
        }
    }

    async fn gone_after(answers: impl IntoIterator<Item = ChannelError>) -> bool {
        let script = Script { answers: Mutex::new(answers.into_iter().collect()), over: Notify::new() };
        let known = Orders { command: WindowCommand::Standby, deadline: None, gone: false, last_pod: false };
        let (orders, seen) = watch::channel(known);
        tokio::select! {
            _ = poll(&script, Duration::ZERO, &orders) => {}
            () = script.over.notified() => {}
        }
        seen.borrow().gone
    }

    #[tokio::test]
    async fn a_run_is_gone_only_when_it_is_missing_several_times_in_a_row() {
        let missing = || (0..GONE).map(|_| ChannelError::Gone);
        for between in [ChannelError::Unreachable("503".to_owned()), ChannelError::Denied("403".to_owned())] {
            assert!(!gone_after(missing().chain([between]).chain(missing())).await);
        }
        assert!(gone_after(missing().chain([ChannelError::Gone])).await);
    }
}
