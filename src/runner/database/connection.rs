//! Connections to PostgreSQL: TLS as the URL says, one connection per step, errors as [`Failure`]s.
//!
//! # Contract
//! - Only `sslmode=verify-full` (the default here), `verify-ca` with a private authority, and `disable` are accepted.
//!   The others encrypt without knowing whom they talk to, and would seem safer in a spec than they are. `disable` is
//!   meant for a server on the same machine: tests, or a local proxy that does TLS itself.
//! - Every session starts with `default_transaction_read_only=off`: with the database's default switched to read-only
//!   for the window, a session without it could neither migrate nor switch the default back.
//! - Every session sets all time-outs that its server knows: those of role and database have no effect.
//! - Every session finds names without a schema in `pg_catalog` alone: no operator or function that others have
//!   put into `public` runs with its rights. SQL and names of a spec have the `search_path` of role and database.
//! - A session of this program is one with a primary server. Advisory locks work on a standby, too.
//! - It is one with the server itself: a pooler that drops start-up options is refused by each session, one that shares
//!   sessions by Preflight (`tasks/preflight/pooler.rs`).
//! - The password is never printed: not by `Debug`, not in a message, not as an argument of a child process.

use std::{net::IpAddr, pin::pin, sync::atomic::Ordering, time::Duration};

use rustls::ClientConfig;
use tokio_postgres::{CancelToken, Client, Config, NoTls, SimpleQueryMessage, config::SslMode};
use tokio_postgres_rustls::MakeRustlsConnect;
use tracing::Instrument;

pub use super::target::Target;
use super::{
    connect_error::{ConnectError, ObservedTls, SessionName, TlsState, pooler, root_cause},
    hosts::Host,
    target::{DB_CONNECT_TIMEOUT, LIBPQ_OPTIONS},
};
use crate::{
    api::Reason,
    runner::{Failure, UnlessLost},
};

/// How long sent data may stay without an answer of the peer's kernel before the connection counts as lost.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(20);
/// Further start-up options of the runner's own sessions: the server notices a runner that is gone (its locks hold up
/// the pod that takes over), and does not end a session that waits for the controller. `RESET ALL` restores them.
const SESSION_OPTIONS: &str = "-c tcp_keepalives_idle=5 -c tcp_keepalives_interval=3 -c tcp_keepalives_count=3 \
    -c tcp_user_timeout=20000 -c idle_in_transaction_session_timeout=0 -c credit_migration.session=direct";
/// Whether the server is a standby, and a setting that it knows only if it got the start-up options.
const LOOK_SQL: &str =
    "SELECT pg_catalog.pg_is_in_recovery(), pg_catalog.current_setting('credit_migration.session', true)";
/// Longest wait for a lock of a control statement.
const CONTROL_LOCK_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest run of a control statement.
const CONTROL_STATEMENT_TIMEOUT: Duration = Duration::from_secs(5);
/// All time-outs of sessions and transactions that the server itself knows, but those that are set above or per
/// statement, and that of replication. No start-up options: an older server would refuse those.
const PIN_TIMEOUTS_SQL: &str = "SELECT pg_catalog.set_config(name, '0', false) FROM pg_catalog.pg_settings
    WHERE name LIKE '%timeout' AND name NOT LIKE '%.%' AND context = 'user'
      AND name NOT IN ('statement_timeout', 'lock_timeout', 'tcp_user_timeout', 'wal_sender_timeout')";
/// What others have put into `public` or into a temporary schema is not called.
pub(super) const PIN_SEARCH_PATH_SQL: &str = "SET search_path = pg_catalog, pg_temp";
/// For SQL of a spec and the triggers that it sets off, until the transaction ends or [`PIN_SEARCH_PATH_SQL`] is run.
pub(crate) const USE_OWN_SEARCH_PATH_SQL: &str = "SET LOCAL search_path TO DEFAULT";
/// A commit that is reported is on disk, and on the standbys that the server waits for, whatever role or SQL set.
pub(super) const PIN_COMMIT_SQL: &str = "SELECT pg_catalog.set_config('synchronous_commit',
    CASE reset_val WHEN 'remote_apply' THEN reset_val ELSE 'on' END, false)
    FROM pg_catalog.pg_settings WHERE name = 'synchronous_commit'";
/// From version 14 on, and not on every platform, a server can check for its client during a statement. As above.
const CHECK_CLIENT_SQL: &str = "SELECT pg_catalog.set_config(name, '1000', false) FROM pg_catalog.pg_settings
    WHERE name = 'client_connection_check_interval'";

/// What a session is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// A step: its statements have no limits but those that it sets.
    Step,
    /// Control statements, which are short.
    Control,
    /// To observe what an ordinary session meets: the read-only default is that of the database.
    Observation,
}

