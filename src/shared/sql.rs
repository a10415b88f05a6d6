//! Reads SQL before it is run: splits it into statements and refuses what cannot run in the window's single
//! transaction.
//!
//! The grammar is that of `squawk-syntax`. Where it knows less than the server, the server's own parser decides in
//! Preflight, so that a statement that only our parser does not know cannot stop a migration.
//!
//! # Refused
//! - psql commands: they are not SQL, and `psql` would run them on its own machine;
//! - statements that start or end a transaction: a `COMMIT` in the middle would separate the change from the ledger row
//!   that makes it run exactly once;
//! - statements that PostgreSQL runs only outside of a transaction, and `COPY FROM STDIN`, whose data would be missing;
//! - effects outside of the database: the rehearsal on a copy would have them for good.
//!
//! A byte order mark at the start is left out, as `psql` does; line ends may be those of Windows.

use squawk_syntax::{
    Parse, SourceFile, SyntaxKind, SyntaxNode, SyntaxToken,
    ast::{AlterTableAction, AstNode, Stmt},
};

use super::sql_effects;

/// One statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// Line of its first word, from 1.
    pub line: usize,
    /// Its text, without comments before it and without the semicolon.
    pub text: String,
}

/// Class of a [`Problem`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProblemKind {
    /// No SQL, or none that our parser knows.
    SyntaxError,
    /// A command of psql.
    MetaCommand,
    /// A statement that starts, ends or changes the transaction.
    TransactionControl,
    /// A statement that cannot run inside a transaction.
    OutsideTransaction,
    /// A statement with an effect outside of the database.
    OutsideDatabase,
}

/// Why a text is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Class.
    pub kind: ProblemKind,
    /// Line, from 1.
    pub line: usize,
    /// What is there, and how to fix it.
    pub message: String,
    /// Whether only our own parser reports it: the server's may accept the text.
    pub doubtful: bool,
}

/// The text without the byte order mark that some editors put before it. `psql` ignores it, too; the server does not.
pub fn without_mark(sql: &str) -> &str {
    sql.strip_prefix(MARK).unwrap_or(sql)
}

/// The statements of a text to run: the whole text as one if only our own parser cannot split it.
///
/// # Errors
/// The first problem of the text that is certain.
pub fn for_run(sql: &str) -> Result<Vec<String>, Problem> {
    match read(sql) {
        Ok(statements) => Ok(statements.into_iter().map(|statement| statement.text).collect()),
        Err(problems) => match problems.into_iter().find(|problem| !problem.doubtful) {
            Some(problem) => Err(problem),
            None => Ok(vec![without_mark(sql).to_owned()]),
        },
    }
}

/// Words that keywords of a statement are made of; any other word may be a name.
const KEYWORDS: &[&str] = &[
    "AGGREGATE",
    "ALL",
    "ALTER",
    "ANALYZE",
    "CALL",
    "CAST",
    "CLUSTER",
    "COLLATION",
    "COLUMN",
    "COMMENT",
    "CONSTRAINT",
    "CONSTRAINTS",
    "COPY",
    "CREATE",
    "DEFAULT",
    "DELETE",
    "DO",
    "DOMAIN",
    "DROP",
    "EXECUTE",
    "EXPLAIN",
    "EXTENSION",
    "FOREIGN",
    "FROM",
    "FUNCTION",
    "GRANT",
    "IMPORT",
    "INDEX",
    "INSERT",
    "INTO",
    "LABEL",
    "LOCAL",
    "LOCK",
    "MATERIALIZED",
    "MERGE",
    "ON",
    "ONLY",
    "OPERATOR",
    "OR",
    "OWNED",
    "POLICY",
    "PREPARE",
    "PRIVILEGES",
    "PROCEDURE",
    "REASSIGN",
    "RECURSIVE",
    "REFRESH",
    "REINDEX",
    "REPLACE",
    "RESET",
    "REVOKE",
    "ROUTINE",
    "RULE",
    "SCHEMA",
    "SECURITY",
    "SELECT",
    "SEQUENCE",
    "SET",
    "STATISTICS",
    "TABLE",
    "TEMP",
    "TEMPORARY",
    "TRIGGER",
    "TRUNCATE",
    "TYPE",
    "UNIQUE",
    "UNLOGGED",
    "UPDATE",
    "VALUES",
    "VIEW",
    "WITH",
];
/// Keywords that are shown of a statement.
const MAX_KEYWORDS: usize = 4;

