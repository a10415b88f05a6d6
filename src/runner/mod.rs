//! What runs in Jobs: it holds the secrets, does the work, and reports to its own `MigrationRun`.
//!
//! ```text
//!  main ─> run ─> get MigrationRun ─> phase ended already? ─> exit 0       (a program may be started twice)
//!                      │
//!                      ├─ phase Running, startedAt, pod
//!                      ├─ dispatch by spec.task ── Progress ──> status, in the middle
//!                      └─ phase Succeeded or Failed, reason, message; repeated until the API server has it
//! ```
//!
//! # Folders
//! Called by `main`. Imports `api`, `shared` and `telemetry`. Inside, `tasks` imports `checks`, `database`, `clients`
//! and `report`; `checks` imports `database`, `clients` and `report`; `database` and `report` import `clients`.
//! `failure` is for all of them, `settings` and `context` are for `tasks` and `checks`.
//!
//! Called by the program's subcommand `runner`. Imports `api`, `shared` and `telemetry`.
//!
//! # Exit code
//! 0 if the run's status has the end, also a failed one: the status is the truth, not the Job. Other than 0 if the
//! process ended without a report: then the end of its pod is the only sign.

pub mod checks;
pub mod clients;
pub mod context;
pub mod database;
mod failure;
pub mod report;
pub mod settings;
pub mod tasks;

use std::{process::ExitCode, time::Duration};

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

pub use failure::Failure;
pub(crate) use failure::UnlessLost;

use self::{
    clients::pg_tools::Tools,
    context::TaskContext,
    report::{Progress, Reporter, StatusReporting, Unreported, order_cache::OrderCache},
    settings::Settings,
    tasks::{
        backup, cleanup, code_backup, drop_parked, export_key_users, follow_up, notify, preflight, rehearse,
        rehearse_rollback, validate, verify_backup, window::api_channel,
    },
};
use crate::{
    api::{CheckResult, Direction, MigrationRun, OnSigterm, RunPhase, Task, mounts},
    telemetry,
};

/// How long a restarted window task waits for the API server before it goes on from what it kept.
const API_SERVER_WAIT: Duration = Duration::from_secs(3);

/// Exit code of a process that ended without reporting how.
const EXIT_UNREPORTED: u8 = 1;

/// Carries out the task of this pod's `MigrationRun`.
pub async fn run() -> ExitCode {
    // More than one TLS library asks for the process's default; without one each would panic.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let env = |name: &str| std::env::var(name).unwrap_or_default();
    let span = telemetry::task_span(&env(mounts::ENV_NAMESPACE), &env(mounts::ENV_RUN));
    async {
        let stop = CancellationToken::new();
        match signal(SignalKind::terminate()) {
            Ok(mut signal) => {
                let stop = stop.clone();
                let terminated = async move {
                    signal.recv().await;
                    tracing::info!("received SIGTERM");
                    stop.cancel();
                };
                tokio::spawn(terminated.in_current_span());
            }
            Err(error) => tracing::warn!(%error, "SIGTERM cannot be listened for"),
        }
        match carry_out(&stop).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                tracing::error!(error, "the run does not show how the task ended");
                ExitCode::from(EXIT_UNREPORTED)
            }
        }
    }
    .instrument(span)
    .await
}

/// Loads the run, carries out its task, reports how it ended.
///
/// # Errors
/// Why the run's status does not say how the task ended.
async fn carry_out(stop: &CancellationToken) -> Result<(), String> {
    let env = |name: &str| std::env::var(name).map_err(|_| format!("environment variable {name} is missing"));
    let (name, namespace) = (env(mounts::ENV_RUN)?, env(mounts::ENV_NAMESPACE)?);
    let pod = std::env::var(mounts::ENV_POD).unwrap_or_default();
    let reporter = Reporter::new(&namespace, &name, &pod).await.map_err(|e| e.message)?;
    let cache = OrderCache::in_temporary_folder(&name);
    let run = match load_run(&reporter, &cache, stop).await {
        Loaded::Run(run) => *run,
        Loaded::Finished(phase) => {
            tracing::info!(%phase, "the task has ended before; nothing is done");
            return Ok(());
        }
        Loaded::Gone => return gone(),
        Loaded::Terminated => return Err("received SIGTERM before the task was known".to_owned()),
    };
    telemetry::record_task(&run.spec.migration, run.spec.task, run.spec.attempt);
    tracing::info!("start");
    match report_task(&run, &namespace, &reporter, cache, stop).await {
        Ok(TaskEnd::Reported) => Ok(()),
        Ok(TaskEnd::Terminated) if run.spec.task.spec().on_sigterm == OnSigterm::Ends => Ok(()),
        Ok(TaskEnd::Terminated) => Err("received SIGTERM before the task finished".to_owned()),
        Err(Unreported::Gone) => gone(),
        Err(error) => Err(error.to_string()),
    }
}

