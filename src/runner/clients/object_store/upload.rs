//! Multipart uploads of data whose size is not known beforehand.

use std::time::Duration;

use object_store::{MultipartId, PutPayload, multipart::MultipartStore, multipart::PartId, path::Path};
use tokio::task::JoinHandle;
use tracing::Instrument;

use super::{
    Operation, StoreClient,
    answer_code::{StoreError, with_code},
};
use crate::{api::Reason, runner::Failure};

/// Smallest part: S3 takes none below 5 MiB.
const MIN_PART_BYTES: u64 = 8 << 20;
/// What the parts in memory of one upload may have together, unless the caller says otherwise: half of a pod's 512Mi.
pub(super) const DEFAULT_MEMORY_BYTES: u64 = 256 << 20;
/// S3 takes no more parts.
const MAX_PARTS: usize = 10_000;
/// Parts that something of the expected size is cut into: the rest is for a dump that is larger than its database.
const TARGET_PARTS: u64 = 5_000;
/// How long removing the parts may take: after SIGTERM a pod does not have more.
const ABORT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the store has time to give up a part that it was receiving.
const IN_FLIGHT_PART_TIMEOUT: Duration = Duration::from_secs(2);

/// Bytes of each part but the last. All have one size, since some stores (Cloudflare R2) insist on it; so what is
/// larger than [`MAX_PARTS`] of `memory`, 2.6 TB with the default, cannot be uploaded.
fn part_size(expected: u64, memory: u64) -> u64 {
    (expected / TARGET_PARTS).clamp(MIN_PART_BYTES, memory.max(MIN_PART_BYTES))
}

/// Whether a part may be filled while another one is sent.
fn two_at_a_time(part: u64, memory: u64) -> bool {
    part <= memory / 2
}

/// A multipart upload. It must be ended by [`Upload::complete`] or [`Upload::abort`]: parts of one that is only dropped
/// stay in the bucket and cost money.
pub struct Upload {
    store: StoreClient,
    object: String,
    path: Path,
    id: MultipartId,
    part: usize,
    two_at_a_time: bool,
    buffer: Vec<u8>,
    sent: Vec<PartId>,
    pending: Option<JoinHandle<Result<PartId, StoreError>>>,
}

impl Upload {
    /// As [`StoreClient::upload_within`].
    pub(super) async fn start(store: StoreClient, object: &str, expected: u64, memory: u64) -> Result<Self, Failure> {
        let path = store.path(object)?;
        let id = with_code(store.client.create_multipart(&path)).await;
        let id = id.map_err(|e| store.failure(Operation::Write, object, &e))?;
        let part = part_size(expected, memory);
        let two_at_a_time = two_at_a_time(part, memory);
        let (part, object) = (usize::try_from(part).unwrap_or(usize::MAX), object.to_owned());
        Ok(Self { store, object, path, id, part, two_at_a_time, buffer: Vec::new(), sent: Vec::new(), pending: None })
    }

