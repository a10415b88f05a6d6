//! Reports to the run's own `MigrationRun`. A runner may read those of its namespace and the namespace itself, nothing
//! else, and write the status of its own run alone: the admission policy knows its pod by the token.
//!
//! # Contract
//! - A report of the end is repeated until the API server has taken it: a finished task whose end is not reported would
//!   be run again.
//! - A report in the middle is sent when it can be, and is part of the report of the end anyway.
//! - Only fields of the runner's own are written, by merge patch on the status subresource.
//! - A run that is gone takes no more reports: its task stops.

use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::{Map, Value, json};

use super::Progress;
use crate::{
    api::{MigrationRun, RunPhase, Time},
    runner::{Failure, clients::kubernetes},
    telemetry,
};

/// Longest wait between two attempts.
const MAX_REPORT_PAUSE: Duration = Duration::from_secs(10);
/// Longest message; a status is read on a screen.
const MAX_STATUS_MESSAGE: usize = 2000;

/// Name of the field manager of reports.
const MANAGER: &str = "credit-migration-runner";

/// Why further reports are useless.
#[derive(Debug, thiserror::Error)]
pub enum Unreported {
    /// The run was deleted.
    #[error("the MigrationRun is gone")]
    Gone,
    /// The API server refuses the report, and would again.
    #[error("the API server refuses the report: {0}")]
    Refused(String),
}

/// The run of this process.
#[derive(Clone)]
pub struct Reporter {
    api: Api<MigrationRun>,
    namespaces: Api<Namespace>,
    namespace: String,
    name: String,
    pod: String,
}

impl Reporter {
    /// Connects to the API server as the pod's service account (or by kubeconfig outside of a pod).
    ///
    /// # Errors
    /// `Internal` if there is no configuration.
    pub async fn new(namespace: &str, name: &str, pod: &str) -> Result<Self, Failure> {
        let client = kubernetes::client().await?;
        Ok(Self {
            api: Api::namespaced(client.clone(), namespace),
            namespaces: Api::all(client),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            pod: pod.to_owned(),
        })
    }

    /// The run as it is now, in one attempt. `None` if it is gone.
    ///
    /// # Errors
    /// As the client.
    pub async fn try_get(&self) -> kube::Result<Option<MigrationRun>> {
        self.api.get_opt(&self.name).await
    }

    /// Whether the namespace is being deleted, in one attempt.
    ///
    /// # Errors
    /// As the client.
    pub async fn namespace_ends(&self) -> kube::Result<bool> {
        let namespace = self.namespaces.get(&self.namespace).await?;
        let phase = namespace.status.and_then(|status| status.phase);
        Ok(namespace.metadata.deletion_timestamp.is_some() || phase.as_deref() == Some("Terminating"))
    }

    /// The run, tried until the API server answers. `None` if it is gone.
    pub async fn get(&self) -> Option<MigrationRun> {
        let mut pause = Duration::from_millis(200);
        loop {
            match self.try_get().await {
                Ok(found) => return found,
                Err(error) => tracing::warn!(%error, "the MigrationRun cannot be read, retrying"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(MAX_REPORT_PAUSE);
        }
    }

    /// One attempt to write `fields` into the status.
    ///
    /// # Errors
    /// As the client.
    pub async fn patch_once(&self, fields: &Map<String, Value>) -> kube::Result<()> {
        let mut fields = fields.clone();
        fields.insert("pod".into(), json!(self.pod));
        let patch = Patch::Merge(json!({ "status": fields }));
        self.api
            .patch_status(
                &self.name,
                &PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() },
                &patch,
            )
            .await
            .map(|_| ())
    }

    /// Writes `fields` into the status, tried until the API server has taken them.
    ///
    /// # Errors
    /// [`Unreported`]: a retry cannot help.
    pub async fn patch(&self, fields: &Map<String, Value>) -> Result<(), Unreported> {
        let mut pause = Duration::from_millis(200);
        loop {
            match self.patch_once(fields).await {
                Ok(()) => return Ok(()),
                Err(kube::Error::Api(status)) if status.code == 404 => return Err(Unreported::Gone),
                // An invalid object stays invalid; 401 and 403 may pass when tokens or bindings are renewed.
                Err(kube::Error::Api(status)) if [400, 413, 415, 422].contains(&status.code) => {
                    return Err(Unreported::Refused(status.message.clone()));
                }
                Err(error) => tracing::warn!(%error, "the report did not get through, retrying"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(MAX_REPORT_PAUSE);
        }
    }

    /// Reports that the task has started.
    ///
    /// # Errors
    /// [`Unreported`].
    pub(super) async fn started(&self, at: Time) -> Result<(), Unreported> {
        self.patch(&object(json!({ "phase": RunPhase::Running, "startedAt": at, "reason": null, "message": null })))
            .await
    }

    /// Reports the end, with all that was noted on the way.
    ///
    /// # Errors
    /// [`Unreported`].
    pub(super) async fn finished(
        &self,
        result: &Result<String, Failure>,
        progress: &Progress,
    ) -> Result<(), Unreported> {
        let mut fields = progress.fields();
        fields.extend(end_of(result, telemetry::now()));
        self.patch(&fields).await
    }
}

/// The fields that report the end.
fn end_of(result: &Result<String, Failure>, at: Time) -> Map<String, Value> {
    object(match result {
        Ok(message) => {
            json!({ "phase": RunPhase::Succeeded, "finishedAt": at, "reason": null, "message": short(message) })
        }
        Err(failure) => json!({
            "phase": RunPhase::Failed, "finishedAt": at, "reason": failure.reason, "message": short(&failure.message),
        }),
    })
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

/// At most [`MAX_STATUS_MESSAGE`] characters.
fn short(message: &str) -> String {
    match message.char_indices().nth(MAX_STATUS_MESSAGE) {
        None => message.to_owned(),
        Some((end, _)) => format!("{}…", message.get(..end).unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Reason;

    #[test]
    fn the_end_says_why() {
        let failure = Failure::new(Reason::BucketMissing, "x".repeat(3000));
        let fields = end_of(&Err(failure), Time::UNIX_EPOCH);
        assert_eq!((&fields["phase"], &fields["reason"]), (&json!("Failed"), &json!("BucketMissing")));
        assert_eq!(fields["message"].as_str().unwrap().chars().count(), MAX_STATUS_MESSAGE + 1);
        let fields = end_of(&Ok("done".into()), Time::UNIX_EPOCH);
        assert_eq!(fields["phase"], json!("Succeeded"));
        assert!(fields["reason"].is_null());
    }
}
