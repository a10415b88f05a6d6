//! Tables that are parked instead of being dropped.

use credit_migration::api::{DecisionKind, Phase, Step, StepState};
use serde_json::json;

use super::harness::{APPROVERS, LASTS, Setup, World, e2e};

/// A table that the new version does not need, with a grant of the application.
async fn old_orders(world: &World) {
    let (owner, app) = (world.db.migrator(), world.db.app());
    let sql = format!(
        "CREATE TABLE old_orders (id bigserial PRIMARY KEY); INSERT INTO old_orders DEFAULT VALUES;
         ALTER TABLE old_orders OWNER TO {owner}; GRANT SELECT ON old_orders TO {app}"
    );
    world.db.run(&sql).await;
}

const ACL: &str = "SELECT relacl::text FROM pg_class WHERE oid = to_regclass('old_orders')";
const PARKED: &str = "SELECT to_regclass('credit_migration_parked.old_orders')::text";

#[tokio::test]
async fn parked_tables_come_back_with_a_rollback() {
    e2e("parked", Setup::default(), |world| async move {
        old_orders(&world).await;
        let acl = world.db.ask(ACL).await;
        let park = json!({"migration": {"park": {"tables": ["old_orders"]}}, "monitoring": {"duration": LASTS}});
        let m = world.migrate("simplify", park).await;
        m.approve().await;
        m.phase(Phase::Monitoring).await;
        m.assert_new().await;
        assert_eq!((world.db.ask(ACL).await, world.db.ask(PARKED).await.is_some()), (None, true));
        m.decide(APPROVERS[0], DecisionKind::Rollback, None).await.unwrap();
        m.phase(Phase::RolledBack).await;
        m.assert_old("up,down").await;
        assert_eq!((world.db.ask(ACL).await, world.db.ask(PARKED).await), (acl, None));
        m.cleaned().await;
    })
    .await;
}

#[tokio::test]
async fn parked_tables_are_dropped_after_keep() {
    e2e("dropped", Setup::default(), |world| async move {
        old_orders(&world).await;
        let park = json!({"migration": {"park": {"tables": ["old_orders"], "dropAfter": "1s"}}});
        let m = world.migrate("simplify", park).await;
        m.approve().await;
        m.step(Step::Decide).await;
        assert!(world.db.ask(PARKED).await.is_some(), "not before someone decides");
        m.completed().await;
        let dropped = |step: &credit_migration::api::StepStatus| {
            step.name == Step::DropParked && step.state == StepState::Succeeded
        };
        m.until("the parked tables dropped", |status| status.steps.iter().any(dropped)).await;
        let schema = "SELECT count(*) FROM pg_namespace WHERE nspname = 'credit_migration_parked'";
        assert_eq!(world.db.count(schema).await, 0);
    })
    .await;
}
