//! The checks of the spec: measured at their intervals (`watch`), judged (`evaluator`); one file per source of values,
//! each with what it keeps between two measurements. `workload` and `job` checks are not here: the controller measures
//! them.
//!
//! Called by `tasks`. Imports `context`, `settings`, `database`, `clients`, `report` and `failure` of the runner,
//! `api`, `shared` and `telemetry`.

pub mod balances;
pub mod connection;
pub mod evaluator;
pub mod http;
pub mod logs;
pub mod prometheus;
pub mod sequence;
pub mod sql;
pub mod statements;
mod unexplained;
mod watch;

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio_postgres::Client;

pub use self::watch::{report_safeguards, watch};
use self::{
    balances::BalancesSource, evaluator::Measurement, http::ResponseTimes, logs::LogsSource, sequence::Secret,
    sql::SqlQuerySource, statements::StatementsSource,
};
use super::{
    Failure,
    clients::http_probe::{PROBE_TIMEOUT, Prober},
    context::TaskContext,
    database::{connection::Target, control::ControlSpec},
    settings::Settings,
};
use crate::api::{Check, LONGEST_ANSWER, MigrationRunSpec, runner_name};

/// Longest time for the query of a check.
const MAX_QUERY_TIMEOUT: Duration = Duration::from_secs(30);

/// Where the database is. It is read again for each connection: a password may be changed during a stage.
#[derive(Clone)]
pub struct TargetProvider(Arc<dyn Fn() -> Result<Target, Failure> + Send + Sync>);

impl TargetProvider {
    /// The database that the mounted Secret names at that time.
    pub fn mounted(root: PathBuf, spec: MigrationRunSpec, namespace: String) -> Self {
        Self(Arc::new(move || Settings::new(&root, &spec, &namespace).target()))
    }

    /// The database of a run.
    pub fn of(context: &TaskContext<'_>) -> Self {
        Self::mounted(context.settings.root().to_owned(), context.spec.clone(), context.settings.namespace().to_owned())
    }

    /// # Errors
    /// As [`Settings::target`].
    pub fn target(&self) -> Result<Target, Failure> {
        (self.0)()
    }
}

impl From<Target> for TargetProvider {
    fn from(target: Target) -> Self {
        Self(Arc::new(move || Ok(target.clone())))
    }
}

/// What all sources of a run share.
pub struct SourceContext {
    prober: Prober,
    target_provider: TargetProvider,
    control_spec: ControlSpec,
    secrets: PathBuf,
    namespace: String,
    /// Name of the ServiceAccount that the pod runs as.
    service_account: String,
}

impl SourceContext {
    /// For the database of the order; why it cannot be connected to is each measurement's own answer.
    ///
    /// # Errors
    /// As [`SourceContext::on`].
    pub fn new(context: &TaskContext<'_>) -> Result<Self, Failure> {
        Self::on(context, TargetProvider::of(context))
    }

    /// For a database. Nothing is connected before the first measurement.
    ///
    /// # Errors
    /// `Internal` if no client can be set up.
    pub fn on(context: &TaskContext<'_>, target_provider: TargetProvider) -> Result<Self, Failure> {
        Ok(Self {
            prober: Prober::new()?,
            target_provider,
            control_spec: context.control_spec(),
            secrets: context.settings.secrets(),
            namespace: context.settings.namespace().to_owned(),
            service_account: runner_name(&context.spec.migration),
        })
    }
}

/// What a check keeps between two measurements.
pub enum Source {
    /// Sources that keep nothing.
    Stateless,
    /// `http`.
    Http(ResponseTimes),
    /// `sql`, with a connection of its own: a query that takes long must not hold a trigger up.
    Sql(Box<SqlQuerySource>),
    /// `balances`.
    Balances(Box<BalancesSource>),
    /// `logs`.
    Logs(Box<LogsSource>),
    /// `statements`.
    Statements(Box<StatementsSource>),
}

