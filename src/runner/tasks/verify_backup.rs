//! Task `VerifyBackup`: the object in the bucket is what was uploaded, and an archive that can be read to its end.
//!
//! `pg_restore --list` alone would accept a dump that is cut in half: the table of contents is at its start. So
//! the whole object goes through `pg_restore`, and its digest is taken on the way. Nothing is written to disk.

use futures::StreamExt;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    api::{Reason, VerificationEvidence, digest_text},
    runner::{
        Failure,
        clients::{
            object_store::{STORE_RETRY_TIMEOUT, Store},
            pg_tools::Running,
        },
        context::TaskContext,
    },
};

/// Reads the backup back. Notes `verification`.
///
/// # Errors
/// `BackupAltered` if its digest is another, `BackupUnreadable` if it is missing or no complete archive; those of the
/// store.
pub async fn run(context: &TaskContext<'_>) -> Result<String, Failure> {
    let (object, expected) = inputs(context)?;
    let store = Store::open(&context.spec.plan.backup.store, &context.settings.store_keys()?, STORE_RETRY_TIMEOUT)?;
    tokio::select! {
        read = read(context, &store, object, expected) => read,
        () = context.stop.cancelled() => Err(Failure::terminated()),
    }
}

async fn read(context: &TaskContext<'_>, store: &Store, object: &str, expected: &str) -> Result<String, Failure> {
    let running = context.tools.start("pg_restore", &["--file=/dev/null".to_owned()], &[])?;
    let streamed = stream_through(store, object, running).await?;
    check_digest(object, &streamed, expected)?;
    streamed.ended.map_err(|failure| unreadable(object, &failure))?;
    let list = list(context, store, object).await?;
    let entries = list.lines().filter(|line| line.starts_with(|c: char| c.is_ascii_digit())).count();
    let entries = u64::try_from(entries).unwrap_or(0);
    if entries == 0 {
        return Err(Failure::new(
            Reason::BackupUnreadable,
            format!("{object} is an archive without entries; next: take the backup again"),
        ));
    }
    let message = format!("{object}: {} bytes read to the end, {entries} entries, {}", streamed.bytes, streamed.sha256);
    let evidence = VerificationEvidence { bytes: streamed.bytes, sha256: streamed.sha256, entries };
    context.progress.update(|status| status.verification = Some(evidence));
    Ok(message)
}

/// Object and digest of the backup, which the controller hands on.
///
/// # Errors
/// `Internal` if they are missing.
pub fn inputs<'w>(context: &'w TaskContext<'_>) -> Result<(&'w str, &'w str), Failure> {
    match (&context.spec.inputs.backup_object, &context.spec.inputs.backup_sha256) {
        (Some(object), Some(sha256)) => Ok((object, sha256)),
        _ => Err(Failure::new(Reason::Internal, "the run's inputs name no backup")),
    }
}

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
/// whether the object or the program is to blame.
///
/// # Errors
/// Those of the store.
pub async fn stream_through(store: &Store, object: &str, mut running: Running) -> Result<Streamed, Failure> {
    let mut chunks = store.get(object).await?;
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
    }
    if let Some(mut stdin) = running.stdin.take() {
        let _ = stdin.shutdown().await;
    }
    Ok(Streamed { bytes, sha256: digest_text(hash), ended: running.end().await })
}

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

fn unreadable(object: &str, failure: &Failure) -> Failure {
    Failure::new(
        Reason::BackupUnreadable,
        format!("{object} cannot be read to its end: {}; next: take the backup again", failure.message),
    )
}

/// The table of contents as `pg_restore --list` prints it. Only the start of the object is read for it.
///
/// # Errors
/// `BackupUnreadable` if it is no archive; those of the store.
pub(in crate::runner) async fn list(context: &TaskContext<'_>, store: &Store, object: &str) -> Result<String, Failure> {
    let mut running = context.tools.start("pg_restore", &["--list".to_owned()], &[])?;
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
