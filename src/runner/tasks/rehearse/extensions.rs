//! Extensions that the dump has and the migration role may not create, such as `pg_stat_statements` on a stock
//! PostgreSQL.
//!
//! A superuser made them in the database, and `pg_restore` would end at the first of them. The copy goes without; what
//! needs one of them fails there by itself.

use tokio_postgres::{Client, error::SqlState};

use crate::runner::{Failure, database::control::ident};

/// Those of the table of contents that the role may not create in the database of `client`. Whether it may is found
/// by an attempt: managed PostgreSQL allows more than the catalog says.
///
/// # Errors
/// Those of a database error.
pub(super) async fn refused(client: &Client, list: &str) -> Result<Vec<String>, Failure> {
    let mut refused = Vec::new();
    for name in named(list) {
        let create = format!("BEGIN; CREATE EXTENSION IF NOT EXISTS {} CASCADE", ident(name));
        let created = client.batch_execute(&create).await;
        client.batch_execute("ROLLBACK").await?;
        match created {
            Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => refused.push(name.to_owned()),
            // Whatever else is wrong pg_restore will say.
            _ => {}
        }
    }
    Ok(refused)
}

/// The table of contents without these extensions and the comments on them.
pub(super) fn without(list: &str, extensions: &[String]) -> String {
    let leaves_out = |line: &str| {
        let about = |name: &String| {
            entry(line, "EXTENSION -") == Some(name)
                || entry(line, "COMMENT - EXTENSION").is_some_and(|found| found == name || found == ident(name))
        };
        extensions.iter().any(about)
    };
    list.lines().filter(|line| !leaves_out(line)).fold(String::new(), |text, line| text + line + "\n")
}

/// Names of extensions in a table of contents.
fn named(list: &str) -> impl Iterator<Item = &str> {
    list.lines().filter_map(|line| entry(line, "EXTENSION -"))
}

/// Name of an entry of a kind: `2; 3079 16385 EXTENSION - pg_stat_statements `, with the owner, of whom extensions have
/// none, at its end.
fn entry<'a>(line: &'a str, kind: &str) -> Option<&'a str> {
    let (id, rest) = line.split_once("; ")?;
    if !id.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    // Two numbers of the catalog.
    let rest = rest.split_once(' ')?.1.split_once(' ')?.1;
    let name = rest.strip_prefix(kind)?.strip_prefix(' ')?;
    Some(name.split(' ').next().unwrap_or(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = ";
; Archive created at 2026-01-02 03:04:05 UTC
;     dbname: shop
2; 3079 16385 EXTENSION - pg_stat_statements 
3543; 0 0 COMMENT - EXTENSION pg_stat_statements 
3; 3079 16390 EXTENSION - uuid-ossp 
3544; 0 0 COMMENT - EXTENSION \"uuid-ossp\" 
215; 1259 16400 TABLE public EXTENSION postgres
3545; 0 16400 TABLE DATA public EXTENSION postgres
";

    #[test]
    fn an_extension_is_left_out_with_its_comment_and_nothing_else() {
        assert_eq!(named(LIST).collect::<Vec<_>>(), ["pg_stat_statements", "uuid-ossp"]);
        let left = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            without(LIST, &names).lines().map(|line| line.split(';').next().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(left(&["pg_stat_statements"]), ["", "", "", "3", "3544", "215", "3545"]);
        assert_eq!(left(&["uuid-ossp"]), ["", "", "", "2", "3543", "215", "3545"]);
        assert_eq!(without(LIST, &[]), LIST);
    }
}
