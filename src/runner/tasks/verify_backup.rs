//! Task `VerifyBackup`: the object in the bucket is what was uploaded, and an archive that can be read to its end; of a
//! dump in several archives, each of those that its manifest names.

use futures::{StreamExt, TryStreamExt};

use crate::{
    api::{Activity, BackupFormat, Reason, VerificationEvidence, WorkUnit},
    runner::{
        Failure,
        clients::{
            archive,
            manifest::Manifest,
            object_store::{STORE_RETRY_TIMEOUT, StoreClient},
        },
        context::TaskContext,
    },
};

/// Reads the backup back. Notes `verification`.
///
/// # Errors
/// `BackupAltered` if a digest is another, `BackupUnreadable` if something is missing or no complete archive; those of
/// the store.
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
    let backup = &context.spec.plan.backup;
    let (archives, total) = match backup.format {
        BackupFormat::Custom => (vec![(object.to_owned(), expected.to_owned())], None),
        BackupFormat::Directory => {
            let manifest = Manifest::read(store, object, expected).await?;
            let archives = manifest.archives.iter();
            let total = archives.clone().map(|archive| archive.bytes).sum();
            (archives.map(|a| (Manifest::object_of(object, a), a.sha256.clone())).collect(), Some(total))
        }
    };
    let found = archives.len();
    let jobs = usize::try_from(backup.jobs).unwrap_or(1).max(1);
    let meter = context.progress.meter(Activity::Verify, WorkUnit::Bytes);
    let verify = async |(object, sha256): (String, String)| {
        let read = |read, size| meter.add_of(read, total.unwrap_or(size));
        archive::verify(&context.tools, store, &object, &sha256, read).await
    };
    let verified = futures::stream::iter(archives).map(verify).buffer_unordered(jobs);
    let (bytes, entries) =
        verified.try_fold((0, 0), async |(bytes, entries), v| Ok((bytes + v.bytes, entries + v.entries))).await?;
    if entries == 0 {
        return Err(Failure::new(
            Reason::BackupUnreadable,
            format!("{object} has no entry in {found} archives; next: take the backup again"),
        ));
    }
    let message = format!("{object}: {bytes} bytes read to the end, {entries} entries, {expected}");
    // Those of the archives were compared with the manifest, and its own, or the archive's, with the expected one.
    let evidence = VerificationEvidence { bytes, sha256: expected.to_owned(), entries };
    context.progress.update(|status| status.verification = Some(evidence));
    Ok(message)
}
