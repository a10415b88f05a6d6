//! A pool of sessions that lives through a migration window.
//!
//! What happens to sessions there, and what this module does about it:
//!
//! | A session is | Answer |
//! |---|---|
//! | terminated (57P01) | the session is dropped; the work is repeated on a session younger than the loss |
//! | lost at COMMIT | the server is asked for the outcome of the transaction: it is never done twice |
//! | refused a write (25006) | the session is dropped, the caller gets [`Failure::Paused`] |
//! | opened while the database was read-only, and would stay so | it serves reads; writes replace it |

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use deadpool::{
    Runtime,
    managed::{Manager, Metrics, Object, Pool, RecycleError, RecycleResult},
};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_postgres::{Client, Connection, NoTls, Transaction, types::Type};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::{
    config::{self, ConfigError, Settings},
    failure::Failure,
};

/// How often work is done again after its session was lost.
const RETRIES: usize = 2;
/// How long a new session's word on "read-only" is believed. Without it, each refused write would open a connection.
const BELIEVE: Duration = Duration::from_millis(250);
/// How long the fate of a lost COMMIT is asked for: a second, which also covers a short restart of the server.
const STATUS_POLLS: usize = 20;
const STATUS_PAUSE: Duration = Duration::from_millis(50);
const WAIT: Duration = Duration::from_secs(2);
/// Nothing here takes long: a statement that does waits for a lock, and must not hold its session for ever.
const SESSION_OPTIONS: &str = "-c statement_timeout=2s -c idle_in_transaction_session_timeout=5s";

/// Work that only reads.
pub trait Read: Sync {
    /// What it finds.
    type Output: Send;

    /// Does the work; may be called again on another session.
    fn run(&self, client: &Client) -> impl Future<Output = Result<Self::Output, Failure>> + Send;
}

/// Work that writes, in one transaction.
pub trait Write: Sync {
    /// What it leaves.
    type Output: Send;

    /// Does the work; may be called again in another transaction, after an earlier one was lost without COMMIT.
    fn run(&self, tx: &Transaction<'_>) -> impl Future<Output = Result<Self::Output, Failure>> + Send;
}

/// The application's way to its database.
pub struct Database {
    pool: Pool<Connector>,
}

impl Database {
    /// Sets up the pool. Connects to nothing yet: a pod must be able to start while the database is away.
    pub fn new(settings: &Settings) -> Result<Self, ConfigError> {
        let (mut config, ca_file) = config::connection(&settings.database_url, settings.database_ca_file.clone())?;
        config.application_name("watermark-remover").connect_timeout(WAIT);
        if config.get_options().is_none() {
            config.options(SESSION_OPTIONS);
        }
        let tls = ca_file.as_deref().map(tls).transpose()?;
        let pool = Pool::builder(Connector { config, tls })
            .max_size(settings.pool_size.into())
            .wait_timeout(Some(WAIT))
            .create_timeout(Some(WAIT))
            .runtime(Runtime::Tokio1)
            .build()
            .map_err(|error| ConfigError::Pool(error.to_string()))?;
        Ok(Self { pool })
    }

    /// Does `work`, which only reads, again if its session is lost.
    pub async fn read<W: Read>(&self, work: &W) -> Result<W::Output, Failure> {
        let (mut lost_at, mut retries) = (None, 0..RETRIES);
        loop {
            let session = self.session(lost_at).await?;
            match work.run(&session.client).await {
                Err(Failure::SessionLost(_)) if retries.next().is_some() => lost_at = Some(discard(session)),
                result => return result,
            }
        }
    }

    /// Does `work` in one transaction and commits it; again if the session is lost and nothing was committed.
    pub async fn write<W: Write>(&self, work: &W) -> Result<W::Output, Failure> {
        let (mut lost_at, mut retries) = (None, 0..RETRIES);
        loop {
            let mut session = self.writable_session(lost_at).await?;
            let failure = match in_transaction(&mut session.client, work).await {
                Ok(Commit::Confirmed(output)) => return Ok(output),
                Ok(Commit::Unheard { output, id, error }) => match self.was_committed(&id).await {
                    Some(true) => return Ok(output),
                    Some(false) => Failure::SessionLost(error),
                    None => return Err(Failure::CommitUnknown(error)),
                },
                Err(failure) => failure,
            };
            match failure {
                Failure::SessionLost(_) if retries.next().is_some() => lost_at = Some(discard(session)),
                Failure::Paused => {
                    discard(session);
                    return Err(Failure::Paused);
                }
                failure => return Err(failure),
            }
        }
    }

