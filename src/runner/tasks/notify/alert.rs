//! The alert of a stuck window: sent by the window's own pod, because no other process may be there to notify.
//!
//! # Contract
//! - Raised for every stuck window: past an acknowledged switch, after a rollback that failed, without a database. Once
//!   per process, however often the window reports it. Its id is that of the window's run: a pod that goes on, and
//!   raises it again, is one that receivers can drop.
//! - It is cancelled by the controller's order to end the window, or by the window's end: then the controller notifies.
//! - It runs in parallel to the window until one channel has taken it. It cannot affect the window: no delay, no
//!   failure, no panic.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::send_all;
use crate::{
    api::{
        DeliveryState, MigrationRunSpec, Notice, Occasion, Phase, Reason, Task, WindowCommand, WindowOrder,
        WindowProgress,
    },
    runner::{Failure, context::TaskContext, settings::Settings},
    telemetry,
};

/// How long the controller has for its order before the alert is sent.
pub const ALERT_GRACE: Duration = Duration::from_secs(10);
/// First and longest pause between two attempts.
const ALERT_RETRY_PAUSE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));

/// Notifies the contacts that a window is stuck, unless the controller handles it.
pub struct Alert {
    spec: Arc<MigrationRunSpec>,
    namespace: String,
    root: PathBuf,
    grace: Duration,
    /// The window is being ended.
    off: CancellationToken,
    /// No other pod will come: no grace.
    now: CancellationToken,
    /// The alert has ended: it was taken, cancelled, or has no recipient.
    settled: CancellationToken,
    raised: Mutex<Option<JoinHandle<()>>>,
}

impl Alert {
    /// The alert of a window's run; `grace` is usually [`ALERT_GRACE`].
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

    /// What the window reports: raises the alert if it is stuck.
    pub fn reported(&self, progress: &WindowProgress, note: Option<&Failure>) {
        if progress.schema_in_place().is_some() {
            return self.off.cancel();
        }
        if !progress.stuck {
            return;
        }
        let mut raised = self.raised.lock().unwrap_or_else(PoisonError::into_inner);
        if raised.is_none() && !self.off.is_cancelled() {
            let notice = self.notice(progress, note);
            let settled = self.settled.clone().drop_guard();
            let (spec, namespace, root) = (self.spec.clone(), self.namespace.clone(), self.root.clone());
            let (off, now, grace) = (self.off.clone(), self.now.clone(), self.grace);
            let raising = async move {
                // Also if the task panics: its end must not be waited for.
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
                    () = off.cancelled() => tracing::info!("the alert is cancelled: the window is being ended"),
                    () = sending => {}
                }
            };
            *raised = Some(tokio::spawn(raising.in_current_span()));
        }
    }

    /// Until nothing is left to wait for: the alert was taken, cancelled, or never raised. It goes on if this is
    /// dropped.
    pub async fn delivered(&self) {
        let raised = self.raised.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        if raised && !self.off.is_cancelled() {
            self.settled.cancelled().await;
        }
    }

    /// The process is about to end: what was raised has `limit` for one more attempt.
    pub async fn settle(self, limit: Duration) {
        self.now.cancel();
        let raised = self.raised.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(mut raised) = raised
            && tokio::time::timeout(limit, &mut raised).await.is_err()
        {
            raised.abort();
            tracing::error!("the window is stuck, and no channel has taken the alert");
        }
    }

    fn notice(&self, progress: &WindowProgress, note: Option<&Failure>) -> Notice {
        let MigrationRunSpec { migration, migration_uid, task, attempt, .. } = &*self.spec;
        let namespace = &self.namespace;
        let why = note.map_or_else(String::new, |failure| format!(": {}", failure.message));
        let writes = match note.map(|failure| failure.reason) {
            Some(Reason::WritesStillBlocked) => "the write block is off, and writes to the credits are refused",
            _ => "writes to the credits are still blocked",
        };
        let switch = if progress.switch_acknowledged { "had started" } else { "had not started" };
        Notice {
            id: format!("{migration_uid}-{task}-{attempt}-stuck"),
            occasion: Occasion::ManualInterventionRequired,
            at: telemetry::now(),
            message: format!(
                "{writes}{why}. The switch of the application {switch}, and the \
                    controller has sent no order since; next: kubectl creditmigration -n {namespace} rollback \
                    {migration} --confirm --reason WHY; if the API server does not answer: docs/emergency.md, \"API \
                    server down\""
            ),
            phase: if *task == Task::RollbackWindow { Phase::RollingBack } else { Phase::Executing },
            starts_at: None,
            expected_window_seconds: None,
            report_object: None,
            delivered: vec![],
        }
    }
}

/// Sends until one channel has taken it; ends at once if there is no recipient.
async fn until_taken(settings: &Settings<'_>, spec: &MigrationRunSpec, notice: &Notice) {
    let (mut pause, longest) = ALERT_RETRY_PAUSE;
    loop {
        let deliveries = send_all(settings, spec, notice, |_| {}).await;
        if deliveries.is_empty() {
            return tracing::error!("the window is stuck, and spec.notifications has no channel for Team or Support");
        }
        if deliveries.iter().any(|delivery| delivery.state == DeliveryState::Delivered) {
            return;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(longest);
    }
}
