//! Parked tables: Preflight, both rehearsals, and the drop.

use credit_migration::api::{Reason, Task};
use serde_json::json;

use crate::harness::World;

const UP: &str = "ALTER TABLE users ADD COLUMN plan text;
    UPDATE users SET plan = (SELECT max(name) FROM away.credit_packages)";
const DOWN: &str = "ALTER TABLE users DROP COLUMN plan;
    DO $$ BEGIN IF NOT EXISTS (SELECT FROM credit_packages) THEN RAISE 'not back'; END IF; END $$";

async fn parking() -> World {
    let mut world = World::new().await;
    let park = json!({"tables": ["credit_packages", "public.credit_purchases"], "schema": "away"});
    world.spec.plan.migration.park = Some(serde_json::from_value(park).unwrap());
    world.spec.plan.migration.verify_down = None;
    world.sql(UP, DOWN);
    world
}

#[tokio::test]
async fn parked_tables_are_moved_on_the_copy_and_back() {
    let mut world = parking().await;
    let found = world.run(Task::Preflight).await.findings();
    let finding = found.iter().find(|finding| finding.name == "parked tables").unwrap();
    let text = "public.credit_packages, public.credit_purchases can be moved to schema away";
    assert_eq!((finding.reason, finding.message.as_str()), (None, text));

    world.backed_up().await;
    let outcome = world.run(Task::Rehearse).await;
    assert!(outcome.result.is_ok(), "{:?}", outcome.result);
    assert_eq!(outcome.noted["rehearsal"].get("rightsLost"), None, "what is moved away is no lost right");
    assert_eq!(world.count("SELECT count(*) FROM credit_migration.parked_tables").await, 0, "the copy's are its own");

    // What is moved is not there to be dropped.
    world.sql("DROP TABLE credit_packages", DOWN);
    let outcome = world.run(Task::Rehearse).await;
    assert_eq!(outcome.failure().reason, Reason::SqlFailed, "{}", outcome.failure());
    // What is missing after the rollback is found: the down SQL cannot drop it either.
    world.sql(UP, "ALTER TABLE users DROP COLUMN plan; DROP TABLE credit_purchases");
    let outcome = world.run(Task::Rehearse).await;
    assert_eq!(outcome.failure().reason, Reason::RollbackNotEqual, "{}", outcome.failure());
    assert!(!world.has_scratch().await);
}

#[tokio::test]
async fn parked_tables_are_part_of_the_rehearsed_rollback_and_are_dropped_at_last() {
    let mut world = parking().await;
    world.cutover(UP).await;
    let outcome = world.run(Task::RehearseRollback).await;
    assert!(outcome.result.is_ok(), "{:?}", outcome.result);
    assert_eq!(world.count("SELECT count(*) FROM away.credit_packages").await, 1, "still parked");
    let owned = "SELECT count(*) FROM pg_class c, aclexplode(c.relacl) AS i WHERE i.grantee <> c.relowner
        AND c.relnamespace = 'away'::regnamespace";
    assert_eq!(world.count(owned).await, 0);

    assert_eq!(world.run(Task::Cleanup).await.result.map(|_| ()), Ok(()));
    assert_eq!(world.count("SELECT count(*) FROM away.credit_packages").await, 1, "not by Cleanup");
    for left in [2, 0] {
        let dropped = world.run(Task::DropParked).await.result;
        assert_eq!(dropped, Ok(format!("{left} parked tables dropped")));
    }
    assert_eq!(world.count("SELECT count(*) FROM pg_namespace WHERE nspname = 'away'").await, 0);
}
