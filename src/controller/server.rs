//! Probes and metrics on one port.
//!
//! Liveness depends on nothing outside the process. A standby replica is ready: it can take over.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use axum::{Router, extract::State, http::StatusCode, routing::get};
use kube::ResourceExt;
use tokio::{net::TcpListener, task::JoinHandle};

use super::Error;
use crate::{
    api::{CreditMigration, CreditMigrationStatus, Time, Writes},
    machine,
};

/// What is exposed. Labels are names of migrations, never texts of errors.
#[derive(Default)]
pub(super) struct Metrics {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    waiting_for: Option<String>,
    leading: bool,
    failures: BTreeMap<&'static str, u64>,
    migrations: BTreeMap<(String, String), Seen>,
}

struct Seen {
    phase: String,
    blocked_since: Option<Time>,
}

impl Metrics {
    fn with<T>(&self, f: impl FnOnce(&mut Inner) -> T) -> T {
        // A poisoned lock still holds counters; losing them would lose the alarm.
        f(&mut self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    pub(super) fn waiting_for(&self, what: &str) {
        self.with(|i| i.waiting_for = Some(what.into()));
    }

    pub(super) fn leading(&self) {
        self.with(|i| {
            i.waiting_for = None;
            i.leading = true;
        });
    }

    pub(super) fn failed(&self, error: &Error) {
        let class = match error {
            Error::Kube(_) => "kubernetes",
            Error::Timeout(_) => "timeout",
            Error::Stale => "conflict",
            Error::LeaseLost => "lease",
            Error::Foreign { .. } => "foreign",
            Error::Config(_) | Error::Listen(_) | Error::Unguarded(_) => "other",
        };
        self.with(|i| *i.failures.entry(class).or_default() += 1);
    }

    pub(super) fn observe(&self, namespace: &str, live: &CreditMigration, status: &CreditMigrationStatus, now: Time) {
        let (name, spec) = (live.name_any(), &live.spec);
        let blocked = status.writes == Some(Writes::Blocked);
        let phase = status.phase.map(|p| format!("{p:?}")).unwrap_or_default();
        // Without the runner's word they may be blocked since the order was given. Counted from now on, at each look anew, a
        // runner that cannot report would never set off the alarm.
        let window = status.window.as_ref();
        let ordered = || window.and_then(|w| w.deadline).map(|at| at - machine::span(spec.window.max_duration));
        let since = window.and_then(|w| w.blocked_at).or_else(ordered).unwrap_or(now);
        let seen = Seen { phase, blocked_since: blocked.then_some(since) };
        self.with(|i| i.migrations.insert((namespace.into(), name), seen));
    }

    pub(super) fn forget(&self, namespace: &str, name: &str) {
        self.with(|i| i.migrations.remove(&(namespace.to_owned(), name.to_owned())));
    }

    /// Prometheus text format.
    fn render(&self, now: Time) -> String {
        self.with(|i| {
            let mut out = String::from("# TYPE credit_migration_leader gauge\n");
            out += &format!("credit_migration_leader {}\n", u8::from(i.leading));
            out += "# TYPE credit_migration_reconcile_failures_total counter\n";
            for (class, n) in &i.failures {
                out += &format!("credit_migration_reconcile_failures_total{{class=\"{class}\"}} {n}\n");
            }
            out += "# TYPE credit_migration_phase gauge\n";
            for ((namespace, name), seen) in &i.migrations {
                out += &format!(
                    "credit_migration_phase{{namespace=\"{namespace}\",name=\"{name}\",phase=\"{}\"}} 1\n",
                    seen.phase
                );
            }
            out += "# TYPE credit_migration_writes_blocked_seconds gauge\n";
            for ((namespace, name), seen) in &i.migrations {
                let seconds = seen.blocked_since.map_or(0.0, |t| now.duration_since(t).as_secs_f64().max(0.0));
                out += &format!(
                    "credit_migration_writes_blocked_seconds{{namespace=\"{namespace}\",name=\"{name}\"}} {seconds}\n"
                );
            }
            out
        })
    }
}

/// Serves until the process ends. `Err` when the port cannot be had.
pub(super) async fn serve(
    address: SocketAddr,
    metrics: Arc<Metrics>,
) -> Result<JoinHandle<std::io::Result<()>>, Error> {
    let listener = TcpListener::bind(address).await?;
    let router = Router::new()
        .route("/livez", get(|| async { "ok" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(|State(m): State<Arc<Metrics>>| async move { m.render(crate::telemetry::now()) }))
        .with_state(metrics);
    Ok(tokio::spawn(async move { axum::serve(listener, router).await }))
}

async fn ready(State(metrics): State<Arc<Metrics>>) -> (StatusCode, String) {
    let text = metrics.with(|i| match &i.waiting_for {
        Some(what) => format!("ok, standing by for {what}"),
        None => "ok, leading".to_owned(),
    });
    (StatusCode::OK, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::WindowStatus;

    fn at(seconds: i64) -> Time {
        Time::from_second(seconds).unwrap()
    }

    #[rstest::rstest]
    #[case::said_by_the_runner(Some(1100), Some(1150), 60.0)]
    #[case::the_runner_is_silent(None, Some(1120), 100.0)]
    #[case::no_window(None, None, 0.0)]
    fn blocked_writes_grow_older(#[case] blocked: Option<i64>, #[case] deadline: Option<i64>, #[case] seconds: f64) {
        let spec = machine::fixture::spec();
        assert_eq!(machine::span(spec.window.max_duration).as_secs(), 60);
        let window =
            WindowStatus { blocked_at: blocked.map(at), deadline: deadline.map(at), ..WindowStatus::default() };
        let status = CreditMigrationStatus {
            writes: Some(Writes::Blocked),
            window: Some(window),
            ..CreditMigrationStatus::default()
        };
        let metrics = Metrics::default();
        // However often it is looked at.
        for now in [1100, 1160] {
            metrics.observe("shop", &CreditMigration::new("m", spec.clone()), &status, at(now));
        }
        let line = format!("credit_migration_writes_blocked_seconds{{namespace=\"shop\",name=\"m\"}} {seconds}\n");
        assert!(metrics.render(at(1160)).contains(&line), "{}", metrics.render(at(1160)));
    }
}
