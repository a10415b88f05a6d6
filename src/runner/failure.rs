//! How a task fails: a [`Reason`] that users can look up, and a message with observed value, limit and next command.

use crate::{
    api::Reason,
    shared::{message::Message, sql},
};

/// Why a task ended without success. The message never holds a secret or a row of a table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct Failure {
    /// Class of the failure.
    pub reason: Reason,
    /// Observed value, limit, next command.
    pub message: String,
}

impl Failure {
    /// A failure with its reason and message.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }

    /// A problem of a SQL text; `name` says which text it is.
    pub fn of_sql(name: &str, problem: &sql::Problem) -> Self {
        Self::new(problem.kind.into(), format!("{name}, line {}: {}", problem.line, problem.message))
    }

    /// The end of a task whose process received SIGTERM.
    pub(in crate::runner) fn terminated() -> Self {
        Self::new(Reason::PodFailed, "the pod received SIGTERM before the task finished")
    }

    /// Whether the connection to the database was lost or could not be made: another session may succeed.
    pub fn is_connection_lost(&self) -> bool {
        matches!(self.reason, Reason::ConnectionLost | Reason::HostUnreachable)
    }
}

/// What a failure says. Its message is kept as it crosses the API, and read back as there.
impl From<Failure> for Message {
    fn from(failure: Failure) -> Self {
        Self::parse(&failure.message)
    }
}

/// Separates a lost connection, which only another session recovers from, from every other failure.
pub(crate) trait UnlessLost<T> {
    /// The outer error is a lost connection, for `?`; the inner result is for the caller to handle.
    ///
    /// # Errors
    /// Those of [`Failure::is_connection_lost`].
    fn unless_lost(self) -> Result<Result<T, Failure>, Failure>;
}

impl<T> UnlessLost<T> for Result<T, Failure> {
    fn unless_lost(self) -> Result<Result<T, Failure>, Failure> {
        match self {
            Err(failure) if failure.is_connection_lost() => Err(failure),
            result => Ok(result),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_lost_connection_is_carried_past_the_caller() {
        for (reason, lost) in
            [(Reason::ConnectionLost, true), (Reason::HostUnreachable, true), (Reason::LockTimeout, false)]
        {
            assert_eq!(Err::<(), _>(Failure::new(reason, "")).unless_lost().is_err(), lost, "{reason}");
        }
        assert_eq!(Ok(1).unless_lost(), Ok(Ok(1)));
    }
}
