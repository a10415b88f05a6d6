//! What keeps a verb from being carried out, and the program's exit codes.

use kube::config::KubeconfigError;

/// Exit code of the program. Each has one meaning for all verbs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done, and all is as it should be.
    Success = 0,
    /// It could not be done: no connection, no right, no such object.
    Error = 1,
    /// The command line is wrong; clap's own.
    Usage = 2,
    /// Done, and something is not as it should be.
    ProblemsFound = 3,
    /// The verb does not fit the migration's state; nothing was done.
    InvalidState = 4,
    /// `watch --timeout` is over.
    TimedOut = 5,
}

/// What keeps a verb from being carried out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No usable kubeconfig.
    #[error("{0}; next: kubectl config get-contexts")]
    Kubeconfig(#[from] KubeconfigError),
    /// Not in a cluster either.
    #[error("{0}")]
    Infer(#[from] kube::config::InferConfigError),
    /// The API server refused; its message names the rule.
    #[error("{}", short(.0))]
    Kube(#[from] kube::Error),
    /// The API server refused, and there is more to say.
    #[error("{0}")]
    Refused(String),
    /// The verb does not fit the migration's state.
    #[error("{0}")]
    InvalidState(String),
    /// What is asked for is not there.
    #[error("{0}")]
    NotFound(String),
    /// A file cannot be read.
    #[error("{0}: {1}")]
    File(String, std::io::Error),
    /// A file holds something else than it should.
    #[error("{0}")]
    Content(String),
    /// The answer cannot be written.
    #[error("cannot write the answer: {0}")]
    Output(String),
}

impl Error {
    /// Exit code of the program.
    pub fn exit(&self) -> Exit {
        match self {
            Error::InvalidState(_) => Exit::InvalidState,
            Error::Kubeconfig(_)
            | Error::Infer(_)
            | Error::Kube(_)
            | Error::Refused(_)
            | Error::NotFound(_)
            | Error::File(..)
            | Error::Content(_)
            | Error::Output(_) => Exit::Error,
        }
    }
}

/// What the API server says, without the whole of its answer.
fn short(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => {
            // The cause of a failed connection stands at the end of the chain.
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