/// First keywords of a statement, without names and values: `ALTER TABLE`.
pub fn keywords(statement: &str) -> String {
    let mut found: Vec<String> = Vec::new();
    for word in statement.trim_start_matches('(').split_whitespace().take(MAX_KEYWORDS) {
        let end = word.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(word.len());
        let keyword = word.get(..end).unwrap_or_default().to_ascii_uppercase();
        if !KEYWORDS.contains(&keyword.as_str()) {
            break;
        }
        found.push(keyword);
        if end < word.len() {
            break;
        }
    }
    if found.is_empty() { "statement".to_owned() } else { found.join(" ") }
}

/// The byte order mark.
const MARK: char = '\u{feff}';

/// Splits SQL text into its statements.
///
/// # Errors
/// Every problem of the text; those that cause others come first. An empty text is a problem: `SyntaxError`.
pub fn read(sql: &str) -> Result<Vec<Statement>, Vec<Problem>> {
    let sql = without_mark(sql);
    let lines = Lines::of(sql);
    if let Some(offset) = sql.find('\0') {
        return Err(vec![Problem {
            kind: ProblemKind::SyntaxError,
            line: lines.of_offset(offset),
            message: "a zero byte: save the file as UTF-8 text".to_owned(),
            doubtful: false,
        }]);
    }
    let parse: Parse<SourceFile> = SourceFile::parse(sql);
    let file = parse.tree();
    let mut problems = marks(file.syntax(), &lines);
    problems.extend(meta_commands(file.syntax(), sql, &lines));
    let mut statements = Vec::new();
    for statement in file.stmts() {
        let Some(first) = first_word(statement.syntax()) else { continue };
        let line = lines.of_offset(usize::from(first.text_range().start()));
        if let Some((kind, message)) = refusal(&statement) {
            problems.push(Problem { kind, line, message, doubtful: false });
        }
        let end = usize::from(statement.syntax().text_range().end());
        let text = sql.get(usize::from(first.text_range().start())..end).unwrap_or_default();
        let text = text.trim_end().trim_end_matches(';').trim_end();
        if !text.is_empty() {
            statements.push(Statement { line, text: text.to_owned() });
        }
    }
    // The data of a COPY ends with a psql command: the first line has the cause.
    problems.sort_by_key(|problem| problem.line);
    // Syntax errors come last: a psql command or the data of a COPY produce them too, and say less about the cause.
    problems.extend(parse.errors().iter().map(|error| Problem {
        kind: ProblemKind::SyntaxError,
        line: lines.of_offset(usize::from(error.range().start())),
        message: error.message().to_owned(),
        doubtful: true,
    }));
    if statements.is_empty() && problems.is_empty() {
        problems.push(Problem {
            kind: ProblemKind::SyntaxError,
            line: 1,
            message: "no statement: the text is empty or holds comments only".to_owned(),
            doubtful: false,
        });
    }
    if problems.is_empty() { Ok(statements) } else { Err(problems) }
}

/// Tables that statements of a text drop, as a spec names them: in lower case unless quoted, and without quotes. What
/// dynamic SQL drops is not seen.
pub fn dropped_tables(sql: &str) -> Vec<String> {
    names_in(sql, |statement| match statement {
        Stmt::DropTable(drop) => drop.table_name_refs().map(|name| spec_name(name.syntax())).collect(),
        _ => vec![],
    })
}

/// The same with those that are renamed or moved to another schema.
pub fn tables_that_go(sql: &str) -> Vec<String> {
    let mut names = dropped_tables(sql);
    names.extend(names_in(sql, |statement| match statement {
        Stmt::AlterTable(alter) => {
            let goes = |action| matches!(action, AlterTableAction::TableRenameTo(_) | AlterTableAction::SetSchema(_));
            let name = alter.table_relation_name().and_then(|name| name.table_name_ref());
            let name = name.filter(|_| alter.actions().any(goes));
            name.map(|name| spec_name(name.syntax())).into_iter().collect()
        }
        _ => vec![],
    }));
    names
}

