//! How a task fails: a [`Reason`] that users can look up, and a message with observed value, limit and next command.

use crate::{api::Reason, shared::sql};

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
}
