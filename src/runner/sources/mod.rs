//! Where the values of checks come from: one file per source, each with what it keeps between two measurements.
//!
//! `workload` and `job` checks are not here: the controller measures them.

pub mod balances;
pub mod connection;
pub mod http;
pub mod logs;
pub mod sequence;
pub mod sql;
pub mod statements;

use std::{path::PathBuf, time::Duration};

use tokio::sync::Mutex;
use tokio_postgres::Client;

use self::{balances::Compare, http::Times, logs::Logs, sequence::Secret, sql::SqlProber, statements::Statements};
use super::{Failure, control::Subject, judge::Measurement, postgres::Target, probe::Prober, work::Work};
use crate::api::{Check, Credits};

/// Longest time for the query of a check.
const MAX_QUERY: Duration = Duration::from_secs(30);

/// What all sources of a run share.
pub struct Means {
    prober: Prober,
    target: Result<Target, Failure>,
    sql: Mutex<SqlProber>,
    subject: Subject,
    credits: Credits,
    secrets: PathBuf,
    namespace: String,
}

impl Means {
    /// For the database of the order; why it cannot be connected to is each measurement's own answer.
    ///
    /// # Errors
    /// As [`Means::on`].
    pub fn new(work: &Work<'_>) -> Result<Self, Failure> {
        Self::on(work, work.settings.target())
    }

    /// For a database. Nothing is connected before the first measurement.
    ///
    /// # Errors
    /// `Internal` if no client can be set up.
    pub fn on(work: &Work<'_>, target: Result<Target, Failure>) -> Result<Self, Failure> {
        Ok(Self {
            prober: Prober::new()?,
            sql: Mutex::new(SqlProber::new(target.clone())),
            target,
            subject: work.subject(),
            credits: work.spec.plan.credits.clone(),
            secrets: work.settings.secrets(),
            namespace: work.settings.namespace().to_owned(),
        })
    }
}

/// What a check keeps between two measurements.
pub enum Source {
    /// Those that keep nothing.
    Stateless,
    /// `http`.
    Http(Times),
    /// `balances`.
    Balances(Box<Compare>),
    /// `logs`.
    Logs(Box<Logs>),
    /// `statements`.
    Statements(Box<Statements>),
}

impl Source {
    /// That of a check, before its first measurement.
    pub fn new(check: &Check, means: &Means) -> Self {
        let target = || means.target.clone();
        if check.http.is_some() {
            Self::Http(Times::default())
        } else if let Some(source) = &check.balances {
            Self::Balances(Box::new(Compare::new(source, &means.subject, &means.credits, target())))
        } else if let Some(source) = &check.logs {
            Self::Logs(Box::new(Logs::new(source, &means.namespace, crate::telemetry::now())))
        } else if let Some(source) = &check.statements {
            Self::Statements(Box::new(Statements::new(source, &means.credits.balances, target())))
        } else {
            Self::Stateless
        }
    }

    /// One measurement. `interval` is the time to the next.
    pub async fn measure(&mut self, check: &Check, interval: Duration, means: &Means) -> Measurement {
        let wants_time = check.max.is_some() || check.min.is_some() || check.equals.is_some();
        match self {
            Self::Http(times) => {
                if let Some(source) = &check.http {
                    return http::measure(&means.prober, source, wants_time, times).await;
                }
            }
            Self::Balances(compare) => return compare.measure().await,
            Self::Logs(logs) => return logs.measure().await,
            Self::Statements(statements) => return statements.measure().await,
            Self::Stateless => {}
        }
        if let Some(source) = &check.sql {
            let limit = interval.clamp(Duration::from_secs(5), MAX_QUERY);
            return means.sql.lock().await.measure(source, limit).await;
        }
        if let Some(source) = &check.sequence {
            let secret = source.secret_ref.as_ref().map(|secret| Secret::new(&means.secrets, &secret.name));
            return sequence::measure(&means.prober, source, secret, wants_time).await;
        }
        if check.connection.is_some() {
            return connection::measure(&means.target).await;
        }
        match &check.prometheus {
            Some(source) => means.prober.prometheus(source).await,
            None => Measurement::Error("the check has no source".to_owned()),
        }
    }
}

/// One connection to the database, made again when it was lost.
pub(super) struct Session {
    target: Result<Target, Failure>,
    step: &'static str,
    client: Option<Client>,
}

impl Session {
    fn new(target: Result<Target, Failure>, step: &'static str) -> Self {
        Self { target, step, client: None }
    }

    async fn client(&mut self) -> Result<&mut Client, Failure> {
        let client = match self.client.take().filter(|client| !client.is_closed()) {
            Some(client) => client,
            None => self.target.clone()?.connect(self.step).await?,
        };
        Ok(self.client.insert(client))
    }

    /// The next use connects anew: what was begun on this connection may still be under way.
    fn lose(&mut self) {
        self.client = None;
    }
}