    /// Takes `count` sessions besides the pool, uses none, and replaces those that are terminated. Takes none while the
    /// database is read-only: what is tried out with this is a new version that is open for writes. Never returns.
    pub async fn hold_idle(&self, count: usize) {
        let mut held: Vec<Session> = Vec::new();
        loop {
            held.retain(|session| !session.client.is_closed());
            while held.len() < count {
                match self.pool.manager().create().await {
                    Ok(session) if !session.read_only => held.push(session),
                    Ok(_) | Err(_) => break,
                }
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Asks the server what became of a transaction whose COMMIT was not answered; it may still be busy with it.
    async fn was_committed(&self, id: &str) -> Option<bool> {
        for _ in 0..STATUS_POLLS {
            match self.read(&StatusOf(id)).await.as_deref() {
                Ok("committed") => return Some(true),
                Ok("aborted") => return Some(false),
                Ok(_) | Err(_) => tokio::time::sleep(STATUS_PAUSE).await,
            }
        }
        None
    }

    /// A session younger than `lost_at`: others of the pool were probably terminated at the same time.
    async fn session(&self, lost_at: Option<Instant>) -> Result<Object<Connector>, Failure> {
        loop {
            let session = self.pool.get().await.map_err(|error| Failure::NoConnection(Box::new(error)))?;
            if lost_at.is_none_or(|lost_at| Object::metrics(&session).created > lost_at) {
                return Ok(session);
            }
            discard(session);
        }
    }

    /// A session that was not born read-only; or the word that writes are paused, if even new ones are.
    async fn writable_session(&self, lost_at: Option<Instant>) -> Result<Object<Connector>, Failure> {
        loop {
            let session = self.session(lost_at).await?;
            match session.read_only {
                false => return Ok(session),
                true if Object::metrics(&session).age() < BELIEVE => return Err(Failure::Paused),
                true => discard(session),
            };
        }
    }
}

/// Takes a session out of the pool for good; returns the time.
fn discard(session: Object<Connector>) -> Instant {
    drop(Object::take(session));
    Instant::now()
}

/// How a transaction ended whose work was done.
enum Commit<T> {
    Confirmed(T),
    /// The session was lost before the answer came: the server knows, by the transaction's id.
    Unheard {
        output: T,
        id: String,
        error: tokio_postgres::Error,
    },
}

async fn in_transaction<W: Write>(client: &mut Client, work: &W) -> Result<Commit<W::Output>, Failure> {
    let transaction = client.transaction().await?;
    let output = work.run(&transaction).await?;
    let id = transaction.query_typed_one("SELECT pg_current_xact_id()::text", &[]).await?.try_get(0)?;
    match transaction.commit().await.map_err(Failure::from) {
        Ok(()) => Ok(Commit::Confirmed(output)),
        Err(Failure::SessionLost(error)) => Ok(Commit::Unheard { output, id, error }),
        Err(failure) => Err(failure),
    }
}

/// `committed`, `aborted` or `in progress`.
struct StatusOf<'a>(&'a str);

impl Read for StatusOf<'_> {
    type Output = String;

    async fn run(&self, client: &Client) -> Result<String, Failure> {
        let row = client.query_typed_one("SELECT pg_xact_status($1::text::xid8)", &[(&self.0, Type::TEXT)]).await?;
        Ok(row.try_get(0)?)
    }
}

/// One session with PostgreSQL.
struct Session {
    client: Client,
    /// `default_transaction_read_only` at the start of the session; never changed later.
    read_only: bool,
}

struct Connector {
    config: tokio_postgres::Config,
    tls: Option<MakeRustlsConnect>,
}

impl Manager for Connector {
    type Type = Session;
    type Error = tokio_postgres::Error;

    async fn create(&self) -> Result<Session, Self::Error> {
        match &self.tls {
            Some(tls) => self.config.connect(tls.clone()).await.map(|(client, connection)| start(client, connection)),
            None => self.config.connect(NoTls).await.map(|(client, connection)| start(client, connection)),
        }
    }

    async fn recycle(&self, session: &mut Session, _: &Metrics) -> RecycleResult<Self::Error> {
        match session.client.is_closed() {
            true => Err(RecycleError::message("closed")),
            false => Ok(()),
        }
    }
}

fn start<S, T>(client: Client, connection: Connection<S, T>) -> Session
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // The server reports this setting when the session starts: no round trip is needed to know it.
    let read_only = connection.parameter("default_transaction_read_only") == Some("on");
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::info!(%error, "session ended");
        }
    });
    Session { client, read_only }
}

fn tls(ca_file: &Path) -> Result<MakeRustlsConnect, ConfigError> {
    let unusable = |reason: String| ConfigError::Certificates { path: ca_file.to_owned(), reason };
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca_file).map_err(|error| unusable(error.to_string()))? {
        roots.add(certificate.map_err(|error| unusable(error.to_string()))?)?;
    }
    if roots.is_empty() {
        return Err(unusable("there are none".to_owned()));
    }
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(MakeRustlsConnect::new(config))
}
