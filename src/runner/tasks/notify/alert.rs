//! The alarm of a window that is held: told by the window's own pod, because nobody else may be there to tell.
//!
//! # Contract
//! - Raised for every window that is held: past an acknowledged switch, by a way back that failed, without a database. Once per
//!   process, however often the window reports it. Its id is that of the window's run: a pod that goes on, and raises it again, is
//!   one that receivers can drop.
//! - It is called off by the controller's order to end the window, or by the window's end: then the controller tells.
//! - It goes on beside the window until one channel has taken it. Nothing of it reaches the window: no delay, no failure, no
//!   panic.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::send_all;
use crate::{
    api::{
        DeliveryState, MigrationRunSpec, Notice, Occasion, Phase, Task, WindowCommand, WindowOrder, WindowProgress,
        WindowState,
    },
    runner::{Failure, context::TaskContext, settings::Settings},
    telemetry,
};

/// How long the controller has for its order, before people are told that there is none.
pub const ALERT_GRACE: Duration = Duration::from_secs(10);
/// First and longest pause between two tries.
const ALERT_RETRY_PAUSE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));

/// Tells the contacts that a window is held, unless the controller is at it.
pub struct Alert {
    spec: Arc<MigrationRunSpec>,
    namespace: String,
    root: PathBuf,
    grace: Duration,
    /// The window is ended by somebody.
    off: CancellationToken,
    /// Nobody will come: no grace.
    now: CancellationToken,
    /// What was raised has come to an end: taken, called off, or nobody to tell.
    settled: CancellationToken,
    raised: Mutex<Option<JoinHandle<()>>>,
}

impl Alert {
    /// The alarm of a window's run; `grace` is usually [`ALERT_GRACE`].
    pub fn new(context: &TaskContext<'_>, grace: Duration) -> Self {
        Self {
            spec: Arc::new(context.spec.clone()),
            namespace: context.settings.namespace().to_owned(),
            root: context.settings.root().to_owned(),
            grace,
            off: CancellationToken::new(),
            now: CancellationToken::new(),
            settled: CancellationToken::new(),
            raised: Mutex::new(None),
        }
    }

    /// What the controller orders.
    pub fn ordered(&self, order: &WindowOrder) {
        if order.command == WindowCommand::Rollback {
            self.off.cancel();
        }
    }

    /// What the window reports: raises the alarm if it is held.
    pub fn reported(&self, progress: &WindowProgress, note: Option<&Failure>) {
        match progress.state {
            WindowState::Held => {}
            WindowState::Released | WindowState::RolledBack => return self.off.cancel(),
            _ => return,
        }
        let mut raised = self.raised.lock().unwrap_or_else(PoisonError::into_inner);
        if raised.is_none() && !self.off.is_cancelled() {
            let notice = self.notice(progress, note);
            let settled = self.settled.clone().drop_guard();
            let (spec, namespace, root) = (self.spec.clone(), self.namespace.clone(), self.root.clone());
            let (off, now, grace) = (self.off.clone(), self.now.clone(), self.grace);
            *raised = Some(tokio::spawn(async move {
                // Also if the task panics: nobody may wait for it.
                let _settled = settled;
                let sending = async {
                    tokio::select! {
                        () = now.cancelled() => {}
                        () = tokio::time::sleep(grace) => {}
                    }
                    until_taken(&Settings::new(root, &spec, &namespace), &spec, &notice).await;
                };
                tokio::select! {
                    biased;
                    () = off.cancelled() => tracing::info!("the alarm is called off: the window is being ended"),
                    () = sending => {}
                }
            }));
        }
    }

    /// Until nothing is left to wait for: the alarm was taken, called off, or never raised. It goes on if this is dropped.
    pub async fn delivered(&self) {
        let raised = self.raised.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        if raised && !self.off.is_cancelled() {
            self.settled.cancelled().await;
        }
    }

    /// The process is about to end: what was raised has `limit` for one more try.
    pub async fn settle(self, limit: Duration) {
        self.now.cancel();
        let raised = self.raised.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(mut raised) = raised
            && tokio::time::timeout(limit, &mut raised).await.is_err()
        {
            raised.abort();
            tracing::error!("the window is held, and no channel has taken the alarm");
        }
    }

    fn notice(&self, progress: &WindowProgress, note: Option<&Failure>) -> Notice {
        let MigrationRunSpec { migration, migration_uid, task, attempt, .. } = &*self.spec;
        let namespace = &self.namespace;
        let why = note.map_or_else(String::new, |failure| format!(": {}", failure.message));
        let begun = if progress.switch_acknowledged { "had begun" } else { "had not begun" };
        Notice {
            id: format!("{migration_uid}-{task:?}-{attempt}-held"),
            occasion: Occasion::ManualInterventionRequired,
            at: telemetry::now(),
            message: format!(
                "writes to the credits stay blocked{why}. The switch of the application {begun}, and no order came from the controller since; next: kubectl creditmigration -n {namespace} rollback {migration} --confirm --reason WHY; if the API server does not answer: docs/emergency.md, \"API server down\""
            ),
            phase: if *task == Task::RollbackWindow { Phase::RollingBack } else { Phase::Executing },
            starts_at: None,
            expected_window_seconds: None,
            report_object: None,
            delivered: vec![],
        }
    }
}

/// Sends until one channel has taken it; at once to an end if no channel is told.
async fn until_taken(settings: &Settings<'_>, spec: &MigrationRunSpec, notice: &Notice) {
    let (mut pause, longest) = ALERT_RETRY_PAUSE;
    loop {
        let deliveries = send_all(settings, spec, notice, |_| {}).await;
        if deliveries.is_empty() {
            return tracing::error!("the window is held, and spec.notifications has no channel for Team or Support");
        }
        if deliveries.iter().any(|delivery| delivery.state == DeliveryState::Delivered) {
            return;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(longest);
    }
}
