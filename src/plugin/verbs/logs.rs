//! `logs`: prints the logs of a migration's pods.

use std::{io::Write as _, str::FromStr};

use clap_complete::{CompletionCandidate, engine::ArgValueCandidates};
use futures::{AsyncBufReadExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt,
    api::{ListParams, LogParams},
};

use super::completion;
use crate::{
    api::{CHECK_LABEL, MIGRATION_LABEL, TASK_LABEL, Task, UID_LABEL},
    plugin::{PluginError, connection::ClusterConnection, output::Output},
};

pub(crate) const EXAMPLES: &str = "\
Tasks: preflight, code, backup, verify, keyusers, rehearse, window, validate, monitor, day, week, rollback, dryrun,
notify, cleanup, drop; or the names in `kubectl get cmrun`.

Examples:
  kubectl creditmigration logs simplify-credits
  kubectl creditmigration logs simplify-credits --task window -f";

/// Label with the name of a pod's Job, which is that of its run.
const JOB_LABEL: &str = "batch.kubernetes.io/job-name";

/// Whose logs to print.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Name of the CreditMigration.
    #[arg(add = completion::names())]
    name: String,
    /// Task; the one of the newest run when absent.
    #[arg(long, value_name = "TASK", add = tasks())]
    task: Option<TaskName>,
    /// Continue until the pod ends.
    #[arg(short, long)]
    follow: bool,
}

/// A task by its name or by its part of runs' names.
#[derive(Clone, Copy, Debug)]
struct TaskName(Task);

fn tasks() -> ArgValueCandidates {
    ArgValueCandidates::new(|| Task::ALL.iter().map(|t| CompletionCandidate::new(t.slug())).collect())
}

impl FromStr for TaskName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is = |t: &&Task| t.slug() == text || t.as_str().eq_ignore_ascii_case(text);
        Task::ALL.iter().find(is).copied().map(TaskName).ok_or_else(|| {
            let all: Vec<&str> = Task::ALL.iter().map(|t| t.slug()).collect();
            format!("no task; those are {}", all.join(", "))
        })
    }
}

/// Prints the logs.
pub(crate) async fn run(connection: &ClusterConnection, args: &Args) -> Result<Output, PluginError> {
    let uid = connection.migration(&args.name).await?.uid().unwrap_or_default();
    let task = args.task.map(|t| format!(",{TASK_LABEL}={}", t.0.slug())).unwrap_or_default();
    // Pods of a `job` check belong to the team.
    let labels = format!("{MIGRATION_LABEL}={},{UID_LABEL}={uid}{task},!{CHECK_LABEL}", args.name);
    let api: Api<Pod> = connection.api();
    let pods = newest_run(api.list(&ListParams::default().labels(&labels)).await?.items);
    if pods.is_empty() {
        return Err(PluginError::NotFound(format!(
            "no pod of {}{}; next: kubectl -n {} get cmrun,jobs -l {MIGRATION_LABEL}={0}",
            args.name,
            args.task.map(|t| format!(" for task {}", t.0.slug())).unwrap_or_default(),
            connection.namespace
        )));
    }
    let last = pods.len() - 1;
    for (i, pod) in pods.iter().enumerate() {
        let name = pod.name_any();
        // On standard error: standard output has the log only.
        eprintln!("==> pod/{name}");
        let params =
            LogParams { container: Some("runner".into()), follow: args.follow && i == last, ..Default::default() };
        let mut lines = api.log_stream(&name, &params).await?.lines();
        while let Some(line) = lines.try_next().await.map_err(|e| PluginError::Output(e.to_string()))? {
            if writeln!(std::io::stdout(), "{line}").is_err() {
                // The reader has ended.
                return Ok(Output::success(""));
            }
        }
    }
    Ok(Output::success(""))
}

/// Pods of the newest run, oldest first.
fn newest_run(mut pods: Vec<Pod>) -> Vec<Pod> {
    pods.sort_by_key(|p| (p.metadata.creation_timestamp.as_ref().map(|t| t.0), p.name_any()));
    let job = |p: &Pod| p.labels().get(JOB_LABEL).cloned();
    let Some(newest) = pods.last().map(job) else { return pods };
    pods.retain(|p| job(p) == newest);
    pods
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_newest_run_with_all_of_its_pods() {
        let pod = |name: &str, job: &str, at: &str| -> Pod {
            serde_json::from_value(
                json!({"metadata": {"name": name, "labels": {JOB_LABEL: job}, "creationTimestamp": at}}),
            )
            .unwrap()
        };
        let pods = vec![
            pod("w-b", "m-window-2", "2030-01-01T00:02:00Z"),
            pod("v", "m-verify-1", "2030-01-01T00:00:00Z"),
            pod("w-a", "m-window-2", "2030-01-01T00:01:00Z"),
        ];
        let names: Vec<String> = newest_run(pods).iter().map(ResourceExt::name_any).collect();
        assert_eq!(names, ["w-a", "w-b"]);
        assert!(newest_run(vec![]).is_empty());
    }

    #[test]
    fn tasks_have_two_names() {
        for task in Task::ALL.iter().copied() {
            for name in [task.slug().to_owned(), task.to_string()] {
                assert_eq!(name.parse::<TaskName>().unwrap().0, task);
            }
            assert!(EXAMPLES.contains(task.slug()), "{task:?}");
        }
        assert!("x".parse::<TaskName>().unwrap_err().contains("keyusers"));
    }
}
