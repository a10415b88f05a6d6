//! Why a verb failed, and the program's exit codes.

use kube::config::KubeconfigError;

/// Exit code of the program. Each has one meaning for all verbs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done, without problems.
    Success = 0,
    /// Not done: no connection, no permission, no such object.
    Error = 1,
    /// The command line is wrong; set by clap.
    Usage = 2,
    /// Done, with problems found.
    ProblemsFound = 3,
    /// The verb does not fit the migration's state; nothing was done.
    InvalidState = 4,
    /// `watch --timeout` has passed.
    TimedOut = 5,
}

/// Why a verb failed.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    /// No usable kubeconfig.
    #[error("{0}; next: kubectl config get-contexts")]
    Kubeconfig(#[from] KubeconfigError),
    /// No kubeconfig, and not in a cluster.
    #[error("{0}")]
    Infer(#[from] kube::config::InferConfigError),
    /// The API server refused the request; its message names the rule.
    #[error("{}", short(.0))]
    Kube(#[from] kube::Error),
    /// The API server refused the request; the message has the next step.
    #[error("{0}")]
    Refused(String),
    /// The verb does not fit the migration's state.
    #[error("{0}")]
    InvalidState(String),
    /// The requested object does not exist.
    #[error("{0}")]
    NotFound(String),
    /// A file cannot be read.
    #[error("{0}: {1}")]
    File(String, std::io::Error),
    /// A file has unexpected content.
    #[error("{0}")]
    Content(String),
    /// The output cannot be written.
    #[error("cannot write the output: {0}")]
    Output(String),
}

impl PluginError {
    /// Exit code of the program.
    pub fn exit(&self) -> Exit {
        match self {
            PluginError::InvalidState(_) => Exit::InvalidState,
            PluginError::Kubeconfig(_)
            | PluginError::Infer(_)
            | PluginError::Kube(_)
            | PluginError::Refused(_)
            | PluginError::NotFound(_)
            | PluginError::File(..)
            | PluginError::Content(_)
            | PluginError::Output(_) => Exit::Error,
        }
    }
}

/// The message of the API server, without the rest of its response.
fn short(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => {
            // The cause of a failed connection is the last of the chain.
            let mut text = other.to_string();
            let mut source = std::error::Error::source(other);
            while let Some(cause) = source {
                let cause_text = cause.to_string();
                if !text.contains(&cause_text) {
                    text.push_str(&format!(": {cause_text}"));
                }
                source = cause.source();
            }
            text
        }
    }
}
