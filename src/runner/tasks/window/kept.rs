//! The sessions that the window needs beside its own: opened on standby, and kept.
//!
//! Once writes are blocked, sessions of the application are ended and their pools connect again: a server may have no
//! connection left. So none is opened then, unless one was lost; that is retried, and never costs the window its own
//! session, which has the locks.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio_postgres::Client;

use super::session::ping;
use crate::runner::{Failure, database::connection::Target};

/// How long a session may take to answer before it counts as lost.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// The sessions beside that of the window.
pub(super) struct KeptSessions {
    /// For the verification that writes are blocked.
    pub(super) verification: KeptSession,
    /// For the full comparison of balances.
    pub(super) comparison: KeptSession,
}

impl KeptSessions {
    pub(super) fn new(target: &Target) -> Self {
        let session = |step| KeptSession { target: target.clone(), step, client: Arc::default() };
        Self { verification: session("verification"), comparison: session("comparison") }
    }

    /// Opens those that are not open.
    ///
    /// # Errors
    /// Those of [`Target::connect`].
    pub(super) async fn open(&self) -> Result<(), Failure> {
        for session in [&self.verification, &self.comparison] {
            session.put_back(session.take().await?);
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
    /// The session, connected again if it does not answer. Whoever takes it and is cancelled closes it, with its locks.
    ///
    /// # Errors
    /// Those of [`Target::connect`].
    pub(super) async fn take(&self) -> Result<Client, Failure> {
        let kept = self.slot().take();
        if let Some(client) = kept
            && tokio::time::timeout(ANSWER_TIMEOUT, ping(&client)).await.is_ok_and(|answer| answer.is_ok())
        {
            return Ok(client);
        }
        self.target.connect(self.step).await
    }

    /// Keeps it for the next use.
    pub(super) fn put_back(&self, client: Client) {
        *self.slot() = Some(client);
    }

    fn slot(&self) -> std::sync::MutexGuard<'_, Option<Client>> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
