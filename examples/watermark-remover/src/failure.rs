//! What can go wrong with a request, and what the caller gets.

use std::error::Error as _;

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;
use tokio_postgres::error::SqlState;

/// The reason why a request was not carried out.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum Failure {
    #[error("{0}")]
    BadRequest(&'static str),
    #[error("unknown email, password or token")]
    Unauthorized,
    #[error("not enough credits")]
    NotEnough { balance: i64 },
    /// The database refuses writes (SQLSTATE 25006): by its read-only default, or by a trigger on the table.
    #[error("writes are paused")]
    Paused,
    /// The session was terminated or its connection broke; the same work may succeed on another.
    #[error("the session with the database was lost")]
    SessionLost(#[source] tokio_postgres::Error),
    /// The session was lost at COMMIT, and the server can't be asked: the change may have been made, and must not be
    /// repeated.
    #[error("the session was lost at the commit; check the balance before you retry")]
    CommitUnknown(#[source] tokio_postgres::Error),
    #[error("no connection to the database")]
    NoConnection(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the database refused the statement")]
    Database(#[source] tokio_postgres::Error),
    #[error("the payment provider refused the charge")]
    PaymentRefused,
    /// `V2_FAILURE_RATE`, or `V2_FAULTS` with `login`
    #[error("v2 fails on purpose")]
    Injected,
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        let lost = [SqlState::ADMIN_SHUTDOWN, SqlState::CRASH_SHUTDOWN, SqlState::CANNOT_CONNECT_NOW];
        match error.code() {
            Some(code) if *code == SqlState::READ_ONLY_SQL_TRANSACTION => Self::Paused,
            Some(code) if lost.contains(code) => Self::SessionLost(error),
            Some(_) => Self::Database(error),
            None if error.is_closed() || error.source().is_some_and(|cause| cause.is::<std::io::Error>()) => {
                Self::SessionLost(error)
            }
            None => Self::Database(error),
        }
    }
}

impl Failure {
    /// Whether a statement named a table or column that the schema doesn't have (42P01, 42703).
    pub fn is_other_schema(&self) -> bool {
        let Self::Database(error) = self else { return false };
        error.code().is_some_and(|code| *code == SqlState::UNDEFINED_TABLE || *code == SqlState::UNDEFINED_COLUMN)
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::NotEnough { .. } => StatusCode::PAYMENT_REQUIRED,
            Self::PaymentRefused => StatusCode::BAD_GATEWAY,
            Self::Paused | Self::NoConnection(_) | Self::SessionLost(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::CommitUnknown(_) | Self::Database(_) | Self::Injected => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = self.status();
        // Paused writes are what a migration's window is: no error, and there are many of them.
        if status.is_server_error() && !matches!(self, Self::Paused) {
            tracing::error!(error = %self, cause = causes(&self));
        }
        let mut body = json!({ "error": self.to_string() });
        if let Self::NotEnough { balance } = self {
            body["balance"] = balance.into();
        }
        let mut response = (status, Json(body)).into_response();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

fn causes(error: &dyn std::error::Error) -> String {
    let (mut text, mut cause) = (Vec::new(), error.source());
    while let Some(error) = cause {
        text.push(error.to_string());
        cause = error.source();
    }
    text.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paused_writes_are_a_503_with_retry_after() {
        let response = Failure::Paused.into_response();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()[header::RETRY_AFTER], "1");
    }
}
