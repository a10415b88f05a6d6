//! What an error of a running session means, and what may be repeated of the server's message.
//!
//! The server writes in a language of its own, with the quotes of that language. So what is left out is decided by the
//! SQLSTATE, by the server's function that reports it, and by the names in its context: never by words.

use tokio_postgres::error::DbError;

use super::connect_error::root_cause;
use crate::{api::Reason, runner::Failure};

/// Functions of the server that report what PL/pgSQL code says: `RAISE`, whatever its SQLSTATE, and `ASSERT`.
const RAISING: [&str; 2] = ["exec_stmt_raise", "exec_stmt_assert"];

/// The server's message. One of class 22 (data exception) quotes the value, which may be a person's: then it is the
/// name of the condition. What a trigger or function of the application raises may hold anything: it is left out.
fn message(error: &DbError) -> String {
    let routine = error.routine();
    let raised = error.code().code() == "P0001" || routine.is_some_and(|routine| RAISING.contains(&routine));
    if raised && !is_own_raise(error.where_()) {
        return "a function or trigger raised an exception, whose text may hold personal data: see the server's log"
            .to_owned();
    }
    match error.code().code() {
        _ if raised => error.message().to_owned(),
        // The parser says where; what fails at run time is a value, such as a tsquery.
        "42601" if error.position().is_none() => reported_by("syntax error", routine),
        code => safe(code, error.message(), routine),
    }
}

fn reported_by(what: &str, routine: Option<&str>) -> String {
    format!("{what}, reported by {}", routine.unwrap_or("the server"))
}

/// Whether the exception comes from a `DO` block itself, which is part of the SQL, or from the control schema. The
/// first line of the context is the innermost function. It has the name `inline_code_block` for a `DO` block, and a
/// signature with parentheses for any other.
fn is_own_raise(context: Option<&str>) -> bool {
    let innermost = context.and_then(|context| context.lines().next()).unwrap_or_default();
    let block = innermost.contains("inline_code_block") && !innermost.contains('(');
    let control = ["credit_migration.block_writes()", "credit_migration.track_changes()"];
    block || control.iter().any(|name| innermost.contains(name))
}

fn safe(code: &str, message: &str, routine: Option<&str>) -> String {
    if !code.starts_with("22") {
        return message.to_owned();
    }
    let condition = match code {
        "22001" => "a value is too long",
        "22003" => "a number is out of range",
        "22004" => "a null value is not allowed",
        "22007" | "22008" => "a date or time is invalid",
        "22012" => "division by zero",
        "22021" | "22P05" => "a character is not in the encoding",
        "22023" => "the value of a parameter is invalid",
        "22P02" | "22P03" => "a value does not fit its type",
        _ => return reported_by("data exception", routine),
    };
    condition.to_owned()
}

/// What an error of a running session means. Never its `detail`, which quotes rows.
impl From<&tokio_postgres::Error> for Failure {
    fn from(error: &tokio_postgres::Error) -> Self {
        let Some(db) = error.as_db_error() else {
            return Failure::new(
                Reason::ConnectionLost,
                format!("the connection to PostgreSQL was lost: {}", root_cause(error)),
            );
        };
        let code = db.code();
        let message = format!("{} (SQLSTATE {})", message(db), code.code());
        let reason = match code.code() {
            _ if during_recovery(code.code(), db.routine()) => Reason::ConnectionLost,
            "55P03" | "40P01" => Reason::LockTimeout,
            // The last three end the session: a time-out of the server.
            "57P01" | "57P02" | "57P03" | "57P05" | "25P03" | "25P04" => Reason::ConnectionLost,
            "28P01" | "28000" => Reason::AuthenticationFailed,
            "3D000" => Reason::WrongDatabase,
            other if other.starts_with("08") => Reason::ConnectionLost,
            // Serialization, resources, system, internal: the same SQL may work the next time.
            "40001" | "57014" => Reason::DatabaseUnavailable,
            other if ["53", "58", "XX"].iter().any(|class| other.starts_with(class)) => Reason::DatabaseUnavailable,
            _ => Reason::SqlFailed,
        };
        Failure::new(reason, message)
    }
}

/// For `?`.
impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::from(&error)
    }
}

/// A database error, with the statement's number, counted from 1, in front.
pub fn statement_failure(error: &tokio_postgres::Error, number: usize, of: usize) -> Failure {
    let Failure { reason, message } = Failure::from(error);
    Failure::new(reason, format!("statement {number} of {of}: {message}"))
}

/// The server is a standby, and the statement is one for a primary. The routine: the same SQLSTATEs also say that a
/// statement is wrong.
fn during_recovery(code: &str, routine: Option<&str>) -> bool {
    match (code, routine) {
        ("25006", Some("PreventCommandDuringRecovery")) => true,
        // START TRANSACTION READ WRITE.
        ("0A000", Some("call_bool_check_hook")) => true,
        ("55000", Some("pg_current_wal_lsn")) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[rstest::rstest]
    #[case::english("invalid input syntax for type integer: \"ann@example.com\"")]
    #[case::german("ungültige Eingabesyntax für Typ integer: »ann@example.com«")]
    #[case::french("syntaxe en entrée invalide pour le type integer : « ann@example.com »")]
    #[case::unquoted("ann@example.com")]
    fn a_value_is_left_out_in_every_language(#[case] message: &str) {
        assert_eq!(safe("22P02", message, Some("pg_strtoint32_safe")), "a value does not fit its type");
        assert_eq!(safe("22P99", message, Some("any_in")), "data exception, reported by any_in");
    }

    #[rstest::rstest]
    #[case::block("PL/pgSQL function inline_code_block line 1 at RAISE", true)]
    #[case::block_in_german("PL/pgSQL-Funktion inline_code_block Zeile 1 bei RAISE", true)]
    #[case::control("PL/pgSQL function credit_migration.block_writes() line 9 at RAISE", true)]
    #[case::trigger("PL/pgSQL function check_balance() line 3 at RAISE", false)]
    #[case::trigger_in_german("PL/pgSQL-Funktion check_balance() Zeile 3 bei RAISE", false)]
    #[case::trigger_in_russian("функция PL/pgSQL check_balance(), строка 3, оператор RAISE", false)]
    #[case::trigger_in_a_block(
        "PL/pgSQL function check_balance() line 3 at RAISE\nSQL statement \"UPDATE t\"\nPL/pgSQL function \
         inline_code_block line 1 at SQL statement",
        false
    )]
    #[case::namesake("PL/pgSQL function inline_code_block(text) line 3 at RAISE", false)]
    #[case::nothing("", false)]
    fn an_exception_is_repeated_only_if_the_sql_wrote_it(#[case] context: &str, #[case] repeated: bool) {
        assert_eq!(is_own_raise(Some(context)), repeated);
    }

    #[test]
    fn names_are_kept() {
        let message = "Relation »users« existiert nicht";
        assert_eq!(safe("42P01", message, None), message);
    }
}
