//! Task `Backup`: triggers, statistics, baseline and dump, all of one snapshot, streamed into the bucket.
//!
//! ```text
//!  triggers ── BEGIN REPEATABLE READ ── export snapshot ── statistics ── baseline ──────────────── COMMIT
//!                                                   └─ pg_dump --snapshot ─ sha256 ─ parts ─ complete ──┘
//! ```
//!
//! # Contract
//! - The object appears in the bucket only after `pg_dump` has ended with 0; until then there are parts, and on any
//!   failure they are removed.
//! - Nothing is written to the pod's disk; two parts are in memory.
//! - The baseline counts only if the dump does: it is committed last, with the digests of the schema's objects.

use std::time::Duration;

use serde::Serialize;
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;

use crate::{
    api::{Activity, BackupEvidence, BaselineEvidence, Reason, WorkUnit, digest_text},
    runner::{
        Failure,
        clients::object_store::{STORE_RETRY_TIMEOUT, StoreClient, Upload},
        context::TaskContext,
        database::{
            connection::Target,
            control::{self, schema_objects::SchemaObjects},
            snapshot::{Access, snapshot},
            statistics::{Present, Statistics, statistics},
        },
    },
    telemetry,
};

/// Kinds of transaction that get into the status; the object next to the dump has all.
const MAX_TRANSACTION_KINDS: usize = 100;
/// How long `pg_dump` waits for a table that another session has locked exclusively.
const DUMP_LOCK_TIMEOUT: &str = "--lock-wait-timeout=60000";
/// How long removing objects of a failed backup may take: after SIGTERM a pod does not have more.
const CLEAN_UP_TIMEOUT: Duration = Duration::from_secs(10);

/// The object next to the dump.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct BackupManifest<'a> {
    migration: &'a str,
    #[serde(rename = "migrationUID")]
    migration_uid: &'a str,
    database: &'a str,
    dump: &'a str,
    dump_sha256: &'a str,
    dump_bytes: u64,
    baseline: &'a BaselineEvidence,
}

/// Takes the backup. Notes `baseline` and `backup`.
///
/// # Errors
/// Those of settings and connection; `DatabaseInUse`, `LockTimeout` of the triggers; `DumpFailed`; those of the store.
pub async fn run(context: &TaskContext<'_>) -> Result<String, Failure> {
    let target = context.settings.target()?;
    let store =
        StoreClient::open(&context.spec.plan.backup.store, &context.settings.store_keys()?, STORE_RETRY_TIMEOUT)?;
    let version = context.tools.version().await?;
    let control_spec = context.control_spec();
    let mut client = target.connect("backup").await?;
    control::install(&mut client, &control_spec).await?;

    let transaction = snapshot(&mut client, Access::Write).await?;
    let row = transaction.query_one("SELECT pg_export_snapshot(), pg_database_size(current_database())", &[]).await?;
    let (snapshot, size): (String, i64) = (row.get(0), row.get(1));
    let mut baseline = evidence(statistics(&transaction, &context.spec.plan.credits, Present::ALL).await?);
    let complete = baseline.clone();
    baseline.transactions.truncate(MAX_TRANSACTION_KINDS);
    context.progress.update(|status| status.baseline = Some(baseline.clone()));
    let objects = SchemaObjects::take(&transaction).await?;

    let object = store.object(&format!("{}.dump", context.backup_name(complete.taken_at)));
    let statistics_object = store.object(&format!("{}.statistics.json", context.backup_name(complete.taken_at)));
    let upload = store.upload(&object, u64::try_from(size).unwrap_or(0)).await?;
    let mut dump = dump(context, &target, &snapshot, upload).await?;
    let manifest = BackupManifest {
        migration: &context.spec.migration,
        migration_uid: &context.spec.migration_uid,
        database: target.database(),
        dump: &object,
        dump_sha256: &dump.sha256,
        dump_bytes: dump.bytes,
        baseline: &complete,
    };
    let manifest = serde_json::to_vec_pretty(&manifest).map_err(|e| Failure::new(Reason::Internal, e.to_string()))?;
    let finish = async {
        // In the snapshot of the dump, and after it: logical slots keep the WAL of all transactions since the first
        // write of this one.
        control::take_baseline(&transaction, &control_spec).await?;
        objects.record(&transaction, &control_spec).await?;
        store.put(&statistics_object, manifest).await?;
        dump.upload.complete().await
    };
    let finished = tokio::select! {
        finished = finish => finished,
        () = context.stop.cancelled() => Err(Failure::terminated()),
    };
    // Must not be interrupted: a baseline must not be committed without its dump.
    let finished = match finished {
        Ok(()) => transaction.commit().await.map_err(Failure::from),
        Err(failure) => Err(failure),
    };
    if let Err(failure) = finished {
        dump.upload.abort().await;
        // Objects without a reference would only cost money.
        let delete = async {
            for left in [&statistics_object, &object] {
                let _ = store.delete(left).await;
            }
        };
        let _ = tokio::time::timeout(CLEAN_UP_TIMEOUT, delete).await;
        return Err(failure);
    }
    let message = format!("{object}, {} bytes, {} users", dump.bytes, baseline.users);
    let evidence = BackupEvidence {
        object,
        statistics_object,
        bytes: dump.bytes,
        sha256: dump.sha256,
        pg_dump_version: version.text,
        finished_at: telemetry::now(),
    };
    context.progress.update(|status| status.backup = Some(evidence));
    Ok(message)
}

