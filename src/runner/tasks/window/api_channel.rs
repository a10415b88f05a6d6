//! The window's channel to the controller: its own `MigrationRun` at the API server.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use serde_json::{Map, json};

use super::{Channel, ChannelError, WindowPlan};
use crate::{
    api::{Direction, MigrationRun, Reason, Time, VersionProbe, WindowCommand, WindowOrder, WindowProgress},
    runner::{
        Failure,
        clients::http_probe::Prober,
        context::TaskContext,
        database::control::ControlSpec,
        report::{Reporter, order_cache::OrderCache, window_fields},
        tasks::notify::{self, Alert},
    },
    telemetry,
};

/// Longest wait for the API server. An order that comes later is asked for again.
const ORDER_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a window task asks for orders.
const ORDER_POLL_INTERVAL: Duration = Duration::from_millis(250);

/// Tasks `Window` and `RollbackWindow` of a run, over the API server.
///
/// # Errors
/// Those of the settings, and how the window failed.
pub(in crate::runner) async fn run(
    context: &TaskContext<'_>,
    reporter: &Reporter,
    cache: OrderCache,
    direction: Direction,
) -> Result<String, Failure> {
    let target = context.settings.target()?;
    let sql = context.mounted_sql();
    let order = order_of(&context.spec.window);
    let plan = WindowPlan {
        control_spec: ControlSpec {
            rehearsed_schema: context.spec.inputs.schema_sha256.clone(),
            approved_rights_lost: context.spec.inputs.rights_lost.clone(),
            ..context.control_spec()
        },
        direction,
        attempt: context.spec.attempt,
        up: sql.up,
        down: sql.down,
        inputs: context.spec.inputs.clone(),
        order: order.clone(),
        poll: ORDER_POLL_INTERVAL,
    };
    let (probe, alert) =
        (context.spec.plan.application.version_probe.clone(), Alert::new(context, notify::ALERT_GRACE));
    let channel = ApiChannel::new(reporter.clone(), Prober::new()?, probe, alert, cache, order);
    let outcome = super::run(&channel, &target, &plan, &context.stop).await;
    let handed_over = outcome.failure.as_ref().is_some_and(|failure| failure.reason == Reason::PodFailed);
    if outcome.progress.stuck && !handed_over {
        // The report of the end would end the process, within the grace before the alert is sent.
        tokio::select! {
            () = channel.until_acknowledged(ORDER_POLL_INTERVAL, notify::ALERT_GRACE + notify::DELIVERY_TIMEOUT) => {}
            () = context.stop.cancelled() => {}
        }
        if context.stop.is_cancelled() {
            // No pod comes after this one. In all other cases the process lives on until its end was reported.
            channel.into_alert().settle(notify::DELIVERY_TIMEOUT).await;
        }
    }
    context.progress.update(|status| status.window = Some(outcome.progress.clone()));
    match outcome.failure {
        None => Ok(format!("window ended: {}", outcome.progress.state)),
        Some(failure) => Err(failure),
    }
}

/// Orders from `spec.window`, reports to `status.window`, versions from the application's probe.
struct ApiChannel {
    reporter: Reporter,
    prober: Prober,
    probe: Option<VersionProbe>,
    alert: Alert,
    cache: OrderCache,
    /// The newest order that was seen.
    known: Mutex<WindowOrder>,
}

impl ApiChannel {
    /// A channel over a run's reporter. `alert` gets what is ordered and reported, `cache` has each new order; `known`
    /// is the order that the process started with.
    pub fn new(
        reporter: Reporter,
        prober: Prober,
        probe: Option<VersionProbe>,
        alert: Alert,
        cache: OrderCache,
        known: WindowOrder,
    ) -> Self {
        alert.ordered(&known);
        Self { reporter, prober, probe, alert, cache, known: Mutex::new(known) }
    }

    /// The alert, at the process's end.
    pub fn into_alert(self) -> Alert {
        self.alert
    }

    /// After a window that ended stuck: until the alert was delivered, or a new order shows that the controller handles
    /// it and notifies. At most `limit`; the alert goes on after it, for as long as the process lives.
    pub async fn until_acknowledged(&self, every: Duration, limit: Duration) {
        let first_order = self.known();
        let ordered = async {
            while self.order().await.is_err() || self.known() == first_order {
                tokio::time::sleep(every).await;
            }
        };
        tokio::select! {
            () = self.alert.delivered() => {}
            () = ordered => {}
            () = tokio::time::sleep(limit) => {}
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

/// The order in `spec.window`; `Standby` as long as there is no order.
fn order_of(window: &Option<WindowOrder>) -> WindowOrder {
    window.clone().unwrap_or(WindowOrder { command: WindowCommand::Standby, deadline: None })
}

/// Runs one call with a time-out: a server that accepts and keeps silent must not hold the next order back.
async fn within<T>(call: impl Future<Output = kube::Result<T>>) -> Result<T, ChannelError> {
    match tokio::time::timeout(ORDER_TIMEOUT, call).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(kube::Error::Api(status))) if status.code == 404 => Err(ChannelError::Gone),
        Ok(Err(kube::Error::Api(status))) if [401, 403].contains(&status.code) => {
            Err(ChannelError::Denied(status.message.clone()))
        }
        Ok(Err(error)) => Err(ChannelError::Unreachable(error.to_string())),
        Err(_) => Err(ChannelError::Unreachable(format!("no answer within {} s", ORDER_TIMEOUT.as_secs()))),
    }
}

impl Channel for ApiChannel {
    async fn order(&self) -> Result<WindowOrder, ChannelError> {
        let run = within(self.reporter.try_get()).await?.ok_or(ChannelError::Gone)?;
        if run.metadata.deletion_timestamp.is_some() {
            return Err(ChannelError::Gone);
        }
        let order = order_of(&run.spec.window);
        self.alert.ordered(&order);
        self.note(&run, &order);
        Ok(order)
    }

    async fn successor(&self) -> Result<(), ChannelError> {
        self.order().await?;
        // Of a namespace that is being deleted the pods go first: the run is still there, but no other pod can be made
        // for it. Without the right to read it (an older chart) the run alone decides: a refusal here must not count as
        // one of the run.
        match within(self.reporter.namespace_ends()).await {
            Ok(true) => Err(ChannelError::Gone),
            Ok(false) | Err(ChannelError::Denied(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn report(&self, progress: &WindowProgress, note: Option<&Failure>) -> Result<(), ChannelError> {
        // Before the report to the API server, which may hang.
        self.alert.reported(progress, note);
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
