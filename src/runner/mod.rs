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
//! # Exit code
//! 0 if the run's status tells the end, also a failed one: the status is the truth, not the Job. Other than 0 if the
//! process ended without having told: then its pod's end is the only sign.

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

pub use failure::Failure;
pub(crate) use failure::UnlessLost;

use self::{
    clients::{http_probe::Prober, pg_tools::Tools},
    context::TaskContext,
    report::{Progress, Reporter, Unreported, order_cache::OrderCache},
    settings::Settings,
    tasks::{
        backup, cleanup, code_backup, export_key_users, follow_up,
        notify::{self, Alarm},
        preflight, rehearse, verify_backup,
        window::{
            self, WindowPlan,
            api_channel::{ApiChannel, order_of},
        },
    },
};
use crate::{
    api::{CheckResult, Direction, MigrationRun, MigrationRunStatus, Reason, RunPhase, Task, WindowState, mounts},
    telemetry,
};

/// How often a window task asks for orders.
const POLL: Duration = Duration::from_millis(250);

/// How long a restarted window task waits for the API server before it goes on from what it kept.
const API_PATIENCE: Duration = Duration::from_secs(3);

/// Exit code of a process that ended without having told how.
const NOT_TOLD: u8 = 1;

/// Carries out the task of this pod's `MigrationRun`.
pub async fn run() -> ExitCode {
    // More than one TLS library asks for the process's default; without one each would panic.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let stop = CancellationToken::new();
    match signal(SignalKind::terminate()) {
        Ok(mut signal) => {
            let stop = stop.clone();
            tokio::spawn(async move {
                signal.recv().await;
                tracing::info!("told to end");
                stop.cancel();
            });
        }
        Err(error) => tracing::warn!(%error, "SIGTERM cannot be listened for"),
    }
    match carry_out(&stop).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::from(NOT_TOLD)
        }
    }
}

/// # Errors
/// Why the run's status does not tell how the task ended.
async fn carry_out(stop: &CancellationToken) -> Result<(), String> {
    let env = |name: &str| std::env::var(name).map_err(|_| format!("environment variable {name} is missing"));
    let (name, namespace) = (env(mounts::ENV_RUN)?, env(mounts::ENV_NAMESPACE)?);
    let pod = std::env::var(mounts::ENV_POD).unwrap_or_default();
    let reporter = Reporter::new(&namespace, &name, &pod).await.map_err(|e| e.message)?;
    let cache = OrderCache::in_temporary_folder(&name);
    let run = tokio::select! {
        run = reporter.get() => run.or_else(|| cache.read()),
        // A window's container that was restarted while the API server is away: the database and the deadline do not wait.
        Some(run) = cache.read_after(API_PATIENCE) => Some(run),
        // A window's restarted container: writes may be blocked, and it must find out whether another pod will come.
        () = stop.cancelled() => match cache.read() {
            Some(run) => Some(run),
            None => return Err("told to end before the task was known".to_owned()),
        },
    };
    let Some(run) = run else { return gone() };
    let in_window = matches!(run.spec.task, Task::Window | Task::RollbackWindow);
    if in_window {
        cache.write(&run);
    }
    let status = run.status.clone().unwrap_or_default();
    if matches!(status.phase, RunPhase::Succeeded | RunPhase::Failed) {
        tracing::info!(phase = ?status.phase, "the task has ended before; nothing is done");
        return Ok(());
    }
    tracing::info!(run = name, task = ?run.spec.task, attempt = run.spec.attempt, "begin");
    let progress = Progress::default();
    let outcome = async {
        let started = status.started_at.unwrap_or_else(telemetry::now);
        let beside = if in_window {
            // Beside the window, which waits for nobody; a run that is gone is the window's own business.
            let reporter = reporter.clone();
            Some(tokio::spawn(async move { reporter.started(started).await }))
        } else {
            reporter.started(started).await?;
            None
        };
        let following = reporter.follow(&progress);
        let result = dispatch(&run, &namespace, &status, &reporter, cache, &progress, stop).await;
        // One that is still in mid-request could overwrite the end with what was before it.
        following.abort();
        let _ = following.await;
        if let Some(started) = beside {
            started.abort();
            let _ = started.await;
        }
        if stop.is_cancelled() {
            return Ok(None);
        }
        match &result {
            Ok(message) => tracing::info!("succeeded: {message}"),
            Err(failure) => tracing::error!(reason = %failure.reason, "failed: {}", failure.message),
        }
        reporter.finished(&result, &progress).await?;
        Ok::<_, Unreported>(Some(()))
    };
    match outcome.await {
        Ok(Some(())) => Ok(()),
        // Checks run until they are told to end: that is how they end.
        Ok(None) if matches!(run.spec.task, Task::Validate | Task::Monitor) => Ok(()),
        Ok(None) => Err("told to end before the task was done".to_owned()),
        Err(Unreported::Gone) => gone(),
        Err(error) => Err(error.to_string()),
    }
}