fn names_in(sql: &str, of: impl Fn(&Stmt) -> Vec<String>) -> Vec<String> {
    let parse = SourceFile::parse(without_mark(sql));
    parse.tree().stmts().flat_map(|statement| of(&statement)).collect()
}

/// The name of a table as a spec has it.
fn spec_name(node: &SyntaxNode) -> String {
    let tokens = node.descendants_with_tokens().filter_map(|element| element.into_token());
    let parts = tokens.filter(|token| !matches!(token.kind(), SyntaxKind::WHITESPACE | SyntaxKind::COMMENT));
    parts.map(|token| sql_effects::name(&token)).collect()
}

/// First token of a statement that is neither white space nor a comment.
fn first_word(node: &SyntaxNode) -> Option<SyntaxToken> {
    node.descendants_with_tokens()
        .filter_map(|element| element.into_token())
        .find(|token| !matches!(token.kind(), SyntaxKind::WHITESPACE | SyntaxKind::COMMENT))
}

/// Tokens with a character in them, outside of strings, quoted names and comments.
fn with_character(root: &SyntaxNode, character: char) -> impl Iterator<Item = SyntaxToken> {
    root.descendants_with_tokens().filter_map(|element| element.into_token()).filter(move |token| {
        let inert = matches!(
            token.kind(),
            SyntaxKind::COMMENT
                | SyntaxKind::STRING
                | SyntaxKind::ESC_STRING
                | SyntaxKind::UNICODE_ESC_STRING
                | SyntaxKind::NATIONAL_STRING
                | SyntaxKind::DOLLAR_QUOTED_STRING
                | SyntaxKind::WHITESPACE
        ) || token.text().starts_with('"');
        !inert && token.text().contains(character)
    })
}

/// Byte order marks inside of the text, which the server takes for part of a name.
fn marks(root: &SyntaxNode, lines: &Lines) -> Vec<Problem> {
    let problem = |token: SyntaxToken| Problem {
        kind: ProblemKind::SyntaxError,
        line: lines.of_offset(usize::from(token.text_range().start())),
        message: "a byte order mark (U+FEFF) inside of the text, as files have it that were joined; remove it"
            .to_owned(),
        doubtful: false,
    };
    with_character(root, MARK).map(problem).collect()
}

/// Psql commands: a backslash outside of strings and comments. One per line.
fn meta_commands(root: &SyntaxNode, sql: &str, lines: &Lines) -> Vec<Problem> {
    let mut found: Vec<Problem> = Vec::new();
    for token in with_character(root, '\\') {
        let start = usize::from(token.text_range().start()) + token.text().find('\\').unwrap_or(0);
        let line = lines.of_offset(start);
        if found.last().is_some_and(|last| last.line == line) {
            continue;
        }
        let word: String =
            sql.get(start..).unwrap_or_default().chars().take_while(|c| !c.is_whitespace()).take(20).collect();
        found.push(Problem {
            kind: ProblemKind::MetaCommand,
            line,
            message: format!("`{word}` is a command of psql, not SQL; remove it (settings belong in the spec)"),
            doubtful: false,
        });
    }
    found
}

