//! Connections to PostgreSQL: TLS as the URL says, one connection per step, errors as [`Failure`]s.
//!
//! # Contract
//! - Only `sslmode=verify-full` (the default here) and `sslmode=disable` are accepted. The modes between them encrypt
//!   without knowing whom they talk to, and would seem safer in a spec than they are. `disable` is meant for a server
//!   on the same machine: tests, or a local proxy that does TLS itself.
//! - Every session starts with `default_transaction_read_only=off`: with the database's default switched to read-only
//!   for the window, a session without it could neither migrate nor switch the default back.
//! - Every session sets all time-outs that its server knows: those of role and database have no effect.
//! - Every session finds names without a schema in `pg_catalog` alone: no operator or function that others have
//!   put into `public` runs with its rights. SQL and names of a spec have the `search_path` of role and database.
//! - A session of this program is one with a primary server. Advisory locks work on a standby, too.
//! - The password is never printed: not by `Debug`, not in a message, not as an argument of a child process.

use std::{
    fmt,
    net::IpAddr,
    path::Path,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use rustls::{ClientConfig, RootCertStore};
use tokio_postgres::{CancelToken, Client, Config, NoTls, config::ChannelBinding, config::SslMode};
use tokio_postgres_rustls::MakeRustlsConnect;
use tracing::Instrument;

use super::{
    connect_error::{ConnectError, ObservedTls, SessionName, TlsState, root_cause},
    hosts::{self, Host},
};
use crate::{
    api::Reason,
    runner::{Failure, UnlessLost, clients::tls},
};

/// Longest time for TCP, TLS and log-in together.
const DB_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long sent data may stay without an answer of the peer's kernel before the connection counts as lost.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(20);
/// Start-up option of every session that works, see the head of this file.
const LIBPQ_OPTIONS: &str = "-c default_transaction_read_only=off";
/// Further start-up options of the runner's own sessions: the server notices a runner that is gone (its locks hold up
/// the pod that takes over), and does not end a session that waits for the controller. `RESET ALL` restores them.
const SESSION_OPTIONS: &str = "-c tcp_keepalives_idle=5 -c tcp_keepalives_interval=3 -c tcp_keepalives_count=3 \
    -c tcp_user_timeout=20000 -c idle_in_transaction_session_timeout=0";
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

/// Where and how to connect: the parsed URL and the authorities to trust.
#[derive(Clone)]
pub struct Target {
    /// In the order of the URL; at least one.
    hosts: Vec<Host>,
    /// Of the one that was the primary the last time: a dead one is not waited for each time.
    last_primary: Arc<AtomicUsize>,
    user: String,
    password: Option<String>,
    database: String,
    channel_binding: ChannelBinding,
    tls: Option<Arc<Tls>>,
}

/// How the server is authenticated.
struct Tls {
    client: Arc<ClientConfig>,
    private_authority: bool,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = if self.tls.is_some() { "verify-full" } else { "disable" };
        write!(f, "postgresql://{}@{}/{}?sslmode={mode}", self.user, self.host_port(), self.database)
    }
}

impl Target {
    /// Reads `postgresql://role:password@host:port/database?sslmode=verify-full`. There may be several hosts, separated
    /// by commas: the primary among them is connected to.
    ///
    /// `ca_pem` holds the certificates of the authorities to trust, those of the system are trusted when it is `None`.
    ///
    /// # Errors
    /// `ConnectionInvalid` for a URL that cannot be used as it stands, `CertificateNotTrusted` for unusable `ca_pem`.
    pub fn parse(url: &str, ca_pem: Option<&str>) -> Result<Self, Failure> {
        let (url, mut hosts) = hosts::split(url.trim()).map_err(invalid)?;
        // The parser's error is not shown in full: nothing of the text but its class may come out, it holds a password.
        let parsed = url::Url::parse(&url).map_err(|e| {
            invalid(format!(
                "the connection URL cannot be read: {e}; next: \
                percent-encode what is special in user and password, / is %2F, @ is %40"
            ))
        })?;
        if !matches!(parsed.scheme(), "postgresql" | "postgres") {
            return Err(invalid("the connection URL must start with postgresql://"));
        }
        let part = |name: &str, text: &str| {
            decode(text).ok_or_else(|| invalid(format!("{name} is not valid percent-encoding of UTF-8")))
        };
        for host in &mut hosts {
            host.name = part("the host", &host.name)?;
        }
        let user = part("the role", parsed.username())?;
        if user.is_empty() {
            return Err(invalid("the connection URL names no role"));
        }
        let database = part("the database", parsed.path().trim_start_matches('/'))?;
        if database.is_empty() {
            return Err(invalid("the connection URL names no database"));
        }
        let password = parsed.password().map(|text| part("the password", text)).transpose()?;
        let query = Query::read(&parsed)?;
        let tls = if query.verify { Some(Arc::new(Tls::new(ca_pem)?)) } else { None };
        Ok(Self {
            hosts,
            last_primary: Arc::default(),
            user,
            password,
            database,
            channel_binding: query.channel_binding,
            tls,
        })
    }