fn gone() -> Result<(), String> {
    tracing::warn!("the MigrationRun is gone; nothing is left to do");
    Ok(())
}

/// What is known of the run at the start of its process.
enum Loaded {
    /// The run, whose task is to be carried out.
    Run(Box<MigrationRun>),
    /// Its task has ended before, as another process of it reported.
    Finished(RunPhase),
    /// The run was deleted.
    Gone,
    /// The process received SIGTERM before the task was known.
    Terminated,
}

/// Reads the run: from the API server, or from the order cache of a window's earlier container.
async fn load_run(reporter: &Reporter, cache: &OrderCache, stop: &CancellationToken) -> Loaded {
    let run = tokio::select! {
        run = reporter.get() => run.or_else(|| cache.read()),
        // A window's container that was restarted while the API server is away: the database and the deadline do not
        // wait.
        Some(run) = cache.read_after(API_SERVER_WAIT) => Some(run),
        // A window's restarted container: writes may be blocked, and it must find out whether another pod will come.
        () = stop.cancelled() => match cache.read() {
            Some(run) => Some(run),
            None => return Loaded::Terminated,
        },
    };
    let Some(run) = run else { return Loaded::Gone };
    if run.spec.task.is_window() {
        cache.write(&run);
    }
    match run.status.as_ref().map(|status| status.phase) {
        Some(phase) if phase.has_ended() => Loaded::Finished(phase),
        _ => Loaded::Run(Box::new(run)),
    }
}

/// How a task ended, as far as the API server is concerned.
enum TaskEnd {
    /// Its end was reported.
    Reported,
    /// The process received SIGTERM; nothing is reported, since another process of the run may go on.
    Terminated,
}

/// Carries out the task between the report of its start and that of its end.
///
/// # Errors
/// [`Unreported`].
async fn report_task(
    run: &MigrationRun,
    namespace: &str,
    reporter: &Reporter,
    cache: OrderCache,
    stop: &CancellationToken,
) -> Result<TaskEnd, Unreported> {
    let status = run.status.clone().unwrap_or_default();
    let progress = Progress::default();
    let started = status.started_at.unwrap_or_else(telemetry::now);
    let reporting = if run.spec.task.is_window() {
        // A window waits for no report; a run that is gone is handled by the window itself.
        StatusReporting::new_in_background(reporter, &progress, started)
    } else {
        StatusReporting::new(reporter, &progress, started).await?
    };
    let root = std::env::var(mounts::ENV_ROOT).unwrap_or_else(|_| mounts::ROOT.to_owned());
    let context = TaskContext {
        spec: &run.spec,
        settings: Settings::new(root, &run.spec, namespace),
        tools: Tools::in_path(),
        progress,
        stop: stop.clone(),
    };
    let result = execute_task(&context, &status.checks, reporter, cache).await;
    if stop.is_cancelled() {
        reporting.abandon().await;
        return Ok(TaskEnd::Terminated);
    }
    match &result {
        Ok(message) => tracing::info!(detail = message, "succeeded"),
        Err(failure) => tracing::error!(reason = %failure.reason, error = %failure, "failed"),
    }
    reporting.finish(&result).await?;
    Ok(TaskEnd::Reported)
}

/// Carries out the task. `before` is what an earlier process of the run reported of its checks.
///
/// # Errors
/// Those of the task.
async fn execute_task(
    context: &TaskContext<'_>,
    before: &[CheckResult],
    reporter: &Reporter,
    cache: OrderCache,
) -> Result<String, Failure> {
    let task = async {
        match context.spec.task {
            Task::Preflight => preflight::run(context).await,
            Task::CodeBackup => code_backup::run(context).await,
            Task::Backup => backup::run(context).await,
            Task::VerifyBackup => verify_backup::run(context).await,
            Task::ExportKeyUsers => export_key_users::run(context).await,
            Task::Rehearse => rehearse::run(context).await,
            Task::Window => api_channel::run(context, reporter, cache, Direction::Forward).await,
            Task::RollbackWindow => api_channel::run(context, reporter, cache, Direction::Rollback).await,
            Task::Validate | Task::Monitor => validate::run(context, before).await,
            Task::DayCheck | Task::WeekReview => follow_up::run(context, before).await,
            Task::RehearseRollback => rehearse_rollback::run(context).await,
            Task::Notify => notify::run(context).await,
            Task::Cleanup => cleanup::run(context).await,
            Task::DropParked => drop_parked::run(context).await,
        }
    };
    match context.spec.task.spec().on_sigterm {
        OnSigterm::CutOff => tokio::select! {
            result = task => result,
            () = context.stop.cancelled() => Err(Failure::terminated()),
        },
        OnSigterm::Handled | OnSigterm::Ends => task.await,
    }
}
