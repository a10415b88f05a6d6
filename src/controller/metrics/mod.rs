//! Metrics of the controller in the OpenMetrics text format: of this process here, of each migration in `migrations`,
//! of requests to the API server in `requests`. `docs/observability.md` lists all families.
//!
//! Called by the controller: `reconcile`, `watches`, `client` and `admission` record, `server` renders. Imports
//! `shared`, `api`, and of the controller `error` and `server_clock`.

mod migrations;
mod requests;
#[cfg(test)]
mod tests;
mod workqueue;

use std::{
    sync::{Arc, Mutex, PoisonError, atomic::AtomicU64},
    time::{Duration, Instant},
};

use kube::runtime::watcher;
use prometheus_client::{
    encoding::text::{encode_eof, encode_registry},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use super::{Error, error::ErrorClass, server_clock::ServerClock};
use crate::{
    api::{CreditMigration, CreditMigrationStatus},
    shared::time::Time,
};

use migrations::{Migrations, Snapshot};
use requests::RequestDurations;
use workqueue::Workqueue;

/// Prefix of the name of each family.
const PREFIX: &str = "credit_migration";
/// Upper limits of the buckets of durations, in seconds.
const BUCKETS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// A histogram of durations in seconds.
type Durations<L> = Family<L, Histogram, fn() -> Histogram>;

fn durations<L: Clone + std::hash::Hash + Eq>() -> Durations<L> {
    Family::new_with_constructor(|| Histogram::new(BUCKETS))
}

/// All metrics.
pub(super) struct Metrics {
    registry: Registry,
    waiting_for: Mutex<Option<String>>,
    leader: Gauge,
    reconciles: Counter,
    failures: Family<[(&'static str, ErrorClass); 1], Counter>,
    in_progress: Gauge,
    running: Mutex<Vec<Instant>>,
    workqueue: Workqueue,
    workqueue_depth: Gauge,
    durations: Durations<[(&'static str, &'static str); 1]>,
    watch_errors: Family<[(&'static str, &'static str); 1], Counter>,
    requests: RequestDurations,
    server_clock: ServerClock,
    clock_offset: Gauge<f64, AtomicU64>,
    migrations: Arc<Migrations>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut all = Self {
            registry: Registry::with_prefix(PREFIX),
            waiting_for: Mutex::default(),
            leader: Gauge::default(),
            reconciles: Counter::default(),
            failures: Family::default(),
            in_progress: Gauge::default(),
            running: Mutex::default(),
            workqueue: Workqueue::default(),
            workqueue_depth: Gauge::default(),
            durations: durations(),
            watch_errors: Family::default(),
            requests: RequestDurations::default(),
            server_clock: ServerClock::default(),
            clock_offset: Gauge::default(),
            migrations: Arc::default(),
        };
        // A counter that starts at 1 shows no increase: each exists from the start.
        for class in ErrorClass::ALL {
            let _ = all.failures.get_or_create(&[("class", *class)]);
        }
        for stage in WATCH_STAGES {
            let _ = all.watch_errors.get_or_create(&[("stage", stage)]);
        }
        for outcome in ["success", "failure"] {
            let _ = all.durations.get_or_create(&[("outcome", outcome)]);
        }
        // The library adds the period.
        let registry = &mut all.registry;
        registry.register("leader", "1 if this replica leads", all.leader.clone());
        registry.register("reconciles", "Reconciliations without a failure", all.reconciles.clone());
        registry.register(
            "reconcile_failures",
            "Failed reconciliations, by class; each is retried",
            all.failures.clone(),
        );
        registry.register("reconciles_in_progress", "Reconciliations in progress", all.in_progress.clone());
        registry.register(
            "workqueue_depth",
            "Migrations whose reconciliation is due and has not started",
            all.workqueue_depth.clone(),
        );
        registry.register(
            "reconcile_duration_seconds",
            "Duration of reconciliations, by outcome",
            all.durations.clone(),
        );
        registry.register("watch_errors", "Watches that failed, by stage; each is retried", all.watch_errors.clone());
        registry.register(
            "api_server_clock_offset_seconds",
            "How far the API server's clock is ahead of the controller's; 0 while it is not known",
            all.clock_offset.clone(),
        );
        all.requests.register(registry);
        all
    }
}

impl Metrics {
    /// What this replica waits for before it leads; `None` when it leads.
    pub(super) fn waiting_for(&self) -> Option<String> {
        self.waiting_for.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_waiting_for(&self, what: &str) {
        *self.waiting_for.lock().unwrap_or_else(PoisonError::into_inner) = Some(what.into());
    }

    pub(super) fn leading(&self) {
        *self.waiting_for.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.leader.set(1);
    }

    /// The reconciliation of a migration is due after that time.
    pub(super) fn queued(&self, namespace: &str, name: &str, after: Duration) {
        self.workqueue.add(namespace, name, Instant::now() + after);
    }

    /// Starts to time a reconciliation. It counts as failed unless [`Reconciliation::succeeded`] is called.
    pub(super) fn reconciling(&self, namespace: &str, name: &str) -> Reconciliation<'_> {
        self.workqueue.remove(namespace, name);
        self.in_progress.inc();
        let started = Instant::now();
        self.running.lock().unwrap_or_else(PoisonError::into_inner).push(started);
        Reconciliation { metrics: self, started, outcome: "failure" }
    }

    /// For how long the oldest reconciliation in progress has been running, at `now`.
    pub(super) fn longest_running(&self, now: Instant) -> Duration {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.iter().min().map_or(Duration::ZERO, |started| now.saturating_duration_since(*started))
    }

    pub(super) fn reconciled(&self) {
        self.reconciles.inc();
    }

    pub(super) fn failed(&self, error: &Error) {
        self.failures.get_or_create(&[("class", error.class())]).inc();
    }

    /// Counts a watch that could not list, start or continue.
    pub(super) fn watch_failed(&self, error: &watcher::Error) {
        self.watch_errors.get_or_create(&[("stage", stage(error))]).inc();
    }

    /// Durations of requests to the API server.
    pub(super) fn requests(&self) -> RequestDurations {
        self.requests.clone()
    }

    /// The API server's clock.
    pub(super) fn server_clock(&self) -> ServerClock {
        self.server_clock.clone()
    }

    /// Records a migration and its status, as persisted.
    pub(super) fn observe(&self, namespace: &str, live: &CreditMigration, status: &CreditMigrationStatus, now: Time) {
        self.migrations.observe(namespace, live, status, now);
    }

    pub(super) fn forget(&self, namespace: &str, name: &str) {
        self.workqueue.remove(namespace, name);
        self.migrations.forget(namespace, name);
    }

    /// OpenMetrics text format.
    pub(super) fn render(&self, now: Time) -> String {
        let mut of_migrations = Registry::with_prefix(PREFIX);
        of_migrations.register_collector(Box::new(Snapshot { migrations: self.migrations.clone(), now }));
        let mut text = String::new();
        self.workqueue_depth.set(self.workqueue.depth(Instant::now()).try_into().unwrap_or(i64::MAX));
        let offset = self.server_clock.offset().map_or(0.0, |offset| offset.estimate().as_secs_f64());
        self.clock_offset.set(offset);
        // Writing to a String cannot fail.
        let _ = encode_registry(&mut text, &self.registry)
            .and_then(|()| encode_registry(&mut text, &of_migrations))
            .and_then(|()| encode_eof(&mut text));
        text
    }
}

/// A reconciliation in progress; it ends when this is dropped.
pub(super) struct Reconciliation<'a> {
    metrics: &'a Metrics,
    started: Instant,
    outcome: &'static str,
}

impl Reconciliation<'_> {
    /// Ends it without a failure.
    pub(super) fn succeeded(mut self) {
        self.outcome = "success";
    }
}

impl Drop for Reconciliation<'_> {
    fn drop(&mut self) {
        self.metrics.in_progress.dec();
        let mut running = self.metrics.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(this) = running.iter().position(|started| *started == self.started) {
            running.swap_remove(this);
        }
        drop(running);
        let durations = self.metrics.durations.get_or_create(&[("outcome", self.outcome)]);
        durations.observe(self.started.elapsed().as_secs_f64());
    }
}

/// Stages at which a watch may fail.
const WATCH_STAGES: [&str; 3] = ["list", "start", "stream"];

fn stage(error: &watcher::Error) -> &'static str {
    match error {
        watcher::Error::InitialListFailed(_) => "list",
        watcher::Error::WatchStartFailed(_) | watcher::Error::NoResourceVersion => "start",
        watcher::Error::WatchError(_) | watcher::Error::WatchFailed(_) => "stream",
    }
}
