//! Task `Backup`: triggers, statistics, baseline and dump, all of one snapshot, streamed into the bucket.
//!
//! ```text
//!  triggers ── BEGIN REPEATABLE READ ── export snapshot ── statistics ── baseline ──────────────── COMMIT
//!                                                   └─ pg_dump --snapshot ─ sha256 ─ parts ─ complete ──┘
//! ```
//!
//! # Contract
//! - The object appears in the bucket only after `pg_dump` has ended with 0; until then there are parts, and on any
//!   failure they are removed. Of several archives the manifest appears last, and what has none belongs to no backup.
//! - Nothing is written to the pod's disk; parts take half of its memory.
//! - The baseline counts only if the dump does: it is committed last, with the digests of the schema's objects.
//!
//! Called by the runner's dispatch. Imports `clients`, `database`, `context` and `failure` of the runner, and `api`.

mod archives;
mod directory;

use std::time::Duration;

use serde::Serialize;

use self::archives::{Dumped, Dumper, remove};
use crate::{
    api::{BackupEvidence, BackupFormat, BaselineEvidence, Direction, Reason},
    runner::{
        Failure,
        clients::object_store::{STORE_RETRY_TIMEOUT, StoreClient},
        context::TaskContext,
        database::{
            control::{self, schema_objects::SchemaObjects},
            snapshot::{Access, snapshot},
            statistics::{Present, Statistics, statistics},
        },
    },
    telemetry,
};

/// Kinds of transaction that get into the status; the object next to the dump has all.
const MAX_TRANSACTION_KINDS: usize = 100;
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
    // What earlier attempts have left is not kept: the table would grow up to all users.
    control::refresh_baseline(&mut client, &control_spec, Direction::Forward).await?;

    let transaction = snapshot(&mut client, Access::Write).await?;
    let row = transaction.query_one("SELECT pg_export_snapshot(), pg_database_size(current_database())", &[]).await?;
    let (snapshot, size): (String, i64) = (row.get(0), row.get(1));
    let format = context.spec.plan.backup.format;
    let tables = match format {
        BackupFormat::Custom => vec![],
        BackupFormat::Directory => directory::lock_large_tables(&transaction).await?,
    };
    let mut baseline = evidence(statistics(&transaction, &context.spec.plan.credits, Present::ALL).await?);
    let complete = baseline.clone();
    baseline.transactions.truncate(MAX_TRANSACTION_KINDS);
    context.progress.update(|status| status.baseline = Some(baseline.clone()));
    let objects = SchemaObjects::take(&transaction).await?;

    let base = store.object(&context.backup_name(complete.taken_at));
    let statistics_object = format!("{base}.statistics.json");
    let size = u64::try_from(size).unwrap_or(0);
    let dumper = Dumper::new(context, &store, &target, &snapshot);
    let dumped = match format {
        BackupFormat::Custom => {
            let object = format!("{base}.dump");
            dumper.archive(&object, &[], size, &context.stop).await.map(|archive| Dumped::custom(object, archive))
        }
        BackupFormat::Directory => {
            let of = (context.spec, target.database(), size);
            directory::dump(&dumper, &store, &format!("{base}.dump"), tables, of, &context.stop).await
        }
    };
    let mut dump = dumped?;
    let manifest = BackupManifest {
        migration: &context.spec.migration,
        migration_uid: &context.spec.migration_uid,
        database: target.database(),
        dump: &dump.object,
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
        dump.complete(&store).await
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
        dump.remove(&store).await;
        remove(&store, &[statistics_object]).await;
        return Err(failure);
    }
    let evidence = BackupEvidence {
        object: dump.object,
        statistics_object,
        bytes: dump.bytes,
        sha256: dump.sha256,
        format,
        archives: dump.archives,
        jobs: dumper.jobs(),
        pg_dump_version: version.text,
        finished_at: telemetry::now(),
    };
    let message = format!("{}; {} users", evidence.summary(), baseline.users);
    context.progress.update(|status| status.backup = Some(evidence));
    Ok(message)
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
