//! The dump in the object store as `pg_restore` reads it.

use futures::StreamExt;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{
    object_store::StoreClient,
    pg_tools::{Running, Tools},
};
use crate::{
    api::{Reason, digest_text},
    runner::Failure,
};

/// Result of streaming an object through a program.
pub struct Streamed {
    /// Bytes of the object.
    pub bytes: u64,
    /// Digest of the object.
    pub sha256: String,
    /// How the program ended.
    pub ended: Result<(), Failure>,
}

/// Streams an object through a program's standard input, all of it even if the program ends early: the digest shows
/// whether the object or the program is to blame. `read` gets the bytes of each chunk and those of the object.
///
/// # Errors
/// Those of the store.
pub async fn stream_through(
    store: &StoreClient,
    object: &str,
    mut running: Running,
    mut read: impl FnMut(usize, u64),
) -> Result<Streamed, Failure> {
    let (size, mut chunks) = store.get_sized(object).await?;

    let (mut hash, mut bytes) = (Sha256::new(), 0_u64);
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk?;
        hash.update(&chunk);
        bytes += u64::try_from(chunk.len()).unwrap_or(0);
        if let Some(stdin) = &mut running.stdin
            && stdin.write_all(&chunk).await.is_err()
        {
            running.stdin = None;
        }
        read(chunk.len(), size);
    }
    if let Some(mut stdin) = running.stdin.take() {
        let _ = stdin.shutdown().await;
    }
    Ok(Streamed { bytes, sha256: digest_text(hash), ended: running.end().await })
}

/// The object is what was uploaded: its digest is the expected one.
///
/// # Errors
/// `BackupAltered`.
pub fn check_digest(object: &str, streamed: &Streamed, expected: &str) -> Result<(), Failure> {
    if streamed.sha256 == expected {
        return Ok(());
    }
    Err(Failure::new(
        Reason::BackupAltered,
        format!(
            "{object} has {} and {} bytes, uploaded was {expected}; next: find out who wrote to the bucket, then take \
                the backup again",
            streamed.sha256, streamed.bytes
        ),
    ))
}

/// That an object cannot be read to its end, and why.
pub fn unreadable(object: &str, failure: &Failure) -> Failure {
    Failure::new(
        Reason::BackupUnreadable,
        format!("{object} cannot be read to its end: {}; next: take the backup again", failure.message),
    )
}

/// The table of contents as `pg_restore --list` prints it. Only the start of the object is read for it.
///
/// # Errors
/// `BackupUnreadable` if it is no archive; those of the store.
pub async fn list(tools: &Tools, store: &StoreClient, object: &str) -> Result<String, Failure> {
    let mut running = tools.start("pg_restore", &["--list".to_owned()], &[])?;
    let mut chunks = store.get(object).await?;
    let mut stdin = running.stdin.take();
    let mut list = String::new();
    let send = async {
        while let (Some(pipe), Some(chunk)) = (&mut stdin, chunks.next().await) {
            // It closes its end when it has read the table of contents.
            if pipe.write_all(&chunk?).await.is_err() {
                break;
            }
        }
        drop(stdin);
        Ok::<(), Failure>(())
    };
    let receive = async {
        running
            .stdout
            .read_to_string(&mut list)
            .await
            .map_err(|e| Failure::new(Reason::BackupUnreadable, format!("pg_restore --list: {e}")))
    };
    tokio::try_join!(send, receive)?;
    running.end().await.map_err(|failure| unreadable(object, &failure))?;
    Ok(list)
}