    /// Same server and role, other database.
    pub fn with_database(&self, name: &str) -> Self {
        Self { database: name.to_owned(), ..self.clone() }
    }

    /// Name of the database.
    pub fn database(&self) -> &str {
        &self.database
    }

    /// Name of the role.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// `host:port`, of each host, for messages.
    pub fn host_port(&self) -> String {
        self.each_host(ToString::to_string)
    }

    fn each_host(&self, text: impl Fn(&Host) -> String) -> String {
        self.hosts.iter().map(text).collect::<Vec<_>>().join(",")
    }

    /// The environment in which `pg_dump` and `pg_restore` connect as this target does: nothing of it may be in
    /// their arguments, which every process of the node can read.
    ///
    /// `ca_file` is the file that holds what [`Target::parse`] got as `ca_pem`. Without a private authority libpq is
    /// configured to trust those of the system, which it understands from version 16 on.
    pub fn libpq_env(&self, ca_file: Option<&Path>) -> Vec<(&'static str, String)> {
        let mut env = vec![
            ("PGHOST", self.each_host(|host| host.name.clone())),
            ("PGPORT", self.each_host(|host| host.port.to_string())),
            // As here: the primary.
            ("PGTARGETSESSIONATTRS", "read-write".to_owned()),
            ("PGUSER", self.user.clone()),
            ("PGDATABASE", self.database.clone()),
            ("PGOPTIONS", LIBPQ_OPTIONS.to_owned()),
            ("PGAPPNAME", "credit-migration".to_owned()),
            ("PGCONNECT_TIMEOUT", DB_CONNECT_TIMEOUT.as_secs().to_string()),
        ];
        if let Some(password) = &self.password {
            env.push(("PGPASSWORD", password.clone()));
        }
        let Some(tls) = &self.tls else {
            env.push(("PGSSLMODE", "disable".to_owned()));
            return env;
        };
        env.push(("PGSSLMODE", "verify-full".to_owned()));
        match ca_file.filter(|_| tls.private_authority) {
            Some(path) => env.push(("PGSSLROOTCERT", path.display().to_string())),
            None => env.push(("PGSSLROOTCERT", "system".to_owned())),
        }
        env
    }

    /// Opens one connection named `credit-migration/<step>`. Its settings: see the head of this file.
    /// The connection is driven by a task of its own and ends when the returned client is dropped.
    ///
    /// # Errors
    /// `HostUnreachable`, `CertificateNotTrusted`, `AuthenticationFailed`, `WrongDatabase`, `ConnectionInvalid`.
    pub async fn connect(&self, step: &str) -> Result<Client, Failure> {
        self.primary(step, Purpose::Step).await.map_err(|error| error.failure)
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
            pin_settings(&client).await?;
            let standby = client.query_one("SELECT pg_catalog.pg_is_in_recovery()", &[]).await?.get(0);
            Ok((client, standby))
        };
        tokio::time::timeout(limit, session).await.unwrap_or_else(|_| {
            let message = format!("{host} did not answer within {} s", limit.as_secs());
            Err(Failure::new(Reason::HostUnreachable, message).into())
        })
    }

    fn session_name(&self, host: &Host) -> SessionName<'_> {
        SessionName { server: host.to_string(), role: &self.user, database: &self.database }
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
                let connector = ObservedTls::new(MakeRustlsConnect::new(ClientConfig::clone(&tls.client)));
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
                Some(tls) => token.cancel_query(MakeRustlsConnect::new(ClientConfig::clone(&tls.client))).await,
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

impl Tls {
    fn new(ca_pem: Option<&str>) -> Result<Self, Failure> {
        let mut roots = RootCertStore::empty();
        match ca_pem {
            Some(pem) => {
                for certificate in tls::authorities(pem).map_err(untrusted)? {
                    roots.add(certificate).map_err(|e| untrusted(format!("holds an unusable certificate: {e}")))?;
                }
            }
            None => {
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                if roots.is_empty() {
                    return Err(untrusted("is not given, and the system knows no authority".to_owned()));
                }
            }
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| Failure::new(Reason::Internal, format!("TLS cannot be set up: {e}")))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { client: Arc::new(client), private_authority: ca_pem.is_some() })
    }
}