impl Purpose {
    fn options(self) -> String {
        let (lock, statement) = match self {
            Purpose::Step => (Duration::ZERO, Duration::ZERO),
            Purpose::Control | Purpose::Observation => (CONTROL_LOCK_TIMEOUT, CONTROL_STATEMENT_TIMEOUT),
        };
        let read_only = if self == Purpose::Observation { "" } else { LIBPQ_OPTIONS };
        format!(
            "{read_only} {SESSION_OPTIONS} -c lock_timeout={} -c statement_timeout={}",
            lock.as_millis(),
            statement.as_millis()
        )
    }
}

/// Sets what cannot be a start-up option. To be called again after `RESET ALL`.
///
/// A server that notices during a statement that its client is gone releases the locks that the next pod needs.
///
/// # Errors
/// Database errors.
pub(crate) async fn pin_settings(client: &Client) -> Result<(), Failure> {
    // By itself: it holds also if one of the others fails.
    client.batch_execute(PIN_SEARCH_PATH_SQL).await?;
    client.batch_execute(&format!("{PIN_TIMEOUTS_SQL}; {PIN_COMMIT_SQL}")).await?;
    if let Err(error) = client.batch_execute(CHECK_CLIENT_SQL).await.map_err(Failure::from).unless_lost()? {
        tracing::debug!(%error, "the server does not check for its client during a statement");
    }
    Ok(())
}

impl Target {
    /// Opens one connection named `credit-migration/<step>`. Its settings: see the head of this file.
    /// The connection is driven by a task of its own and ends when the returned client is dropped.
    ///
    /// # Errors
    /// `HostUnreachable`, `CertificateNotTrusted`, `AuthenticationFailed`, `WrongDatabase`, `ConnectionInvalid`.
    pub async fn connect(&self, step: &str) -> Result<Client, Failure> {
        self.primary(step, Purpose::Step).await.map_err(|error| self.named(error.failure))
    }

    /// The same for control statements: each has a limit, so that none waits without end while writes are blocked.
    ///
    /// # Errors
    /// As [`Target::connect`]; it says whether the server has no connection left.
    pub async fn connect_for_control(&self, step: &str) -> Result<Client, ConnectError> {
        self.primary(step, Purpose::Control).await
    }

    /// The same, with the read-only default of any other session.
    ///
    /// # Errors
    /// As [`Target::connect`].
    pub async fn connect_for_observation(&self, step: &str) -> Result<Client, Failure> {
        self.primary(step, Purpose::Observation).await.map_err(|error| error.failure)
    }

    /// As [`Target::connect`], also to a standby if no primary answers; the error says whom it concerns.
    ///
    /// # Errors
    /// As [`Target::connect`].
    pub async fn try_connect(&self, step: &str) -> Result<Client, ConnectError> {
        self.any_session(step, Purpose::Step).await.map(|(client, _)| client).map_err(ConnectError::of_all)
    }

    /// After a failover an address may lead to a standby for a while.
    async fn primary(&self, step: &str, purpose: Purpose) -> Result<Client, ConnectError> {
        match self.any_session(step, purpose).await {
            Ok((client, None)) => Ok(client),
            Ok((_, Some(refusals))) | Err(refusals) => Err(ConnectError::of_all(refusals)),
        }
    }

    /// A session with the first server that is the primary, otherwise with one that answers, and why there is no other.
    async fn any_session(
        &self,
        step: &str,
        purpose: Purpose,
    ) -> Result<(Client, Option<Vec<ConnectError>>), Vec<ConnectError>> {
        let (count, first) = (self.hosts.len(), self.last_primary.load(Ordering::Relaxed));
        let (mut standby, mut refusals) = (None, Vec::new());
        for index in (0..count).map(|offset| (first + offset) % count) {
            let host = &self.hosts[index];
            let addresses = match host.addresses(DB_CONNECT_TIMEOUT).await {
                Ok(addresses) => addresses,
                Err(why) => {
                    let message = format!("{host} cannot be reached: {why}; next: check host, port and NetworkPolicy");
                    refusals.push(Failure::new(Reason::HostUnreachable, message).into());
                    continue;
                }
            };
            // All together no longer than one alone.
            let limit = DB_CONNECT_TIMEOUT / u32::try_from(count * addresses.len()).unwrap_or(1).min(3);
            let earlier = refusals.len();
            for address in addresses {
                match self.session(host, address, limit, step, purpose).await {
                    Ok((client, false)) => {
                        self.last_primary.store(index, Ordering::Relaxed);
                        return Ok((client, None));
                    }
                    Ok((client, true)) => {
                        standby.get_or_insert(client);
                        refusals.push(ConnectError::standby(host));
                    }
                    Err(refusal) => refusals.push(refusal),
                }
            }
            ConnectError::of_one_host(&mut refusals[earlier..]);
        }
        match standby {
            Some(client) => Ok((client, Some(refusals))),
            None => Err(refusals),
        }
    }

