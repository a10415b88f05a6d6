//! The sessions that the window needs in addition to its own: opened on standby, and kept.
//!
//! Once writes are blocked, sessions of the application are ended and their pools connect again: a server may have no
//! connection left. So none is opened then, unless one was lost; that is retried, and never costs the window its own
//! session, which has the locks.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio_postgres::Client;

use crate::{
    api::Obstacle,
    runner::{Failure, database::connection::Target},
};

/// How long a session may take to answer before it counts as lost.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// The sessions in addition to that of the window.
pub(super) struct KeptSessions {
    /// For the verification that writes are blocked.
    pub(super) verification: KeptSession,
    /// For the full comparison of balances.
    pub(super) comparison: KeptSession,
    /// To look up who keeps the SQL waiting for a lock.
    pub(super) locks: KeptSession,
}

impl KeptSessions {
    pub(super) fn new(target: &Target) -> Self {
        let session = |step| KeptSession { target: target.clone(), step, client: Arc::default() };
        Self { verification: session("verification"), comparison: session("comparison"), locks: session("locks") }
    }

    /// Opens those that are not open.
    ///
    /// # Errors
    /// Those of [`Target::connect`].
    pub(super) async fn open(&self) -> Result<(), Failure> {
        let Self { verification, comparison, locks } = self;
        let all: [&KeptSession; Obstacle::CONNECTIONS_NEEDED] = [verification, comparison, locks];
        for session in all {
            session.keep(session.take().await?);
        }
        Ok(())
    }
}

/// One session.
#[derive(Clone)]
pub(super) struct KeptSession {
    target: Target,
    step: &'static str,
    client: Arc<Mutex<Option<Client>>>,
}

impl KeptSession {
    /// The session, connected again if it does not answer. If its user is cancelled, it is closed, with its locks.
    ///
    /// # Errors
    /// Those of [`Target::connect`].
    pub(super) async fn take(&self) -> Result<Client, Failure> {
        let kept = self.replace(None);
        if let Some(client) = kept
            && tokio::time::timeout(ANSWER_TIMEOUT, ping(&client)).await.is_ok_and(|answer| answer.is_ok())
        {
            return Ok(client);
        }
        self.target.connect(self.step).await
    }

    /// Keeps it for the next use.
    pub(super) fn keep(&self, client: Client) {
        self.replace(Some(client));
    }

    fn replace(&self, client: Option<Client>) -> Option<Client> {
        std::mem::replace(&mut *self.client.lock().unwrap_or_else(PoisonError::into_inner), client)
    }
}

/// Whether a session answers.
///
/// # Errors
/// A lost connection.
pub(super) async fn ping(client: &Client) -> Result<(), Failure> {
    client.batch_execute("SELECT 1").await.map_err(Failure::from)
}