    /// Adds data. At most two parts are in memory: one that is filled, one that is sent; of large parts one.
    ///
    /// # Errors
    /// `BucketMissing`, `BucketDenied`, `StoreUnreachable`; `DumpFailed` if it is too large.
    pub async fn write(&mut self, mut data: &[u8]) -> Result<(), Failure> {
        while !data.is_empty() {
            if self.buffer.capacity() < self.part {
                // At once: a vector that grows by doubling has up to three times as much while it moves. Pages that are
                // not written to cost nothing.
                self.buffer.reserve_exact(self.part);
            }
            let (now, later) = data.split_at(data.len().min(self.part - self.buffer.len()));
            self.buffer.extend_from_slice(now);
            data = later;
            if self.buffer.len() == self.part {
                self.flush().await?;
            }
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), Failure> {
        self.settle().await?;
        if self.buffer.is_empty() {
            return Ok(());
        }
        let number = self.sent.len();
        if number >= MAX_PARTS {
            let message = format!(
                "{} is larger than {MAX_PARTS} parts of {} bytes, the largest that fit into an upload and the pod's \
                    memory; next: raise spec.runner.resources.limits.memory",
                self.object, self.part
            );
            return Err(Failure::new(Reason::DumpFailed, message));
        }
        let (client, path, id) = (self.store.sender.clone(), self.path.clone(), self.id.clone());
        let payload = PutPayload::from(std::mem::take(&mut self.buffer));
        let sending = async move { with_code(client.put_part(&path, &id, number, payload)).await };
        self.pending = Some(tokio::spawn(sending.in_current_span()));
        if !self.two_at_a_time {
            self.settle().await?;
        }
        Ok(())
    }

    /// Waits for the part that is being sent.
    async fn settle(&mut self) -> Result<(), Failure> {
        // Kept until it has ended: a caller that stops waiting must still be able to abort it.
        let Some(part) = &mut self.pending else { return Ok(()) };
        let ended = part.await;
        self.pending = None;
        match ended {
            Ok(Ok(part)) => {
                self.sent.push(part);
                Ok(())
            }
            Ok(Err(error)) => Err(self.store.failure(Operation::Write, &self.object, &error)),
            Err(error) => Err(Failure::new(Reason::Internal, format!("writing {}: {error}", self.object))),
        }
    }

    /// Makes the object appear. After an error, or if it was not waited for, [`Upload::abort`] is still to be called.
    ///
    /// # Errors
    /// `BucketMissing`, `BucketDenied`, `StoreUnreachable`.
    pub async fn complete(&mut self) -> Result<(), Failure> {
        self.flush().await?;
        self.settle().await?;
        // Some stores put the parts together only now, in silence.
        let ended = with_code(self.store.sender.complete_multipart(&self.path, &self.id, self.sent.clone())).await;
        ended.map(|_| ()).map_err(|e| self.store.failure(Operation::Write, &self.object, &e))
    }

    /// Gives the upload up and removes its parts, within seconds: the part that is being sent is not waited for.
    pub async fn abort(mut self) {
        let pending = self.pending.take();
        if let Some(part) = &pending {
            part.abort();
        }
        let mut removed = self.remove().await;
        if let Some(part) = pending {
            // A part that the store had not yet taken when the upload ended may arrive after that, and would stay.
            let _ = part.await;
            tokio::time::sleep(IN_FLIGHT_PART_TIMEOUT).await;
            removed = self.remove().await.or(removed);
        }
        if let Err(cause) = removed {
            tracing::warn!(object = self.object, error = %cause, "parts of an aborted upload may be left");
        }
    }

    /// Removes the parts; that there are none is good.
    async fn remove(&self) -> Result<(), String> {
        let abort = with_code(self.store.client.abort_multipart(&self.path, &self.id));
        match tokio::time::timeout(ABORT_TIMEOUT, abort).await {
            Ok(Ok(()) | Err(StoreError { error: object_store::Error::NotFound { .. }, .. })) => Ok(()),
            Ok(Err(error)) => Err(self.store.failure(Operation::Abort, &self.object, &error).message),
            Err(_) => Err(format!("the store did not answer within {} s", ABORT_TIMEOUT.as_secs())),
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const TB: u64 = 1_000_000_000_000;

    #[rstest]
    #[case::small(0, 256 << 20, 8 << 20)]
    #[case::an_ordinary_one(30_000_000_000, 256 << 20, 8 << 20)]
    #[case::large(TB / 2, 256 << 20, 100_000_000)]
    #[case::very_large(TB, 256 << 20, 200_000_000)]
    #[case::beyond(10 * TB, 256 << 20, 256 << 20)]
    #[case::with_more_memory(10 * TB, 4 << 30, 2_000_000_000)]
    #[case::with_little(TB, 16 << 20, 16 << 20)]
    fn parts_fit_into_the_pod_and_into_the_upload(#[case] expected: u64, #[case] memory: u64, #[case] want: u64) {
        let part = part_size(expected, memory);
        assert_eq!(part, want);
        let held = if two_at_a_time(part, memory) { 2 * part } else { part };
        assert!(held <= memory, "{held} bytes of {memory}");
        assert!(part * 10_000 >= expected.min(memory * 10_000), "{part} bytes in 10,000 parts");
    }
}
