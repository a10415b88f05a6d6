//! Reading a large object: what breaks off is gone on with, from the last byte on.
//!
//! # Contract
//! - However long the whole takes: only silence ends a request, and only while something is waited for. A reader that
//!   is slow, such as a `pg_restore` that builds an index, may find the connection closed by the store; it is read on.
//! - All bytes are of one object: what was replaced meanwhile is an error.

use std::time::Duration;

use bytes::Bytes;
use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use object_store::{GetOptions, GetRange, ObjectStoreExt, path::Path};

use super::{
    Operation, StoreClient,
    answer_code::{StoreError, next_chunk, with_code},
};
use crate::{api::Reason, runner::Failure};

/// Requests one after another that may bring no byte.
const MAX_EMPTY_REQUESTS: u32 = 5;

/// An object that is being read.
struct Reading {
    store: StoreClient,
    object: String,
    path: Path,
    /// Which object it is, if the store says so.
    tag: Option<String>,
    size: u64,
    /// Bytes that were read.
    at: u64,
    body: BoxStream<'static, object_store::Result<Bytes>>,
    /// Requests since the last byte.
    empty_requests: u32,
}

/// Asks for the whole object, and how many bytes it has.
///
/// # Errors
/// As [`StoreClient::get`].
pub(super) async fn start(
    store: StoreClient,
    object: &str,
) -> Result<(u64, BoxStream<'static, Result<Bytes, Failure>>), Failure> {
    let path = store.path(object)?;
    let answer = with_code(store.client.get(&path)).await.map_err(|e| store.failure(Operation::Read, object, &e))?;
    let (tag, size) = (answer.meta.e_tag.clone(), answer.meta.size);
    let body = answer.into_stream();
    let reading = Reading { store, object: object.to_owned(), path, tag, size, at: 0, body, empty_requests: 0 };
    Ok((size, stream::try_unfold(reading, Reading::next).boxed()))
}

impl Reading {
    /// The next chunk, `None` after the last.
    async fn next(mut self) -> Result<Option<(Bytes, Self)>, Failure> {
        while self.at < self.size {
            let why = match next_chunk(&mut self.body).await {
                Some(Ok(chunk)) if chunk.is_empty() => continue,
                Some(Ok(chunk)) => {
                    self.at += u64::try_from(chunk.len()).unwrap_or(0);
                    self.empty_requests = 0;
                    return Ok(Some((chunk, self)));
                }
                Some(Err(error)) => Some(error),
                // Fewer bytes than the object has.
                None => None,
            };
            self.again(why).await?;
        }
        Ok(None)
    }

    /// Asks for what is left.
    async fn again(&mut self, mut why: Option<StoreError>) -> Result<(), Failure> {
        loop {
            if self.empty_requests >= MAX_EMPTY_REQUESTS {
                return Err(match why {
                    Some(error) => self.store.failure(Operation::Read, &self.object, &error),
                    None => {
                        let message = format!(
                            "{} breaks off after {} of {} bytes, {MAX_EMPTY_REQUESTS} times; next: check the store's \
                                log",
                            self.object, self.at, self.size
                        );
                        Failure::new(Reason::StoreUnreachable, message)
                    }
                });
            }
            // At once after the first break: most often the store closed a connection that was not read from.
            tokio::time::sleep(Duration::from_secs(self.empty_requests.into())).await;
            self.empty_requests += 1;
            tracing::info!(object = self.object, at = self.at, size = self.size, "the answer broke off and is read on");
            let options = GetOptions {
                range: Some(GetRange::Bounded(self.at..self.size)),
                if_match: self.tag.clone(),
                ..GetOptions::default()
            };
            let request = object_store::ObjectStore::get_opts(self.store.client.as_ref(), &self.path, options);
            match with_code(request).await {
                Ok(answer) if answer.meta.size == self.size && answer.meta.e_tag == self.tag => {
                    self.body = answer.into_stream();
                    return Ok(());
                }
                Ok(_) | Err(StoreError { error: object_store::Error::Precondition { .. }, .. }) => {
                    let message = format!(
                        "{} was replaced while it was read; next: find out who wrote to the bucket, then take the \
                            backup again",
                        self.object
                    );
                    return Err(Failure::new(Reason::BackupAltered, message));
                }
                Err(error) => {
                    let failure = self.store.failure(Operation::Read, &self.object, &error);
                    if failure.reason != Reason::StoreUnreachable {
                        return Err(failure);
                    }
                    why = Some(error);
                }
            }
        }
    }
}