/// A dump of which all parts are sent, and none is visible yet.
struct Dump {
    upload: Upload,
    bytes: u64,
    sha256: String,
}

/// Streams `pg_dump` into the upload. On any failure the upload is aborted.
async fn dump(context: &TaskContext<'_>, target: &Target, snapshot: &str, mut upload: Upload) -> Result<Dump, Failure> {
    let streamed = tokio::select! {
        streamed = stream(context, target, snapshot, &mut upload) => streamed,
        () = context.stop.cancelled() => Err(Failure::terminated()),
    };
    match streamed {
        Ok((bytes, sha256)) => Ok(Dump { upload, bytes, sha256 }),
        Err(failure) => {
            upload.abort().await;
            Err(failure)
        }
    }
}

async fn stream(
    context: &TaskContext<'_>,
    target: &Target,
    snapshot: &str,
    upload: &mut Upload,
) -> Result<(u64, String), Failure> {
    let arguments = [
        "--format=custom".to_owned(),
        "--no-password".to_owned(),
        format!("--snapshot={snapshot}"),
        // The row of the write block would block writes in the database that the dump is restored into.
        format!("--exclude-table-data={}.*", control::SCHEMA),
        DUMP_LOCK_TIMEOUT.to_owned(),
    ];
    let env = target.libpq_env(context.settings.database_ca_file().as_deref());
    let mut running = context.tools.start("pg_dump", &arguments, &env)?;
    drop(running.stdin.take());
    let (mut hash, mut bytes) = (Sha256::new(), 0_u64);
    let mut meter = context.progress.meter(Activity::Dump, WorkUnit::Bytes);
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = running.stdout.read(&mut buffer).await;
        let read = read.map_err(|e| Failure::new(Reason::DumpFailed, format!("pg_dump: {e}")))?;
        if read == 0 {
            break;
        }
        let data = buffer.get(..read).unwrap_or_default();
        hash.update(data);
        bytes += u64::try_from(read).unwrap_or(0);
        upload.write(data).await?;
        meter.add(read);
    }
    // The end of the stream is no evidence: a pg_dump that died ends its stream, too.
    running.end().await?;
    Ok((bytes, digest_text(hash)))
}

/// What goes into the status.
fn evidence(statistics: Statistics) -> BaselineEvidence {
    let Statistics { users, total_balance, total_purchased, average_balance, max_balance, transactions, taken_at } =
        statistics;
    BaselineEvidence {
        users,
        total_balance,
        total_purchased,
        average_balance,
        max_balance,
        transactions: transactions.unwrap_or_default(),
        taken_at,
    }
}
