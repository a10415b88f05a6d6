//! Task `Preflight`: checks everything that later tasks need, and changes nothing that stays.
//!
//! Each finding has the observed value and, if it is wrong, the command that fixes it. All are made, so that a team
//! fixes everything in one go; what needs the database is left out if it cannot be reached. The first wrong finding
//! gives the task's reason.
//!
//! Called by the runner's dispatch. Imports `findings`, `code_backup` and `notify` of the tasks, `checks`, `database`,
//! `clients`, `context` and `failure` of the runner, `api` and `shared`.

mod checks;
mod clocks;
mod copy_place;
mod database;
mod invariants;
mod pooler;
mod transactions;

use std::time::Duration;

use futures::TryStreamExt;

use super::{code_backup, findings::Findings, notify};
use crate::{
    api::Reason,
    runner::{
        Failure,
        clients::{http_probe::Prober, object_store::StoreClient},
        context::TaskContext,
        database::connection::Target,
    },
    shared::sql,
};

/// How long a request to the store is tried: a person is waiting for the answer.
const PREFLIGHT_STORE_RETRY_TIMEOUT: Duration = Duration::from_secs(10);

/// Checks everything. Reports `findings`.
///
/// # Errors
/// The first finding that is wrong.
pub async fn run(context: &TaskContext<'_>) -> Result<String, Failure> {
    let mut findings = Findings::default();
    let target = context.settings.target();
    let client = match &target {
        // A standby is a finding of its own.
        Ok(target) => target.try_connect("preflight").await.map_err(|error| error.failure),
        Err(failure) => Err(failure.clone()),
    };
    let describe = |target: &Target| format!("{} as {}", target.host_port(), target.user());
    let connected = match (&target, &client) {
        (Ok(target), Ok(_)) => Ok(describe(target)),
        (_, Err(failure)) | (Err(failure), _) => Err(failure.clone()),
    };
    findings.add("database connection", connected);
    let client = client.ok();
    sql(context, client.as_ref(), &mut findings).await;
    if let (Some(client), Ok(target)) = (&client, &target) {
        findings.add("direct connection", pooler::check(target, client).await);
        database::check(context, target, client, &mut findings).await;
        copy_place::check(context, target, client, &mut findings).await;
        invariants::check(context, client, &mut findings).await;
        transactions::check(context, client, &mut findings).await;
        findings.add("clocks", clocks::check(client).await);
    }
    checks::check(context, client.as_ref(), &mut findings).await;
    store(context, &mut findings).await;
    if context.spec.plan.code.is_some() {
        findings.add("code repository", code_backup::check_access(context).await);
    }
    if let Some(probe) = &context.spec.plan.application.version_probe {
        let answer = match Prober::new() {
            Ok(prober) => prober.ready_to_switch(probe, &context.spec.plan.application.flag).await,
            Err(failure) => Err(failure),
        };
        findings.add_versions(answer);
    }
    notify::check(context, &mut findings);
    context.progress.update(|status| status.findings = findings.list().to_vec());
    findings.result()
}

/// Both SQL texts are what the controller saw, can be parsed, and hold nothing that cannot run.
async fn sql(context: &TaskContext<'_>, client: Option<&tokio_postgres::Client>, findings: &mut Findings) {
    let texts = match context.settings.sql() {
        Ok(texts) => texts,
        Err(failure) => {
            findings.add("SQL", Err(failure));
            return;
        }
    };
    let writes = context.spec.plan.rehearsal.writes.as_ref().map(|text| ("spec.rehearsal.writes", text));
    for (name, text) in [("up SQL", &texts.up), ("down SQL", &texts.down)].into_iter().chain(writes) {
        // The server's grammar decides; our parser finds what the server accepts and a migration must not contain.
        let server = match client {
            Some(client) => database::parse(client, name, text).await,
            None => Ok(false),
        };
        let read = match (server, sql::read(text)) {
            (Ok(_), Ok(statements)) => Ok(format!("{} statements", statements.len())),
            (server, Err(problems)) => match (problems.iter().find(|problem| !problem.doubtful), server) {
                (Some(problem), _) => Err(Failure::of_sql(name, problem)),
                (None, Err(failure)) => Err(failure),
                (None, Ok(true)) => Ok("accepted by the server's parser; runs as one statement".to_owned()),
                (None, Ok(false)) => Err(problems.first().map_or_else(
                    || Failure::new(Reason::SqlSyntaxError, format!("{name} cannot be parsed")),
                    |problem| Failure::of_sql(name, problem),
                )),
            },
            (Err(failure), Ok(_)) => Err(failure),
        };
        findings.add(name, read);
    }
}

/// The bucket can be written, read and cleaned.
async fn store(context: &TaskContext<'_>, findings: &mut Findings) {
    let keys = match context.settings.store_keys() {
        Ok(keys) => keys,
        Err(failure) => {
            findings.add("bucket", Err(failure));
            return;
        }
    };
    let tried = async {
        let store = StoreClient::open(&context.spec.plan.backup.store, &keys, PREFLIGHT_STORE_RETRY_TIMEOUT)?;
        let object = store.object(&format!("preflight_{}_{}", context.spec.migration_uid, context.spec.attempt));
        let data = context.spec.migration_uid.clone().into_bytes();
        store.put(&object, data.clone()).await?;
        let back = async { store.get(&object).await?.map_ok(|chunk| chunk.to_vec()).try_concat().await };
        let back = back.await;
        store.delete(&object).await?;
        if back? != data {
            return Err(Failure::new(
                Reason::StoreUnreachable,
                format!(
                    "{object} reads back as something else than was written; next: check spec.backup.store.endpoint"
                ),
            ));
        }
        Ok(format!("{} can be written, read and deleted", store.object("")))
    };
    findings.add("bucket", tried.await);
}
