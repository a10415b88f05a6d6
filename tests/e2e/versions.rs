//! A whole migration on the oldest and on the newest supported PostgreSQL, of a database that holds what others hold;
//! all other tests take the usual server.

use credit_migration::{api::CreditMigrationStatus, runner::database::version::SUPPORTED};
use rstest::rstest;
use serde_json::json;

use super::{
    database::{DOWN, NEWEST, OLDEST, UP},
    harness::{Setup, e2e},
    migration::condition,
};

/// A superuser's: what an ordinary role may not restore.
const OTHERS: &str = "CREATE FUNCTION on_ddl() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';
    CREATE EVENT TRIGGER watch ON ddl_command_end EXECUTE FUNCTION on_ddl();
    ALTER DEFAULT PRIVILEGES FOR ROLE postgres IN SCHEMA public GRANT SELECT ON TABLES TO PUBLIC;
    CREATE EXTENSION postgres_fdw";
/// Rows whose check is left to the commit.
const DEFERRED: &str =
    "CREATE TABLE plan_notes (plan text REFERENCES credit_plans (plan) DEFERRABLE INITIALLY DEFERRED);
    INSERT INTO plan_notes SELECT plan FROM credit_plans;";

#[rstest]
#[case::oldest("oldest", OLDEST, *SUPPORTED.start())]
#[case::newest("newest", NEWEST, *SUPPORTED.end())]
#[tokio::test]
async fn a_whole_migration(#[case] name: &str, #[case] server: &'static str, #[case] major: u32) {
    // As some editors save it.
    let up = format!("\u{feff}{UP}\n{DEFERRED}");
    let down = format!("DROP TABLE plan_notes;\n{DOWN}");
    e2e(name, Setup { server, up, down, ..Setup::default() }, |world| async move {
        let grant = format!("GRANT EXECUTE ON FUNCTION postgres_fdw_handler() TO {}", world.db.app());
        world.db.run(&format!("{OTHERS}; {grant}")).await;
        assert_eq!(world.db.count("SELECT current_setting('server_version_num')::int / 10000").await, i64::from(major));
        let before = world.db.balances().await;
        let m = world.migrate("simplify", json!({"rollback": {"rehearsal": {"mode": "Daily"}}})).await;
        m.approve().await;
        let rehearsed = |s: &CreditMigrationStatus| s.rollback_rehearsal.as_ref().is_some_and(|r| r.passed.is_some());
        let status = m.until("the rollback rehearsed", rehearsed).await;
        assert_eq!(condition(&status, "RehearsalPassed"), "True RolledBackEqual");
        assert_eq!(condition(&status, "RollbackReady"), "True Switchable");
        let rehearsal = status.rehearsal.unwrap_or_else(|| panic!("no rehearsal"));
        let left_out: Vec<&str> = rehearsal.left_out.left_out.iter().map(|object| object.name.as_str()).collect();
        for name in ["event trigger watch", "extension postgres_fdw", "default privileges for role postgres"] {
            assert!(left_out.iter().any(|object| object.starts_with(name)), "{left_out:?} lacks {name}");
        }
        m.completed().await;
        m.assert_new().await;
        assert_eq!(world.db.balances().await, before, "a balance changed");
        m.cleaned().await;
        assert_eq!(world.deduct(7, 1).await, before[&7] - 1);
    })
    .await;
}
