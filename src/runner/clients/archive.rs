//! The dump in the object store as `pg_restore` reads it.

use std::path::Path;

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

/// An archive that was read to its end.
pub struct Verified {
    /// Its bytes.
    pub bytes: u64,
    /// Entries in its table of contents.
    pub entries: u64,
}

/// Reads an archive to its end, all of it through `pg_restore`: a dump that is cut in half has a table of contents at
/// its start, too. Nothing is written to disk. `read` is called as in [`stream_through`].
///
/// # Errors
/// `BackupAltered` if its digest is another, `BackupUnreadable` if it is missing or no complete archive; those of the
/// store.
pub async fn verify(
    tools: &Tools,
    store: &StoreClient,
    object: &str,
    expected: &str,
    read: impl FnMut(usize, u64),
) -> Result<Verified, Failure> {
    let running = tools.start("pg_restore", &["--file=/dev/null".to_owned()], &[])?;
    let streamed = stream_through(store, object, running, read).await?;
    check_digest(object, &streamed, expected)?;
    streamed.ended.map_err(|failure| unreadable(object, &failure))?;
    let list = list(tools, store, object).await?;
    let entries = list.lines().filter(|line| line.starts_with(|c: char| c.is_ascii_digit())).count();
    Ok(Verified { bytes: streamed.bytes, entries: u64::try_from(entries).unwrap_or(0) })
}

/// Copies an object into a file.
///
/// # Errors
/// `BackupAltered` if its digest is another, `Internal` if the file cannot be written; those of the store.
pub async fn fetch(store: &StoreClient, object: &str, expected: &str, file: &Path) -> Result<(), Failure> {
    let unwritten = |e| Failure::new(Reason::Internal, format!("{} cannot be written: {e}", file.display()));
    let mut chunks = store.get(object).await?;
    let (mut hash, mut bytes) = (Sha256::new(), 0_u64);
    let mut copy = tokio::fs::File::create(file).await.map_err(unwritten)?;
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk?;
        hash.update(&chunk);
        bytes += u64::try_from(chunk.len()).unwrap_or(0);
        copy.write_all(&chunk).await.map_err(unwritten)?;
    }
    copy.flush().await.map_err(unwritten)?;
    check_digest(object, &Streamed { bytes, sha256: digest_text(hash), ended: Ok(()) }, expected)
}

/// The table of contents as `pg_restore --list` prints it. Only the start of the object is read for it. Names of a
/// database that is not in UTF-8 may come out damaged; numbers do not.
///
/// # Errors
/// `BackupUnreadable` if it is no archive; those of the store.
pub async fn list(tools: &Tools, store: &StoreClient, object: &str) -> Result<String, Failure> {
    let mut running = tools.start("pg_restore", &["--list".to_owned()], &[])?;
    let mut chunks = store.get(object).await?;
    let mut stdin = running.stdin.take();
    let mut list = Vec::new();
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
            .read_to_end(&mut list)
            .await
            .map_err(|e| Failure::new(Reason::BackupUnreadable, format!("pg_restore --list: {e}")))
    };
    tokio::try_join!(send, receive)?;
    running.end().await.map_err(|failure| unreadable(object, &failure))?;
    Ok(String::from_utf8_lossy(&list).into_owned())
}

/// The same; empty if the object is no archive: who reads all of it afterwards finds out whether it was altered.
///
/// # Errors
/// Those of the store.
pub async fn list_or_none(tools: &Tools, store: &StoreClient, object: &str) -> Result<String, Failure> {
    match list(tools, store, object).await {
        Err(failure) if failure.reason == Reason::BackupUnreadable => Ok(String::new()),
        listed => listed,
    }
}

/// The table of contents of an archive in a file.
///
/// # Errors
/// `BackupUnreadable` if it is no archive.
pub async fn list_file(tools: &Tools, file: &str) -> Result<String, Failure> {
    let mut running = tools.start("pg_restore", &["--list".to_owned(), file.to_owned()], &[])?;
    let mut list = Vec::new();
    let read = running.stdout.read_to_end(&mut list).await;
    read.map_err(|e| Failure::new(Reason::BackupUnreadable, format!("pg_restore --list: {e}")))?;
    running.end().await.map_err(|failure| unreadable(file, &failure))?;
    Ok(String::from_utf8_lossy(&list).into_owned())
}