    /// A session with the server at one address, and whether that is a standby.
    async fn session(
        &self,
        host: &Host,
        address: IpAddr,
        limit: Duration,
        step: &str,
        purpose: Purpose,
    ) -> Result<(Client, bool), ConnectError> {
        let mut config = Config::new();
        config
            // The name is what the certificate is for.
            .host(&host.name)
            .hostaddr(address)
            .port(host.port)
            .user(&self.user)
            .dbname(&self.database)
            .application_name(format!("credit-migration/{step}"))
            .options(purpose.options())
            .channel_binding(self.channel_binding)
            .connect_timeout(limit)
            // A window must notice a dead server or network within seconds, not after the kernel's two hours.
            .keepalives_idle(Duration::from_secs(5))
            .keepalives_interval(Duration::from_secs(3))
            .keepalives_retries(3)
            .tcp_user_timeout(TCP_USER_TIMEOUT);
        if let Some(password) = &self.password {
            config.password(password);
        }
        // The crate's own time-out covers TCP only; a server that accepts and then keeps silent must not hang the step.
        let session = async {
            let client = self.open(host, &mut config).await?;
            // Before the first setting, which a pooler would hand on to the sessions of others. No prepared statement:
            // the next message may reach another session.
            let answer = client.simple_query(LOOK_SQL).await?;
            let value = |index| {
                answer.iter().find_map(|message| match message {
                    SimpleQueryMessage::Row(row) => row.get(index),
                    _ => None,
                })
            };
            if value(1) != Some("direct") {
                return Err(pooler(host, "it drops the start-up options of a session").into());
            }
            let standby = value(0) == Some("t");
            pin_settings(&client).await?;
            Ok((client, standby))
        };
        tokio::time::timeout(limit, session).await.unwrap_or_else(|_| {
            let message = format!("{host} did not answer within {} s", limit.as_secs());
            Err(Failure::new(Reason::HostUnreachable, message).into())
        })
    }

    fn session_name<'a>(&'a self, host: &'a Host) -> SessionName<'a> {
        SessionName { host, role: &self.user, database: &self.database }
    }

    async fn open(&self, host: &Host, config: &mut Config) -> Result<Client, ConnectError> {
        match &self.tls {
            None => {
                let session = config.ssl_mode(SslMode::Disable).connect(NoTls).await;
                let (client, connection) =
                    session.map_err(|e| ConnectError::new(&self.session_name(host), &e, TlsState::Off))?;
                drive(connection);
                Ok(client)
            }
            Some(tls) => {
                let connector = ObservedTls::new(MakeRustlsConnect::new(ClientConfig::clone(&tls.config)));
                let session = config.ssl_mode(SslMode::Require).connect(connector.clone()).await;
                let (client, connection) =
                    session.map_err(|e| ConnectError::new(&self.session_name(host), &e, connector.state()))?;
                drive(connection);
                Ok(client)
            }
        }
    }

    /// Awaits a control statement of the token's session, for `limit` at most: then it is cancelled. No setting of the
    /// server limits a COMMIT that waits for a synchronous standby.
    ///
    /// # Errors
    /// Those of the statement; `ConnectionLost` if the server does not answer the cancellation either.
    pub async fn bounded<T>(
        &self,
        token: CancelToken,
        limit: Duration,
        statement: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let mut statement = pin!(statement);
        if let Ok(result) = tokio::time::timeout(limit, &mut statement).await {
            return result;
        }
        self.cancel(token).await?;
        tokio::time::timeout(limit, &mut statement).await.unwrap_or_else(|_| {
            let message = format!("{} did not answer within {} s", self.host_port(), 2 * limit.as_secs());
            Err(Failure::new(Reason::ConnectionLost, message))
        })
    }

    /// Asks the server to cancel what the token's session is running. An answer is not waited for: the statement itself
    /// reports SQLSTATE 57014 if it was cancelled in time.
    ///
    /// # Errors
    /// `ConnectionLost` if the request could not be sent within 5 s.
    pub async fn cancel(&self, token: CancelToken) -> Result<(), Failure> {
        let request = async {
            match &self.tls {
                None => token.cancel_query(NoTls).await,
                Some(tls) => token.cancel_query(MakeRustlsConnect::new(ClientConfig::clone(&tls.config))).await,
            }
        };
        match tokio::time::timeout(Duration::from_secs(5), request).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(e)) => Err(Failure::new(Reason::ConnectionLost, format!("the statement cannot be cancelled: {e}"))),
            Err(_) => {
                Err(Failure::new(Reason::ConnectionLost, "the statement cannot be cancelled: no answer within 5 s"))
            }
        }
    }
}

/// Drives a connection until its client is dropped or the server goes away.
fn drive<S, T>(connection: tokio_postgres::Connection<S, T>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let connected = async move {
        // The client's calls report the loss to their callers; this line is for the case that there is none.
        if let Err(error) = connection.await {
            tracing::debug!(error = root_cause(&error), "connection to PostgreSQL ended");
        }
    };
    tokio::spawn(connected.in_current_span());
}
