//! Task `VerifyBackup`: the object in the bucket is what was uploaded, and an archive that can be read to its end.
//!
//! `pg_restore --list` alone would accept a dump that is cut in half: the table of contents is at its start. So
//! the whole object goes through `pg_restore`, and its digest is taken on the way. Nothing is written to disk.

use crate::{
    api::{Activity, Reason, VerificationEvidence, WorkUnit},
    runner::{
        Failure,
        clients::{
            archive,
            object_store::{STORE_RETRY_TIMEOUT, StoreClient},
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
    let (object, expected) = context.backup_input()?;
    let store =
        StoreClient::open(&context.spec.plan.backup.store, &context.settings.store_keys()?, STORE_RETRY_TIMEOUT)?;
    tokio::select! {
        read = read(context, &store, object, expected) => read,
        () = context.stop.cancelled() => Err(Failure::terminated()),
    }
}

async fn read(context: &TaskContext<'_>, store: &StoreClient, object: &str, expected: &str) -> Result<String, Failure> {
    let running = context.tools.start("pg_restore", &["--file=/dev/null".to_owned()], &[])?;
    let mut meter = context.progress.meter(Activity::Verify, WorkUnit::Bytes);
    let streamed = archive::stream_through(store, object, running, |read, size| meter.add_of(read, size)).await?;
    archive::check_digest(object, &streamed, expected)?;
    streamed.ended.map_err(|failure| archive::unreadable(object, &failure))?;
    let list = archive::list(&context.tools, store, object).await?;
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
