//! What is repeated of a server's message, whatever its language.
//!
//! The language is chosen by `LANGUAGE`, which gettext follows under each locale but `C`: the server's package has its
//! messages, and no locale has to be installed.

use std::sync::Arc;

use credit_migration::{
    api::Reason,
    runner::database::control::{self, StopSignal},
};

use crate::harness::{Cluster, Database, sample_down, spec, sql, state_of};

/// Whose address is in a row.
const PERSON: &str = "ann@example.com";
/// A statement whose error quotes the person: PostgreSQL itself, of each class that does.
const QUOTED: &[&str] = &[
    "SELECT 'ann@example.com'::int",
    "SELECT v::numeric FROM (VALUES ('ann@example.com')) AS x (v)",
    "SELECT v::timestamptz FROM (VALUES ('ann@example.com')) AS x (v)",
    "SELECT v::uuid FROM (VALUES ('ann@example.com')) AS x (v)",
    "SELECT ('{' || v)::int[] FROM (VALUES ('ann@example.com')) AS x (v)",
    "SELECT set_config('work_mem', v, true) FROM (VALUES ('ann@example.com')) AS x (v)",
    "SELECT (v || ' &')::tsquery FROM (VALUES ('ann@example.com')) AS x (v)",
];
/// The application's own trigger quotes a person, also with another SQLSTATE, and when a DO block fires it.
const RAISED: &[(&str, &str)] = &[
    ("RAISE EXCEPTION '% is not allowed', 'ann@example.com'", PLAIN),
    ("RAISE EXCEPTION 'ann@example.com' USING ERRCODE = '23514'", PLAIN),
    ("RAISE EXCEPTION 'ann@example.com'", IN_BLOCK),
    ("ASSERT false, 'ann@example.com'", PLAIN),
];
const PLAIN: &str = "UPDATE users SET id = id WHERE id = 1";
const IN_BLOCK: &str = "DO $$ BEGIN UPDATE users SET id = id WHERE id = 1; END $$";

#[rstest::rstest]
#[case("", "division by zero")]
#[case("de", "Division durch Null")]
#[case("fr", "division par zéro")]
#[case("ru", "деление на ноль")]
#[case("ja", "0 による除算が行われました")]
#[tokio::test]
async fn no_value_of_a_message_is_repeated(#[case] language: &'static str, #[case] by_zero: &str) {
    let cluster = Arc::new(tokio::task::spawn_blocking(move || Cluster::speaking(language)).await.unwrap());
    let database = Database::on(&cluster).await;
    let owner = database.session("migrator").await;
    let raw = async |statements: &[&str]| {
        let batch = format!("BEGIN; {}; COMMIT", statements.join("; "));
        let error = owner.batch_execute(&batch).await.unwrap_err();
        assert_eq!(state_of(&owner, "ROLLBACK").await, "ok");
        error.as_db_error().unwrap().message().to_owned()
    };
    assert_eq!(raw(&["SELECT 1/0"]).await, by_zero, "the server speaks it");
    let spec = spec();
    let mut client = database.prepared(&spec).await;
    let mut refused = async |statements: &[&str]| {
        let up = sql(statements);
        control::run_up(&mut client, &spec, &up, &sample_down(), &StopSignal::default()).await.unwrap_err()
    };
    let triggers: Vec<String> = RAISED
        .iter()
        .map(|(raise, _)| {
            format!(
                "CREATE FUNCTION check_it() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {raise}; RETURN NEW; END $$;
                 CREATE TRIGGER check_it BEFORE UPDATE ON users FOR EACH ROW EXECUTE FUNCTION check_it()"
            )
        })
        .collect();
    let quoted = QUOTED.iter().map(|statement| vec![*statement]);
    let raised = triggers.iter().zip(RAISED).map(|(trigger, (_, write))| vec![trigger.as_str(), *write]);
    for statements in quoted.chain(raised) {
        let text = raw(&statements).await;
        assert!(text.contains(PERSON), "{statements:?}: {text}");
        let failure = refused(&statements).await;
        assert_eq!(failure.reason, Reason::SqlFailed, "{statements:?}: {failure}");
        assert!(!failure.message.contains("ann"), "{statements:?}: {failure}");
    }
    // What the SQL's own block says is repeated.
    let failure = refused(&["DO $$ BEGIN RAISE EXCEPTION 'found % orphans', 3; END $$"]).await;
    assert!(failure.message.contains("found 3 orphans"), "{failure}");
    // So is a name.
    let failure = refused(&["SELECT FROM missing_table"]).await;
    assert!(failure.message.contains("missing_table"), "{failure}");
}
