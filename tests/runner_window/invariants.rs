//! Pairs of queries whose results the SQL must leave equal.

use credit_migration::{
    api::{Invariant, InvariantEvidence, Reason},
    runner::database::control::{self, Applied, ControlSpec, StopSignal},
};

use crate::harness::{Database, sample_down, spec, sql};

const GONE: &str = "DROP TABLE credit_purchases; DROP TABLE credit_packages";
const BALANCES: &str = "SELECT user_id, balance FROM user_credits";
const AMOUNTS: &str = "SELECT user_id, sum(amount), count(*), count(type) FROM credit_transactions GROUP BY 1";

fn with(pairs: &[(&str, &str)]) -> ControlSpec {
    let pair = |(number, (before, after)): (usize, &(&str, &str))| Invariant {
        name: format!("i{number}"),
        before: (*before).to_owned(),
        after: (*after).to_owned(),
    };
    ControlSpec { invariants: pairs.iter().enumerate().map(pair).collect(), verify_down: None, ..spec() }
}

#[tokio::test]
async fn what_is_moved_to_other_tables_and_types_is_the_same() {
    let database = Database::new().await;
    // A query may end with a semicolon or a comment, and may return a column without a name, or a name twice.
    let moved = "SELECT owner, sum(credits) FROM wallets JOIN accounts USING (account) GROUP BY owner -- all";
    let spec = with(&[(BALANCES, moved), (AMOUNTS, &format!("{AMOUNTS};\n"))]);
    let mut client = database.prepared(&spec).await;
    let up = sql(&[
        GONE,
        "CREATE TABLE accounts (account int PRIMARY KEY, owner numeric)",
        "CREATE TABLE wallets (account int, credits numeric(20, 2))",
        "INSERT INTO accounts SELECT user_id + 1000, user_id FROM user_credits",
        "INSERT INTO wallets SELECT user_id + 1000, 1 FROM user_credits",
        "INSERT INTO wallets SELECT user_id + 1000, balance - 1 FROM user_credits",
    ]);
    let down = sql(&["DROP TABLE wallets, accounts"]);
    let applied = control::run_up(&mut client, &spec, &up, &down, &StopSignal::default()).await.unwrap();
    let Applied::Now { invariants, .. } = applied else { panic!("{applied:?}") };
    let held = |name: &str| InvariantEvidence { name: name.to_owned(), rows: 200 };
    assert_eq!(invariants, [held("i0"), held("i1")]);
    // Backwards, too: what was written on the new version must be there after it.
    client.batch_execute("UPDATE public.wallets SET credits = credits + 5 WHERE account = 1007").await.unwrap();
    let failure = control::run_down(&mut client, &spec, &down).await.unwrap_err();
    assert_eq!(failure.reason, Reason::InvariantBroken);
    assert!(failure.message.contains("invariant i0: of 200 rows before the down SQL 1 are not there"), "{failure}");
    let restored = sql(&["UPDATE user_credits SET balance = balance", "DROP TABLE wallets, accounts"]);
    client.batch_execute("UPDATE public.wallets SET credits = credits - 5 WHERE account = 1007").await.unwrap();
    control::run_down(&mut client, &spec, &restored).await.unwrap();
}

/// It says nothing, no SQL cures it, and writes are blocked.
#[tokio::test]
async fn a_rollback_goes_on_without_what_cannot_be_run() {
    let database = Database::new().await;
    let spec = with(&[("SELECT 1", "SELECT 1 FROM notes LIMIT 1"), (AMOUNTS, AMOUNTS)]);
    let mut client = database.prepared(&spec).await;
    let up = sql(&[GONE, "CREATE TABLE notes AS SELECT 1"]);
    let down = sql(&["DROP TABLE IF EXISTS notes"]);
    control::run_up(&mut client, &spec, &up, &down, &StopSignal::default()).await.unwrap();
    client.batch_execute("DROP TABLE public.notes").await.unwrap();
    let failure = control::rehearse_down(&mut client, &spec, &down, None).await.unwrap_err();
    assert_eq!(failure.reason, Reason::InvariantBroken, "a rehearsal finds it: {failure}");
    let applied = control::run_down(&mut client, &spec, &down).await.unwrap();
    let Applied::Now { invariants, .. } = applied else { panic!("{applied:?}") };
    assert_eq!(invariants, [InvariantEvidence { name: "i1".to_owned(), rows: 200 }]);
}

#[tokio::test]
async fn a_result_that_the_up_sql_changes_is_refused() {
    let database = Database::new().await;
    let before = database.value("SELECT count(*) FROM credit_transactions").await;
    let written = "SELECT nextval('credit_transactions_id_seq')";
    let kept = "SELECT count(*) FROM users";
    for (pair, words) in [
        ((AMOUNTS, AMOUNTS), "of 200 rows before the up SQL 2 are not there after it, 1 others are, limit 0"),
        (("SELECT 1", "SELECT 1 WHERE false"), "of 1 rows before the up SQL 1 are not there after it, 0 others are"),
        ((kept, "SELECT id, email FROM users"), "query after: it answers 2 columns, the other query 1"),
        ((kept, "SELECT 'secret'::text"), "cannot be matched"),
        (("SELECT a FROM missing", kept), "query before: relation \"missing\" does not exist"),
        ((kept, "SELECT 1; SELECT 2"), "query after: "),
        // Both would write.
        ((written, written), "query before: cannot execute nextval() in a read-only transaction"),
        ((kept, written), "query after: cannot execute nextval() in a read-only transaction"),
        (("DELETE FROM credit_transactions", kept), "query before: "),
        (("SELECT", "SELECT"), "it answers no column"),
    ] {
        let spec = with(&[(kept, kept), pair]);
        let mut client = database.prepared(&spec).await;
        let lossy = "DELETE FROM credit_transactions WHERE user_id = 7;
            UPDATE credit_transactions SET amount = amount + 1 WHERE user_id = 8";
        let up = sql(&[GONE, lossy]);
        let refused = control::run_up(&mut client, &spec, &up, &sample_down(), &StopSignal::default()).await;
        let failure = refused.unwrap_err();
        assert_eq!(failure.reason, Reason::InvariantBroken, "{failure}");
        assert!(failure.message.starts_with("invariant i1: ") && failure.message.contains(words), "{failure}");
        assert!(!failure.message.contains("secret"), "{failure}");
        assert_eq!(database.value("SELECT count(*) FROM credit_transactions").await, before);
    }
}

#[tokio::test]
async fn the_sql_may_write_after_the_first_query_and_leave_its_transaction_to_others() {
    let database = Database::new().await;
    let spec = with(&[(BALANCES, BALANCES)]);
    let mut client = database.prepared(&spec).await;
    let up = sql(&[GONE, "CREATE TEMPORARY TABLE own AS SELECT 1 AS a", "UPDATE users SET email = email || 'x'"]);
    control::run_up(&mut client, &spec, &up, &sample_down(), &StopSignal::default()).await.unwrap();
    let left = "SELECT count(*) FROM pg_class WHERE relname LIKE 'credit_migration_invariant%'";
    assert_eq!(client.query_one(left, &[]).await.unwrap().get::<_, i64>(0), 0);
}
