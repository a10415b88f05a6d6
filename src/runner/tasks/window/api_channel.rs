//! The window's way to the controller: its own `MigrationRun` at the API server.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use serde_json::{Map, json};

use super::{Channel, ChannelError};
use crate::{
    api::{MigrationRun, Time, VersionProbe, WindowCommand, WindowOrder, WindowProgress},
    runner::{
        Failure,
        clients::http_probe::Prober,
        report::{Reporter, order_cache::OrderCache, window_fields},
        tasks::notify::Alarm,
    },
    telemetry,
};

/// Longest wait for the API server. An order that comes later is asked for again.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Orders from `spec.window`, reports to `status.window`, versions from the application's probe.
pub(in crate::runner) struct ApiChannel {
    reporter: Reporter,
    prober: Prober,
    probe: Option<VersionProbe>,
    alarm: Alarm,
    cache: OrderCache,
    /// The newest order that was seen.
    known: Mutex<WindowOrder>,
}

impl ApiChannel {
    /// A channel over a run's reporter. `alarm` hears what is ordered and reported, `cache` has each new order; `known` is the order
    /// that the process began with.
    pub fn new(
        reporter: Reporter,
        prober: Prober,
        probe: Option<VersionProbe>,
        alarm: Alarm,
        cache: OrderCache,
        known: WindowOrder,
    ) -> Self {
        alarm.ordered(&known);
        Self { reporter, prober, probe, alarm, cache, known: Mutex::new(known) }
    }

    /// The alarm, at the process's end.
    pub fn into_alarm(self) -> Alarm {
        self.alarm
    }

    /// After a window that ended as `Held`: until people were told, or the controller shows by a new order that it is at it; then
    /// it tells. At most `patience`; the alarm goes on after it, for as long as the process lives.
    pub async fn until_acknowledged(&self, every: Duration, patience: Duration) {
        let begin = self.known();
        let ordered = async {
            while self.order().await.is_err() || self.known() == begin {
                tokio::time::sleep(every).await;
            }
        };
        tokio::select! {
            () = self.alarm.delivered() => {}
            () = ordered => {}
            () = tokio::time::sleep(patience) => {}
        }
    }

    fn known(&self) -> WindowOrder {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Keeps an order that is new.
    fn note(&self, run: &MigrationRun, order: &WindowOrder) {
        let known = std::mem::replace(&mut *self.known.lock().unwrap_or_else(PoisonError::into_inner), order.clone());
        if known != *order {
            self.cache.write(run);
        }
    }
}

/// What stands in `spec.window`; `Standby` as long as there is no order.
pub(in crate::runner) fn order_of(window: &Option<WindowOrder>) -> WindowOrder {
    window.clone().unwrap_or(WindowOrder { command: WindowCommand::Standby, deadline: None })
}

/// Runs one call with a time-out: a server that accepts and keeps silent must not hold the next order back.
async fn within<T>(call: impl Future<Output = kube::Result<T>>) -> Result<T, ChannelError> {
    match tokio::time::timeout(TIMEOUT, call).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(kube::Error::Api(status))) if status.code == 404 => Err(ChannelError::Gone),
        Ok(Err(kube::Error::Api(status))) if [401, 403].contains(&status.code) => {
            Err(ChannelError::Denied(status.message.clone()))
        }
        Ok(Err(error)) => Err(ChannelError::Unreachable(error.to_string())),
        Err(_) => Err(ChannelError::Unreachable(format!("no answer within {} s", TIMEOUT.as_secs()))),
    }
}

impl Channel for ApiChannel {
    async fn order(&self) -> Result<WindowOrder, ChannelError> {
        let run = within(self.reporter.try_get()).await?.ok_or(ChannelError::Gone)?;
        if run.metadata.deletion_timestamp.is_some() {
            return Err(ChannelError::Gone);
        }
        let order = order_of(&run.spec.window);
        self.alarm.ordered(&order);
        self.note(&run, &order);
        Ok(order)
    }

    async fn successor(&self) -> Result<(), ChannelError> {
        self.order().await?;
        // Of a namespace that is being deleted the pods go first: the run is still there, but no other pod can be made for it.
        // Without the right to look (an older chart) the run's own word must do: a refusal here must not read as the run's.
        match within(self.reporter.namespace_ends()).await {
            Ok(true) => Err(ChannelError::Gone),
            Ok(false) | Err(ChannelError::Denied(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn report(&self, progress: &WindowProgress, note: Option<&Failure>) -> Result<(), ChannelError> {
        // Before the API server is told: it may hang.
        self.alarm.reported(progress, note);
        let mut fields = Map::new();
        fields.insert("window".into(), window_fields(progress));
        fields.insert("reason".into(), json!(note.map(|failure| failure.reason)));
        fields.insert("message".into(), json!(note.map(|failure| &failure.message)));
        within(self.reporter.patch_once(&fields)).await
    }

    async fn probe_version(&self) -> Option<String> {
        // What goes wrong here is no news while pods are being replaced.
        self.prober.version(self.probe.as_ref()?).await.ok().map(|answer| answer.version)
    }

    fn now(&self) -> Time {
        telemetry::now()
    }
}
