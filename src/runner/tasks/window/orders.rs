//! Orders from the controller and reports to it, in the background: a slow API server does not delay the task.

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
/// How often in a row the API server must refuse a task that received SIGTERM: a server that has just been started may
/// refuse for a moment.
const DENIALS_UNTIL_GONE: u32 = 12;
/// How long a task that received SIGTERM asks for its run. It continues its work meanwhile.
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

/// The channel to the controller. Each call should have a time-out of its own; a call that hangs delays only the next
/// one.
pub trait Channel: Sync {
    /// Reads the controller's order; `Standby` as long as there is none.
    fn order(&self) -> impl Future<Output = Result<WindowOrder, ChannelError>> + Send;
    /// Whether another pod can come after this one, `Gone` if not. Asked after SIGTERM.
    fn successor(&self) -> impl Future<Output = Result<(), ChannelError>> + Send {
        async { self.order().await.map(drop) }
    }
    /// Reports progress, and what is wrong if something is. Called again with something newer if it fails.
    fn report(
        &self,
        progress: &WindowProgress,
        note: Option<&Failure>,
    ) -> impl Future<Output = Result<(), ChannelError>> + Send;
    /// Asks the application for its running version; `None` without a probe or an answer. Asked a few times a second
    /// while writes are blocked and the task waits for the controller.
    fn probe_version(&self) -> impl Future<Output = Option<String>> + Send;
    /// The wall clock, with which deadlines are compared.
    fn now(&self) -> Timestamp;
}

/// What the controller wants, as far as it is known.
#[derive(Clone, Debug)]
pub(super) struct Orders {
    pub(super) command: WindowCommand,
    pub(super) deadline: Option<Timestamp>,
    pub(super) gone: bool,
    /// SIGTERM was received, and no other pod will come.
    pub(super) last_pod: bool,
}

/// What is reported.
pub(super) type WindowReport = (WindowProgress, Option<Failure>);

pub(super) enum Never {}

/// Asks for orders until it is dropped. Orders only move forward; an order stays in force while the server is
/// unreachable.
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
            // Not after a single answer: what follows rolls a migration back.
            Err(ChannelError::Gone) if missing < MISSES_UNTIL_GONE => missing += 1,
            Err(ChannelError::Gone) => {
                orders.send_if_modified(|known| !std::mem::replace(&mut known.gone, true));
            }
            Err(error) => {
                // An error says nothing about the run: the count starts again.
                missing = 0;
                tracing::warn!(%error, "no order");
            }
        }
        tokio::time::sleep(every).await;
    }
}

/// Ends after SIGTERM if another pod will resume. If none will, the run counts as gone and the task ends the window by
/// itself.
pub(super) async fn handover<C: Channel>(
    channel: &C,
    every: Duration,
    orders: &watch::Sender<Orders>,
    stop: &CancellationToken,
) {
    stop.cancelled().await;
    let alone = tokio::time::timeout(SUCCESSOR_TIMEOUT, has_no_successor(channel, every)).await.unwrap_or(false);
    if alone || orders.borrow().gone {
        tracing::warn!("SIGTERM received, and no other pod will come: the window is ended");
        orders.send_modify(|known| (known.gone, known.last_pod) = (true, true));
        std::future::pending::<()>().await;
    }
}

/// Whether no other pod will come. In a namespace that is being deleted the account and rights of the pod may be
/// deleted before it, so a lasting refusal counts, too. If that is wrong, the old state is restored a little early,
/// and the next pod reads so in the database.
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
        exhausted: Notify,
    }

    impl Channel for Script {
        async fn order(&self) -> Result<WindowOrder, ChannelError> {
            let next = self.answers.lock().unwrap().pop_front();
            match next {
                Some(error) => Err(error),
                None => {
                    self.exhausted.notify_one();
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
        let script = Script { answers: Mutex::new(answers.into_iter().collect()), exhausted: Notify::new() };
        let known = Orders { command: WindowCommand::Standby, deadline: None, gone: false, last_pod: false };
        let (orders, seen) = watch::channel(known);
        tokio::select! {
            _ = poll(&script, Duration::ZERO, &orders) => {}
            () = script.exhausted.notified() => {}
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