impl Source {
    /// The source of a check, before its first measurement.
    pub fn new(check: &Check, source_context: &SourceContext) -> Self {
        let target_provider = || source_context.target_provider.clone();
        if check.http.is_some() {
            Self::Http(ResponseTimes::default())
        } else if check.sql.is_some() {
            Self::Sql(Box::new(SqlQuerySource::new(target_provider())))
        } else if let Some(source) = &check.balances {
            Self::Balances(Box::new(BalancesSource::new(source, &source_context.control_spec, target_provider())))
        } else if let Some(source) = &check.logs {
            let SourceContext { namespace, service_account, .. } = source_context;
            Self::Logs(Box::new(LogsSource::new(source, namespace, service_account, crate::telemetry::now())))
        } else if let Some(source) = &check.statements {
            Self::Statements(Box::new(StatementsSource::new(
                source,
                &source_context.control_spec.credits.of_new_version().balances,
                target_provider(),
            )))
        } else {
            Self::Stateless
        }
    }

    /// One measurement. `interval` is the time to the next.
    pub async fn measure(&mut self, check: &Check, interval: Duration, source_context: &SourceContext) -> Measurement {
        let wants_time = check.max.is_some() || check.min.is_some() || check.equals.is_some();
        // A trigger that waits delays the rollback.
        let trigger = check.is_trigger();
        match self {
            Self::Http(times) => {
                if let Some(source) = &check.http {
                    return http::measure(&source_context.prober, source, wants_time, times).await;
                }
            }
            Self::Sql(prober) => {
                if let Some(source) = &check.sql {
                    return match trigger {
                        true => prober.measure(source, LONGEST_ANSWER, Duration::ZERO).await,
                        false => {
                            prober
                                .measure(source, interval.clamp(PROBE_TIMEOUT, MAX_QUERY_TIMEOUT), PROBE_TIMEOUT)
                                .await
                        }
                    };
                }
            }
            Self::Balances(compare) => return compare.measure().await,
            Self::Logs(logs) => return logs.measure().await,
            Self::Statements(statements) => return statements.measure().await,
            Self::Stateless => {}
        }
        if let Some(source) = &check.sequence {
            let secret = source.secret_ref.as_ref().map(|secret| Secret::new(&source_context.secrets, &secret.name));
            return sequence::measure(&source_context.prober, source, secret, wants_time).await;
        }
        if check.connection.is_some() {
            return connection::measure(&source_context.target_provider).await;
        }
        match &check.prometheus {
            Some(source) => {
                prometheus::measure(
                    &source_context.prober,
                    source,
                    if trigger { LONGEST_ANSWER } else { PROBE_TIMEOUT },
                )
                .await
            }
            None => Measurement::Error("the check has no source".into()),
        }
    }
}

/// One connection to the database, made again when it was lost.
pub(in crate::runner) struct Session {
    target_provider: TargetProvider,
    step: &'static str,
    client: Option<Client>,
}

impl Session {
    pub(in crate::runner) fn new(target_provider: TargetProvider, step: &'static str) -> Self {
        Self { target_provider, step, client: None }
    }

    pub(in crate::runner) async fn client(&mut self) -> Result<&mut Client, Failure> {
        let client = match self.client.take().filter(|client| !client.is_closed()) {
            Some(client) => client,
            None => self.target_provider.target()?.connect(self.step).await?,
        };
        Ok(self.client.insert(client))
    }

    /// The next use opens a new connection: what was started on this one may still be under way.
    pub(in crate::runner) fn lose(&mut self) {
        self.client = None;
    }
    /// The same, and the server need not go on with what is under way.
    async fn give_up(&mut self) {
        let Some(client) = self.client.take() else { return };
        let cancelled = match self.target_provider.target() {
            Ok(target) => target.cancel(client.cancel_token()).await,
            Err(failure) => Err(failure),
        };
        if let Err(failure) = cancelled {
            tracing::debug!(reason = %failure.reason, error = %failure, "statement not cancelled");
        }
    }
}