fn gone() -> Result<(), String> {
    tracing::warn!("the MigrationRun is gone; nothing is left to do");
    Ok(())
}

async fn dispatch(
    run: &MigrationRun,
    namespace: &str,
    status: &MigrationRunStatus,
    reporter: &Reporter,
    cache: OrderCache,
    progress: &Progress,
    stop: &CancellationToken,
) -> Result<String, Failure> {
    let spec = &run.spec;
    let root = std::env::var(mounts::ENV_ROOT).unwrap_or_else(|_| mounts::ROOT.to_owned());
    let context = TaskContext {
        spec,
        settings: Settings::new(root, spec, namespace),
        tools: Tools::in_path(),
        progress: progress.clone(),
        stop: stop.clone(),
    };
    match spec.task {
        Task::Preflight => stoppable(stop, preflight::run(&context)).await,
        Task::CodeBackup => code_backup::run(&context).await,
        Task::Backup => backup::run(&context).await,
        Task::VerifyBackup => verify_backup::run(&context).await,
        Task::ExportKeyUsers => export_key_users::run(&context).await,
        Task::Rehearse => rehearse::run(&context).await,
        Task::Window => window(&context, reporter, cache, Direction::Forward).await,
        Task::RollbackWindow => window(&context, reporter, cache, Direction::Rollback).await,
        Task::Validate | Task::Monitor => checks(&context, &spec.plan.checks_of(spec.task), &status.checks).await,
        Task::DayCheck | Task::WeekReview => follow_up::run(&context, &status.checks).await,
        Task::Notify => stoppable(stop, notify::run(&context)).await,
        Task::Cleanup => stoppable(stop, cleanup::run(&context)).await,
    }
}

/// For tasks that leave nothing behind when they are cut off, or whose next process goes on where they were.
async fn stoppable(
    stop: &CancellationToken,
    task: impl Future<Output = Result<String, Failure>>,
) -> Result<String, Failure> {
    tokio::select! {
        result = task => result,
        () = stop.cancelled() => Err(Failure::terminated()),
    }
}

async fn checks(
    context: &TaskContext<'_>,
    checks: &[crate::api::Check],
    before: &[CheckResult],
) -> Result<String, Failure> {
    checks::watch(context, checks, before, &context.stop).await?;
    Ok("ended by the controller".to_owned())
}

async fn window(
    context: &TaskContext<'_>,
    reporter: &Reporter,
    cache: OrderCache,
    direction: Direction,
) -> Result<String, Failure> {
    let target = context.settings.target()?;
    let sql = rehearse::mounted_sql(context);
    let order = order_of(&context.spec.window);
    let plan = WindowPlan {
        control_spec: context.control_spec(),
        direction,
        attempt: context.spec.attempt,
        up: sql.up,
        down: sql.down,
        inputs: context.spec.inputs.clone(),
        order: order.clone(),
        poll: POLL,
    };
    let (probe, alarm) = (context.spec.plan.application.version_probe.clone(), Alarm::new(context, notify::GRACE));
    let channel = ApiChannel::new(reporter.clone(), Prober::new()?, probe, alarm, cache, order);
    let outcome = window::run(&channel, &target, &plan, &context.stop).await;
    let handed_over = outcome.failure.as_ref().is_some_and(|failure| failure.reason == Reason::PodFailed);
    if outcome.progress.state == WindowState::Held && !handed_over {
        // The report of the end would end the process, within the grace in which nobody is told yet.
        tokio::select! {
            () = channel.until_acknowledged(POLL, notify::GRACE + notify::TIMEOUT) => {}
            () = context.stop.cancelled() => {}
        }
        if context.stop.is_cancelled() {
            // No pod comes after this one. In all other cases the process lives on until its end was reported.
            channel.into_alarm().settle(notify::TIMEOUT).await;
        }
    }
    context.progress.update(|status| status.window = Some(outcome.progress.clone()));
    match outcome.failure {
        None => Ok(format!("window ended: {:?}", outcome.progress.state)),
        Some(failure) => Err(failure),
    }
}

/// A task that ended without a reason of its own: a defect.
impl From<Unreported> for Failure {
    fn from(error: Unreported) -> Self {
        Failure::new(Reason::Internal, error.to_string())
    }
}
