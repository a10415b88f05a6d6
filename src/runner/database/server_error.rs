//! What may be repeated of a server's message.
//!
//! The server writes in a language of its own, with the quotes of that language. So what is left out is decided by the
//! SQLSTATE, never by the text.

use tokio_postgres::error::DbError;

/// The server's message. One of class 22 (data exception) quotes the value, which may be a person's: then it is the
/// name of the condition.
pub(super) fn message(error: &DbError) -> String {
    safe(error.code().code(), error.message(), error.routine())
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
        _ => return format!("data exception, reported by {}", routine.unwrap_or("the server")),
    };
    condition.to_owned()
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

    #[test]
    fn names_are_kept() {
        let message = "Relation »users« existiert nicht";
        assert_eq!(safe("42P01", message, None), message);
    }
}