/// The URL's parameters that have a meaning here.
struct Query {
    verify: bool,
    channel_binding: ChannelBinding,
}

impl Query {
    fn read(url: &url::Url) -> Result<Self, Failure> {
        let mut query = Self { verify: true, channel_binding: ChannelBinding::Prefer };
        for (name, value) in url.query_pairs() {
            match (&*name, &*value) {
                ("sslmode", "verify-full") => query.verify = true,
                ("sslmode", "disable") => query.verify = false,
                ("sslmode", other) => {
                    let message = format!(
                        "sslmode={other} does not check whom it talks to; next: set sslmode=verify-full in the URL \
                            and, for a private authority, spec.database.connection.caSecretRef"
                    );
                    return Err(invalid(message));
                }
                ("channel_binding", "require") => query.channel_binding = ChannelBinding::Require,
                ("channel_binding", "disable") => query.channel_binding = ChannelBinding::Disable,
                ("channel_binding", "prefer") | ("sslrootcert", "system") => {}
                ("sslrootcert", _) => {
                    return Err(invalid(
                        "sslrootcert names a file that the runner does not have; next: use \
                            spec.database.connection.caSecretRef",
                    ));
                }
                // The runner sets these itself.
                (
                    "application_name" | "connect_timeout" | "keepalives" | "keepalives_idle" | "keepalives_interval",
                    _,
                ) => {}
                ("target_session_attrs", "any" | "read-write" | "primary") => {}
                (other, _) => {
                    return Err(invalid(format!(
                        "parameter {other} of the connection URL is not supported; next: remove it"
                    )));
                }
            }
        }
        Ok(query)
    }
}

/// `text` without percent-encoding; `None` if it is none.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let high = char::from(rest.next()?).to_digit(16)?;
            let low = char::from(rest.next()?).to_digit(16)?;
            bytes.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

fn invalid(message: impl Into<String>) -> Failure {
    Failure::new(Reason::ConnectionInvalid, message)
}

fn untrusted(what: String) -> Failure {
    Failure::new(Reason::CertificateNotTrusted, format!("spec.database.connection.caSecretRef {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<Target, Failure> {
        Target::parse(url, None)
    }

    #[test]
    fn a_url_is_taken_apart_and_its_password_never_shown() {
        let target = parse("postgresql://mi%40grator:s%3Acret%2F1@[::1]:6543/my%20db?sslmode=disable").unwrap();
        assert_eq!((target.user(), target.database()), ("mi@grator", "my db"));
        assert_eq!(target.host_port(), "[::1]:6543");
        let env = target.libpq_env(None);
        assert!(env.contains(&("PGPASSWORD", "s:cret/1".to_owned())));
        assert!(env.contains(&("PGSSLMODE", "disable".to_owned())));
        assert!(!format!("{target:?}").contains("cret"), "{target:?}");
        assert_eq!(target.with_database("other").database(), "other");
    }

    #[rstest::rstest]
    #[case("postgresql://a:hunter2@h/d?sslmode=require", "verify-full")]
    #[case("postgresql://a:hunter2@h/d?sslmode=prefer", "verify-full")]
    #[case("postgresql://a:hunter2@h/d?sslrootcert=/tmp/ca", "caSecretRef")]
    #[case("postgresql://a:hunter2@h/d?sslmode=disable&service=x", "service")]
    #[case("mysql://a:hunter2@h/d", "postgresql://")]
    #[case("postgresql://a:hunter2@h/", "database")]
    #[case("postgresql://:hunter2@h/d", "role")]
    #[case("postgresql:///d", "host")]
    #[case("postgresql://a:hunter2@h:port/d", "port")]
    fn what_cannot_be_used_is_refused_with_its_cause(#[case] url: &str, #[case] word: &str) {
        let failure = parse(url).unwrap_err();
        assert_eq!(failure.reason, Reason::ConnectionInvalid);
        assert!(failure.message.contains(word) && !failure.message.contains("hunter2"), "{failure}");
    }

    #[test]
    fn an_authority_that_is_none_is_refused() {
        for pem in ["", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            let failure = Target::parse("postgresql://a@h/d?sslmode=verify-full", Some(pem)).unwrap_err();
            assert_eq!(failure.reason, Reason::CertificateNotTrusted);
        }
    }

    #[tokio::test]
    async fn a_port_without_a_server_is_unreachable() {
        let failure = parse("postgresql://a@127.0.0.1:1/d?sslmode=disable").unwrap().connect("test").await.unwrap_err();
        assert_eq!(failure.reason, Reason::HostUnreachable);
        assert!(failure.message.contains("127.0.0.1:1"), "{failure}");
    }
}
