//! Effects of a statement outside of its database: what the transaction cannot take back, what a rehearsal on a copy
//! would do to the server for good, and what no backup holds.
//!
//! A reading sees statements and calls by name, also in the body of `DO`. What it cannot see (dynamic SQL, functions)
//! is found by the transaction itself, as far as the server's shared catalogs show it: see `control::outside`.

use squawk_syntax::{
    SourceFile, SyntaxKind, SyntaxNode, SyntaxToken,
    ast::{AstNode, CallExpr, Stmt},
};

/// Functions that act on other sessions, on the server, its files or other servers.
const FUNCTIONS: &[&str] = &[
    "lo_export",
    "lo_import",
    "pg_backup_start",
    "pg_backup_stop",
    "pg_cancel_backend",
    "pg_copy_logical_replication_slot",
    "pg_copy_physical_replication_slot",
    "pg_create_logical_replication_slot",
    "pg_create_physical_replication_slot",
    "pg_create_restore_point",
    "pg_drop_replication_slot",
    "pg_promote",
    "pg_reload_conf",
    "pg_replication_slot_advance",
    "pg_rotate_logfile",
    "pg_start_backup",
    "pg_stat_file",
    "pg_stop_backup",
    "pg_switch_wal",
    "pg_terminate_backend",
];

/// Beginnings of such functions.
const FUNCTION_FAMILIES: &[&str] =
    &["dblink", "pg_file_", "pg_ls_", "pg_read_", "pg_replication_origin_", "pg_stat_reset", "pg_wal_replay_"];

/// What a statement does outside of its database, for a message; `None` if nothing is seen.
pub(super) fn outside(statement: &Stmt) -> Option<String> {
    let node = statement.syntax();
    let what = match statement {
        Stmt::CreateRole(_)
        | Stmt::AlterRole(_)
        | Stmt::DropRole(_)
        | Stmt::CreateUser(_)
        | Stmt::AlterUser(_)
        | Stmt::DropUser(_)
        | Stmt::CreateGroup(_)
        | Stmt::AlterGroup(_)
        | Stmt::DropGroup(_) => "a change of a role applies to every database of the server",
        Stmt::DropOwned(_) | Stmt::Reassign(_) => "DROP OWNED and REASSIGN OWNED apply to shared objects of the server",
        Stmt::Grant(_) | Stmt::Revoke(_) if !has_word(node, "ON") => {
            "a membership in a role applies to every database of the server"
        }
        Stmt::Grant(_) | Stmt::Revoke(_) if has_word(node, "TABLESPACE") || has_word(node, "PARAMETER") => {
            "rights on tablespaces and parameters apply to the server"
        }
        Stmt::AlterTablespace(_) => "ALTER TABLESPACE applies to the server",
        Stmt::Load(_) => "LOAD loads a library of the server",
        Stmt::ImportForeignSchema(_) => "IMPORT FOREIGN SCHEMA asks another server, so its result was not rehearsed",
        Stmt::Copy(_) if has_word(node, "PROGRAM") => "COPY runs a program on the server",
        Stmt::Copy(_) if !has_word(node, "STDIN") && !has_word(node, "STDOUT") => {
            "COPY reads or writes a file of the server"
        }
        Stmt::Do(_) => return body_of(node).and_then(|body| in_body(&body)),
        _ => return node.descendants().filter_map(CallExpr::cast).find_map(|call| called(call.syntax())),
    };
    Some(what.to_owned())
}

/// A call of one of the functions, by its words: a name before a parenthesis.
fn called(node: &SyntaxNode) -> Option<String> {
    let tokens = words(node);
    let found = tokens.windows(2).find(|pair| pair[1].kind() == SyntaxKind::L_PAREN && is_listed(&name(&pair[0])))?;
    Some(format!("{}() acts on other sessions, the server or other servers", name(&found[0])))
}

/// Statements and calls in the body of `DO`, by their words: it is in a language of its own.
fn in_body(body: &str) -> Option<String> {
    let parse = SourceFile::parse(body);
    let root = parse.tree();
    let texts: Vec<String> = words(root.syntax()).iter().map(name).collect();
    let on_roles = texts.windows(3).any(|words| {
        let change = matches!(words[0].as_str(), "create" | "alter" | "drop");
        change && matches!(words[1].as_str(), "role" | "user" | "group") && words[2] != "mapping"
    });
    match on_roles {
        true => Some("a change of a role applies to every database of the server".to_owned()),
        false => called(root.syntax()),
    }
}

/// The text between the dollar quotes of a statement.
fn body_of(node: &SyntaxNode) -> Option<String> {
    let quoted = words(node).into_iter().find(|token| token.kind() == SyntaxKind::DOLLAR_QUOTED_STRING)?;
    let text = quoted.text();
    let tag = text.get(..=text.get(1..)?.find('$')? + 1)?;
    Some(text.strip_prefix(tag)?.strip_suffix(tag)?.to_owned())
}