/// Why a statement cannot run inside the transaction; `None` if it can.
fn refusal(statement: &Stmt) -> Option<(ProblemKind, String)> {
    let outside = |what: &str| {
        let message =
            format!("{what} cannot run inside a transaction, and the migration is one; run it before or after");
        Some((ProblemKind::OutsideTransaction, message))
    };
    let control = |what: &str| {
        let message = format!("{what} would end or change the operator's transaction; remove it, the operator commits");
        Some((ProblemKind::TransactionControl, message))
    };
    let node = statement.syntax();
    match statement {
        Stmt::Begin(_) => control("BEGIN"),
        Stmt::Commit(_) => control("COMMIT (or END)"),
        Stmt::Rollback(_) => control("ROLLBACK (or ABORT)"),
        Stmt::SavepointCreate(_) => control("SAVEPOINT"),
        Stmt::ReleaseSavepoint(_) => control("RELEASE SAVEPOINT"),
        Stmt::PrepareTransaction(_) => control("PREPARE TRANSACTION"),
        Stmt::SetTransaction(_) => control("SET TRANSACTION"),
        Stmt::CreateIndex(_) if says(node, "CONCURRENTLY") => outside("CREATE INDEX CONCURRENTLY"),
        Stmt::DropIndex(_) if says(node, "CONCURRENTLY") => outside("DROP INDEX CONCURRENTLY"),
        Stmt::Reindex(_) if says(node, "CONCURRENTLY") => outside("REINDEX CONCURRENTLY"),
        Stmt::Reindex(_) if says(node, "DATABASE") || says(node, "SYSTEM") || says(node, "SCHEMA") => {
            outside("REINDEX of a schema, database or system")
        }
        Stmt::AlterTable(_) if says(node, "DETACH") && says(node, "CONCURRENTLY") => {
            outside("DETACH PARTITION CONCURRENTLY")
        }
        Stmt::Vacuum(_) => outside("VACUUM"),
        Stmt::Cluster(cluster) if cluster.table_name_ref().is_none() && cluster.cluster_legacy().is_none() => {
            outside("CLUSTER without a table")
        }
        Stmt::CreateDatabase(_) => outside("CREATE DATABASE"),
        Stmt::DropDatabase(_) => outside("DROP DATABASE"),
        Stmt::AlterDatabase(_) => {
            // ALTER DATABASE ... SET could run, and would undo the window's own default_transaction_read_only.
            outside("ALTER DATABASE changes more than the credit system; it")
        }
        Stmt::AlterSystem(_) => outside("ALTER SYSTEM"),
        Stmt::CreateTablespace(_) => outside("CREATE TABLESPACE"),
        Stmt::DropTablespace(_) => outside("DROP TABLESPACE"),
        Stmt::CreateSubscription(_) => outside("CREATE SUBSCRIPTION"),
        Stmt::AlterSubscription(_) => outside("ALTER SUBSCRIPTION"),
        Stmt::DropSubscription(_) => outside("DROP SUBSCRIPTION"),
        Stmt::Discard(_) => outside("DISCARD"),
        Stmt::Copy(_) if says(node, "STDIN") => Some((
            ProblemKind::OutsideTransaction,
            "COPY FROM STDIN needs data that only psql would send; use INSERT ... VALUES, as pg_dump --inserts does"
                .to_owned(),
        )),
        _ => sql_effects::outside(statement).map(|what| {
            let message = format!("{what}; run it before or after the migration, and remove it here");
            (ProblemKind::OutsideDatabase, message)
        }),
    }
}

/// Whether a statement has a keyword as a word of its own, not quoted and not in a string.
fn says(node: &SyntaxNode, word: &str) -> bool {
    node.descendants_with_tokens()
        .filter_map(|element| element.into_token())
        .any(|token| token.text().eq_ignore_ascii_case(word))
}

/// Offsets of line starts.
struct Lines(Vec<usize>);

impl Lines {
    fn of(text: &str) -> Self {
        Self(std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect())
    }

