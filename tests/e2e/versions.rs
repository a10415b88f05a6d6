//! A whole migration on the oldest and on the newest supported PostgreSQL; all other tests take the usual server.

use credit_migration::{api::CreditMigrationStatus, runner::database::version::SUPPORTED};
use rstest::rstest;
use serde_json::json;

use super::{
    database::{NEWEST, OLDEST},
    harness::{Setup, e2e},
    migration::condition,
};

#[rstest]
#[case::oldest("oldest", OLDEST, *SUPPORTED.start())]
#[case::newest("newest", NEWEST, *SUPPORTED.end())]
#[tokio::test]
async fn a_whole_migration(#[case] name: &str, #[case] server: &'static str, #[case] major: u32) {
    e2e(name, Setup { server, ..Setup::default() }, |world| async move {
        assert_eq!(world.db.count("SELECT current_setting('server_version_num')::int / 10000").await, i64::from(major));
        let before = world.db.balances().await;
        let m = world.migrate("simplify", json!({"rollback": {"rehearsal": {"mode": "Daily"}}})).await;
        m.approve().await;
        let rehearsed = |s: &CreditMigrationStatus| s.rollback_rehearsal.as_ref().is_some_and(|r| r.passed.is_some());
        let status = m.until("the rollback rehearsed", rehearsed).await;
        assert_eq!(condition(&status, "RehearsalPassed"), "True RolledBackEqual");
        assert_eq!(condition(&status, "RollbackReady"), "True Switchable");
        m.completed().await;
        m.assert_new().await;
        assert_eq!(world.db.balances().await, before, "a balance changed");
        m.cleaned().await;
        assert_eq!(world.deduct(7, 1).await, before[&7] - 1);
    })
    .await;
}