/// Tokens that are neither white space nor comments.
fn words(node: &SyntaxNode) -> Vec<SyntaxToken> {
    let tokens = node.descendants_with_tokens().filter_map(|element| element.into_token());
    tokens.filter(|token| !matches!(token.kind(), SyntaxKind::WHITESPACE | SyntaxKind::COMMENT)).collect()
}

/// A word as the server compares it: quoted as it is, otherwise in lower case. Strings are no words.
pub(super) fn name(token: &SyntaxToken) -> String {
    match token.text().strip_prefix('"').and_then(|text| text.strip_suffix('"')) {
        Some(quoted) => quoted.to_owned(),
        None => token.text().to_ascii_lowercase(),
    }
}

fn is_listed(name: &str) -> bool {
    FUNCTIONS.contains(&name) || FUNCTION_FAMILIES.iter().any(|family| name.starts_with(family))
}

fn has_word(node: &SyntaxNode, word: &str) -> bool {
    words(node).iter().any(|token| token.text().eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests {
    use crate::shared::sql::{ProblemKind, read};

    #[rstest::rstest]
    #[case("CREATE ROLE a")]
    #[case("ALTER ROLE a SET work_mem = '1GB'")]
    #[case("DROP ROLE a")]
    #[case("CREATE USER a PASSWORD 'x'")]
    #[case("ALTER USER a CREATEDB")]
    #[case("DROP USER a")]
    #[case("CREATE GROUP a")]
    #[case("ALTER GROUP a ADD USER b")]
    #[case("DROP GROUP a")]
    #[case("GRANT a TO b")]
    #[case("REVOKE a FROM b")]
    #[case("GRANT a TO b WITH ADMIN OPTION")]
    #[case("GRANT CREATE ON TABLESPACE t TO a")]
    #[case("DROP OWNED BY a")]
    #[case("REASSIGN OWNED BY a TO b")]
    #[case("ALTER TABLESPACE t RENAME TO u")]
    #[case("LOAD 'auto_explain'")]
    #[case("IMPORT FOREIGN SCHEMA s FROM SERVER x INTO y")]
    #[case("COPY t TO PROGRAM 'curl http://x'")]
    #[case("COPY t FROM PROGRAM 'curl http://x'")]
    #[case("COPY t TO '/tmp/x'")]
    #[case("COPY t FROM '/tmp/x'")]
    #[case("SELECT pg_terminate_backend(pid) FROM pg_stat_activity")]
    #[case("SELECT pg_catalog.PG_Cancel_Backend (1)")]
    #[case("SELECT \"pg_reload_conf\" ()")]
    #[case("INSERT INTO t SELECT pg_read_file('/etc/passwd')")]
    #[case("UPDATE t SET a = (SELECT * FROM public.dblink('host=x', 'SELECT 1') AS r(a int))")]
    #[case("SELECT dblink_exec('c', 'DROP TABLE t')")]
    #[case("DO $$ BEGIN PERFORM pg_terminate_backend(1); END $$")]
    #[case("DO $x$ BEGIN\n  CREATE ROLE a; END $x$")]
    fn an_effect_outside_of_the_database_is_refused(#[case] sql: &str) {
        let problems = read(&format!("SELECT 1;\n{sql}")).unwrap_err();
        let found = (problems[0].kind, problems[0].line, problems[0].doubtful);
        assert_eq!(found, (ProblemKind::OutsideDatabase, 2, false), "{problems:?}");
    }

    #[rstest::rstest]
    #[case("GRANT SELECT ON t TO a")]
    #[case("REVOKE ALL ON SCHEMA public FROM PUBLIC")]
    #[case("SET LOCAL ROLE a")]
    #[case("CREATE USER MAPPING FOR a SERVER s")]
    #[case("CREATE TABLE dblink_log (id int)")]
    #[case("SELECT pg_terminate_backend FROM t")]
    #[case("COMMENT ON TABLE t IS 'pg_terminate_backend(1)'")]
    #[case("DO $$ BEGIN CREATE USER MAPPING FOR a SERVER s; END $$")]
    #[case("DO $$ BEGIN RAISE NOTICE 'pg_reload_conf()'; END $$")]
    #[case("CREATE FUNCTION kill() RETURNS bool LANGUAGE sql AS $$ SELECT pg_terminate_backend(1) $$")]
    #[case("COPY t TO STDOUT")]
    fn what_stays_in_the_database_is_read(#[case] sql: &str) {
        assert_eq!(read(sql).unwrap().len(), 1);
    }
}