    /// Line of a byte offset, from 1.
    fn of_offset(&self, offset: usize) -> usize {
        self.0.partition_point(|start| *start <= offset)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::two("SELECT 1;\n-- c\nSELECT 2", &[(1, "SELECT 1"), (3, "SELECT 2")])]
    #[case::byte_order_mark("\u{feff}SELECT 1;\nSELECT 2", &[(1, "SELECT 1"), (2, "SELECT 2")])]
    #[case::strings(
        "INSERT INTO t VALUES ('a;b', E'c\\';d', \"q;r\");",
        &[(1, "INSERT INTO t VALUES ('a;b', E'c\\';d', \"q;r\")")]
    )]
    #[case::dollar(
        "\nDO $$ BEGIN PERFORM 1; END $$;\nSELECT 1;",
        &[(2, "DO $$ BEGIN PERFORM 1; END $$"), (3, "SELECT 1")]
    )]
    #[case::nested(
        "CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql AS $a$ BEGIN RETURN length($b$;$b$); END $a$",
        &[(1, "CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql AS $a$ BEGIN RETURN length($b$;$b$); END $a$")]
    )]
    #[case::comment("/* a; /* b; */ */ SELECT 1 -- x;\n;", &[(1, "SELECT 1 -- x;")])]
    #[case::mark_before_a_comment("\u{feff}-- c\nSELECT 1;", &[(2, "SELECT 1")])]
    #[case::mark_in_a_string("SELECT '\u{feff}';", &[(1, "SELECT '\u{feff}'")])]
    #[case::windows("SELECT 1;\r\n-- c\r\nSELECT\r\n2;\r\n", &[(1, "SELECT 1"), (3, "SELECT\r\n2")])]
    #[case::windows_in_a_body(
        "DO $$ BEGIN\r\nPERFORM 1;\r\nEND $$;\r\nSELECT 1;",
        &[(1, "DO $$ BEGIN\r\nPERFORM 1;\r\nEND $$"), (4, "SELECT 1")]
    )]
    #[case::latin_letters("SELECT 'Müller', 1 AS größe;", &[(1, "SELECT 'Müller', 1 AS größe")])]
    #[case::set_local(
        "SET LOCAL lock_timeout = '1s';\nSET CONSTRAINTS ALL DEFERRED;",
        &[(1, "SET LOCAL lock_timeout = '1s'"), (2, "SET CONSTRAINTS ALL DEFERRED")]
    )]
    #[case::body(
        "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; SELECT 2; END;",
        &[(1, "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; SELECT 2; END")]
    )]
    fn splits(#[case] sql: &str, #[case] want: &[(usize, &str)]) {
        let got = read(sql).unwrap();
        let got: Vec<_> = got.iter().map(|s| (s.line, s.text.as_str())).collect();
        assert_eq!(got, want);
    }

    #[rstest]
    #[case("alter table only users ADD email text", "ALTER TABLE ONLY")]
    #[case("CREATE UNIQUE INDEX i ON t (a)", "CREATE UNIQUE INDEX")]
    #[case("INSERT INTO users VALUES ('INTO')", "INSERT INTO")]
    #[case("UPDATE users SET email = 'x'", "UPDATE")]
    #[case("DO$$ BEGIN END $$", "DO")]
    #[case("(SELECT 'secret')", "SELECT")]
    #[case("SELECT'secret'", "SELECT")]
    #[case("/* secret */ SELECT 1", "statement")]
    fn shows_keywords_and_no_name_or_value(#[case] statement: &str, #[case] want: &str) {
        assert_eq!(keywords(statement), want);
    }

    #[rstest]
    #[case::meta("\\set x 1\nSELECT 1;", ProblemKind::MetaCommand, 1)]
    #[case::meta_later("SELECT 1;\n\\i other.sql\n", ProblemKind::MetaCommand, 2)]
    #[case::gexec("SELECT 'x' \\gexec\n", ProblemKind::MetaCommand, 1)]
    #[case::start_of_transaction("BEGIN;\nSELECT 1;\nCOMMIT;", ProblemKind::TransactionControl, 1)]
    #[case::start("START TRANSACTION", ProblemKind::TransactionControl, 1)]
    #[case::commit("SELECT 1;\nCOMMIT", ProblemKind::TransactionControl, 2)]
    #[case::end("END;", ProblemKind::TransactionControl, 1)]
    #[case::commit_prepared("COMMIT PREPARED 'x'", ProblemKind::TransactionControl, 1)]
    #[case::abort("ABORT", ProblemKind::TransactionControl, 1)]
    #[case::rollback("ROLLBACK TO SAVEPOINT a", ProblemKind::TransactionControl, 1)]
    #[case::savepoint("SAVEPOINT a", ProblemKind::TransactionControl, 1)]
    #[case::release("RELEASE SAVEPOINT a", ProblemKind::TransactionControl, 1)]
    #[case::prepare("PREPARE TRANSACTION 'a'", ProblemKind::TransactionControl, 1)]
    #[case::set_transaction("SET TRANSACTION READ ONLY", ProblemKind::TransactionControl, 1)]
    #[case::characteristics("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", ProblemKind::TransactionControl, 1)]
    #[case::index("SELECT 1;\n\nCREATE INDEX CONCURRENTLY i ON t (a)", ProblemKind::OutsideTransaction, 3)]
    #[case::unique("CREATE UNIQUE INDEX CONCURRENTLY i ON t (a)", ProblemKind::OutsideTransaction, 1)]
    #[case::drop_index("DROP INDEX CONCURRENTLY i", ProblemKind::OutsideTransaction, 1)]
    #[case::reindex("REINDEX INDEX CONCURRENTLY i", ProblemKind::OutsideTransaction, 1)]
    #[case::reindex_option("REINDEX (CONCURRENTLY) TABLE t", ProblemKind::OutsideTransaction, 1)]
    #[case::reindex_database("REINDEX DATABASE d", ProblemKind::OutsideTransaction, 1)]
    #[case::detach("ALTER TABLE t DETACH PARTITION p CONCURRENTLY", ProblemKind::OutsideTransaction, 1)]
    #[case::vacuum("VACUUM t", ProblemKind::OutsideTransaction, 1)]
    #[case::cluster("CLUSTER", ProblemKind::OutsideTransaction, 1)]
    #[case::create_database("CREATE DATABASE d", ProblemKind::OutsideTransaction, 1)]
    #[case::drop_database("DROP DATABASE d", ProblemKind::OutsideTransaction, 1)]
    #[case::alter_database(
        "ALTER DATABASE d SET default_transaction_read_only = off",
        ProblemKind::OutsideTransaction,
        1
    )]
    #[case::alter_system("ALTER SYSTEM SET work_mem = '1GB'", ProblemKind::OutsideTransaction, 1)]
    #[case::tablespace("CREATE TABLESPACE s LOCATION '/x'", ProblemKind::OutsideTransaction, 1)]
    #[case::discard("DISCARD ALL", ProblemKind::OutsideTransaction, 1)]
    #[case::copy("SELECT 1;\nCOPY t FROM STDIN;\n1\ta\n\\.\n", ProblemKind::OutsideTransaction, 2)]
    #[case::copy_csv(
        "COPY public.t (a, b) FROM stdin WITH (FORMAT csv);\n1,commit\n\\.\n",
        ProblemKind::OutsideTransaction,
        1
    )]
    #[case::mark_inside("SELECT 1;\n\u{feff}SELECT 2;", ProblemKind::SyntaxError, 2)]
    #[case::windows("SELECT 1;\r\n\r\nCOMMIT;\r\n", ProblemKind::TransactionControl, 3)]
    #[case::copy_bare("COPY t (a) FROM STDIN", ProblemKind::OutsideTransaction, 1)]
    #[case::syntax("SELECT 1;\nALTER TABEL t ADD a int;", ProblemKind::SyntaxError, 2)]
    #[case::open_string("SELECT 'abc", ProblemKind::SyntaxError, 1)]
    #[case::empty("  \n-- nothing\n", ProblemKind::SyntaxError, 1)]
    #[case::semicolons(";;", ProblemKind::SyntaxError, 1)]
    #[case::zero("SELECT 1;\n\0", ProblemKind::SyntaxError, 2)]
    fn refuses(#[case] sql: &str, #[case] kind: ProblemKind, #[case] line: usize) {
        let problems = read(sql).unwrap_err();
        assert_eq!((problems[0].kind, problems[0].line), (kind, line), "{problems:?}");
    }

    #[rstest]
    #[case("ALTER TABLE t DETACH PARTITION p")]
    #[case("CLUSTER t USING i")]
    #[case("REINDEX TABLE t")]
    #[case("SET LOCAL lock_timeout = '1s'")]
    #[case("SET search_path = a, b")]
    #[case("CREATE INDEX \"CONCURRENTLY\" ON t (a)")]
    #[case("COMMENT ON TABLE t IS 'run VACUUM; then \\x'")]
    #[case("DO $$ BEGIN EXECUTE 'VACUUM'; END $$")]
    #[case("REFRESH MATERIALIZED VIEW CONCURRENTLY v")]
    #[case("COMMENT ON COLUMN t.\"a\\b\" IS N'\\x'")]
    #[case("ALTER TYPE m ADD VALUE 'x'")]
    #[case("GRANT SELECT ON ALL TABLES IN SCHEMA public TO a")]
    #[case("ALTER TABLE t ADD CONSTRAINT c CHECK (a > 0) NOT VALID")]
    fn accepts(#[case] sql: &str) {
        assert_eq!(read(sql).unwrap().len(), 1);
    }

    #[test]
    fn accepts_the_sample_application() {
        let up = include_str!("../../examples/watermark-remover/db/0003_simplify_credit_system.sql");
        let down = include_str!("../../examples/watermark-remover/db/0003_rollback_credit_system.sql");
        assert_eq!(read(up).unwrap().len(), 9);
        assert_eq!(read(down).unwrap().len(), 6);
    }
}
