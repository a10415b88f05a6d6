//! Archives of `pg_dump`, streamed into the bucket.

use serde_json::to_vec_pretty;
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;
use tokio_util::sync::CancellationToken;

use super::CLEAN_UP_TIMEOUT;
use crate::{
    api::{Activity, BackupFormat, Reason, WorkUnit, digest_text, sha256},
    runner::{
        Failure,
        clients::{
            manifest::{MANIFEST, Manifest},
            object_store::{StoreClient, Upload},
            rate_limit::RateLimit,
        },
        context::TaskContext,
        database::{connection::Target, control},
        report::Meter,
    },
};

/// How long `pg_dump` waits for a table that another session has locked exclusively.
const DUMP_LOCK_TIMEOUT: &str = "--lock-wait-timeout=60000";

/// What all programs that dump one snapshot have in common.
pub(super) struct Dumper<'a> {
    context: &'a TaskContext<'a>,
    store: &'a StoreClient,
    env: Vec<(&'static str, String)>,
    arguments: Vec<String>,
    rate: RateLimit,
    meter: Meter,
}

/// An archive of which all parts are sent, and nothing is visible yet.
pub(super) struct Archive {
    pub(super) upload: Upload,
    pub(super) bytes: u64,
    pub(super) sha256: String,
}

impl<'a> Dumper<'a> {
    pub(super) fn new(context: &'a TaskContext<'a>, store: &'a StoreClient, target: &Target, snapshot: &str) -> Self {
        let backup = &context.spec.plan.backup;
        let mut arguments = vec![
            "--format=custom".to_owned(),
            "--no-password".to_owned(),
            format!("--snapshot={snapshot}"),
            // The row of the write block would block writes in the database that the dump is restored into.
            format!("--exclude-table-data={}.*", control::SCHEMA),
            DUMP_LOCK_TIMEOUT.to_owned(),
        ];
        arguments.extend(backup.compression.as_ref().map(|c| format!("--compress={}", c.option())));
        let env = target.libpq_env(context.settings.database_ca_file().as_deref());
        let rate = RateLimit::new(context.spec.plan.runner.limits.dump());
        let meter = context.progress.meter(Activity::Dump, WorkUnit::Bytes);
        Self { context, store, env, arguments, rate, meter }
    }

    /// Programs that dump at the same time.
    pub(super) fn jobs(&self) -> u32 {
        match self.context.spec.plan.backup.format {
            BackupFormat::Custom => 1,
            BackupFormat::Directory => self.context.spec.plan.backup.jobs.max(1),
        }
    }

    /// Dumps what `more` arguments choose, of about `expected` bytes. On any failure, and when `stop` is cancelled, the
    /// upload is aborted.
    pub(super) async fn archive(
        &self,
        object: &str,
        more: &[String],
        expected: u64,
        stop: &CancellationToken,
    ) -> Result<Archive, Failure> {
        if stop.is_cancelled() {
            return Err(Failure::terminated());
        }
        // Half of the pod's memory: the programs have the other half.
        let memory = self.context.spec.plan.runner.resources.memory_limit_bytes() / 2 / u64::from(self.jobs());
        let mut upload = self.store.upload_within(object, expected, memory).await?;
        let streamed = tokio::select! {
            streamed = self.stream(more, &mut upload) => streamed,
            () = stop.cancelled() => Err(Failure::terminated()),
        };
        match streamed {
            Ok((bytes, sha256)) => Ok(Archive { upload, bytes, sha256 }),
            Err(failure) => {
                upload.abort().await;
                Err(failure)
            }
        }
    }

    async fn stream(&self, more: &[String], upload: &mut Upload) -> Result<(u64, String), Failure> {
        let arguments: Vec<String> = self.arguments.iter().chain(more).cloned().collect();
        let mut running = self.context.tools.start("pg_dump", &arguments, &self.env)?;
        drop(running.stdin.take());
        let (mut hash, mut bytes) = (Sha256::new(), 0_u64);
        let mut buffer = vec![0; 1 << 18];
        loop {
            let read = running.stdout.read(&mut buffer).await;
            let read = read.map_err(|e| Failure::new(Reason::DumpFailed, format!("pg_dump: {e}")))?;
            if read == 0 {
                break;
            }
            let data = buffer.get(..read).unwrap_or_default();
            hash.update(data);
            upload.write(data).await?;
            self.meter.add(read);
            let read = u64::try_from(read).unwrap_or(0);
            bytes += read;
            // A pipe that is not read from fills up, and so makes pg_dump stop reading from the server.
            self.rate.pass(read).await;
        }
        // The end of the stream is no evidence: a pg_dump that died ends its stream, too.
        running.end().await?;
        Ok((bytes, digest_text(hash)))
    }
}

/// A dump that does not count yet.
pub(super) struct Dumped {
    /// The object by which the dump is named.
    pub(super) object: String,
    /// Of all archives.
    pub(super) bytes: u64,
    /// Of `object`.
    pub(super) sha256: String,
    pub(super) archives: u32,
    last: Last,
    /// Objects of it that are in the bucket.
    written: Vec<String>,
}

/// What is written last, and makes the dump count.
enum Last {
    Parts(Box<Upload>),
    Manifest(Vec<u8>),
}

impl Dumped {
    /// One archive.
    pub(super) fn custom(object: String, archive: Archive) -> Self {
        let Archive { upload, bytes, sha256 } = archive;
        Self { object, bytes, sha256, archives: 1, last: Last::Parts(Box::new(upload)), written: vec![] }
    }

    /// The archives of a manifest, which are in the bucket.
    pub(super) fn directory(folder: &str, manifest: &Manifest) -> Result<Self, Failure> {
        let text = to_vec_pretty(manifest).map_err(|e| Failure::new(Reason::Internal, e.to_string()))?;
        let object = format!("{folder}/{MANIFEST}");
        Ok(Self {
            bytes: manifest.archives.iter().map(|archive| archive.bytes).sum(),
            sha256: sha256(&text),
            archives: u32::try_from(manifest.archives.len()).unwrap_or(u32::MAX),
            last: Last::Manifest(text),
            written: manifest.archives.iter().map(|archive| Manifest::object_of(&object, archive)).collect(),
            object,
        })
    }

    /// Makes it count. After an error [`Dumped::remove`] is still to be called.
    pub(super) async fn complete(&mut self, store: &StoreClient) -> Result<(), Failure> {
        match &mut self.last {
            Last::Parts(upload) => upload.complete().await,
            Last::Manifest(text) => store.put(&self.object, text.clone()).await,
        }
    }

    /// Removes what there is of it.
    pub(super) async fn remove(self, store: &StoreClient) {
        if let Last::Parts(upload) = self.last {
            upload.abort().await;
        }
        remove(store, &[self.object]).await;
        remove(store, &self.written).await;
    }
}

/// Removes objects: without a reference they would only cost money.
pub(super) async fn remove(store: &StoreClient, objects: &[String]) {
    let all = futures::future::join_all(objects.iter().map(|object| store.delete(object)));
    let _ = tokio::time::timeout(CLEAN_UP_TIMEOUT, all).await;
}
