//! Orders from the controller and reports to it, on the side of the task: a slow API server delays nothing here.

use std::{future::Future, time::Duration};

use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    api::{WindowCommand, WindowOrder, WindowProgress},
    runner::Failure,
};

/// How often in a row the run must be missing before it counts as gone.
const MISSES_UNTIL_GONE: u32 = 3;
/// How often in a row the API server must refuse a task that was told to end: one that has just been started may refuse
/// for a moment.
const DENIALS_UNTIL_GONE: u32 = 12;
/// How long a task that was told to end asks for its run. It works on meanwhile.
const SUCCESSOR_TIMEOUT: Duration = Duration::from_secs(10);

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

/// What the controller wants, as far as it is known.
#[derive(Clone, Debug)]
pub(super) struct Orders {
    pub(super) command: WindowCommand,
    pub(super) deadline: Option<Timestamp>,
    pub(super) gone: bool,
    /// Told to end, and nobody comes after.
    pub(super) last_pod: bool,
}

/// What is reported.
pub(super) type WindowReport = (WindowProgress, Option<Failure>);

pub(super) enum Never {}

/// Asks for orders for ever. Orders only move forward; one that was given stays given while the server is unreachable.
pub(super) async fn poll<C: Channel>(channel: &C, every: Duration, orders: &watch::Sender<Orders>) -> Never {
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
            Err(ChannelError::Gone) if missing < MISSES_UNTIL_GONE => missing += 1,
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
pub(super) async fn handover<C: Channel>(
    channel: &C,
    every: Duration,
    orders: &watch::Sender<Orders>,
    stop: &CancellationToken,
) {
    stop.cancelled().await;
    let alone = tokio::time::timeout(SUCCESSOR_TIMEOUT, has_no_successor(channel, every)).await.unwrap_or(false);
    if alone || orders.borrow().gone {
        tracing::warn!("told to end, and no pod will come after this one: the window is ended");
        orders.send_modify(|known| (known.gone, known.last_pod) = (true, true));
        std::future::pending::<()>().await;
    }
}

/// Whether nobody will come after this pod. In a namespace that is being deleted the pod's own account and rights may go
/// before it, so a lasting refusal counts, too. Were it wrong, the old state would be back a little early: the next pod reads
/// so in the database.
async fn has_no_successor<C: Channel>(channel: &C, every: Duration) -> bool {
    let (mut missing, mut denied) = (0, 0);
    loop {
        match channel.successor().await {
            Ok(()) => return false,
            Err(ChannelError::Gone) => missing += 1,
            Err(ChannelError::Denied(_)) => denied += 1,
            Err(ChannelError::Unreachable(_)) => (missing, denied) = (0, 0),
        }
        if missing > MISSES_UNTIL_GONE || denied > DENIALS_UNTIL_GONE {
            return true;
        }
        tokio::time::sleep(every).await;
    }
}

/// Reports the newest progress whenever there is a newer one, again after a failure.
pub(super) async fn reporter<C: Channel>(
    channel: &C,
    every: Duration,
    mut reports: watch::Receiver<WindowReport>,
) -> Never {
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
    use std::{collections::VecDeque, sync::Mutex};

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
        let missing = || (0..MISSES_UNTIL_GONE).map(|_| ChannelError::Gone);
        for between in [ChannelError::Unreachable("503".to_owned()), ChannelError::Denied("403".to_owned())] {
            assert!(!gone_after(missing().chain([between]).chain(missing())).await);
        }
        assert!(gone_after(missing().chain([ChannelError::Gone])).await);
    }
}
