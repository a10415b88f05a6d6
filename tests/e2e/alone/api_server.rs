//! The API server is down from within the window until after its deadline: the window ends nevertheless.

use credit_migration::api::{Phase, Task, WindowState};
use serde_json::json;

use crate::{
    cluster::{ApiServerDown, eventually},
    harness::{DEADLINE, Setup, World, e2e_many},
    latch::Latch,
};

#[tokio::test]
async fn down_until_after_the_deadline() {
    let setups = vec![
        Setup { exclusive: true, up: Latch::Migrate.up(), ..Setup::default() },
        Setup { exclusive: true, ..Setup::default() },
    ];
    e2e_many("api-server", true, setups, |worlds| async move {
        let [unswitched, switched] = &worlds[..] else { panic!() };
        let balances = [unswitched.db.balances().await, switched.db.balances().await];
        let mut spec = World::never_switched();
        spec["window"] = json!({"maxDuration": DEADLINE});
        let b = switched.migrate("simplify", spec).await;
        let a = unswitched.migrate("simplify", json!({"window": {"maxDuration": DEADLINE}})).await;
        for m in [&a, &b] {
            m.phase(Phase::AwaitingApproval).await;
        }
        let closed = unswitched.db.close(Latch::Migrate).await;
        // In one window the switch is acknowledged, in the other the SQL is running.
        futures::join!(a.approve(), b.approve());
        b.switched().await;
        a.window(Task::Window, "blocked writes", |p| p.state == WindowState::Blocked).await;
        let down = ApiServerDown::stop().await;
        drop(closed);

        // Not acknowledged: at the deadline the runner rolls back and unblocks writes, without any order.
        eventually("the rollback without a controller", async || {
            let ledger = unswitched.db.ledger().await;
            if ledger == "up,down" && !unswitched.db.writes_blocked().await { Ok(()) } else { Err(ledger) }
        })
        .await;
        assert_eq!(unswitched.db.schema().await, "v1");
        unswitched.db.writable().await.unwrap();
        assert_eq!(unswitched.running().await, "v1");
        assert_eq!(unswitched.deduct(1, 1).await, balances[0][&1] - 1);
        // Acknowledged: the application may already run v2. Writes stay blocked, and the record says so.
        eventually("the stuck window", async || {
            let stuck = switched
                .db
                .ask("SELECT progress->>'stuck' FROM credit_migration.window_record")
                .await
                .unwrap_or_default();
            if stuck == "true" { Ok(()) } else { Err(stuck) }
        })
        .await;
        assert!(switched.db.writes_blocked().await && switched.db.writable().await.is_err(), "writes are not blocked");
        assert_eq!(switched.db.ledger().await, "up");
        down.start(&unswitched.client).await;

        // The controller reads what was done, and does the rest.
        for m in [&a, &b] {
            let status = m.phase(Phase::RolledBack).await;
            assert_eq!(status.rollback.unwrap().cause, "DeadlinePassed");
            m.assert_old("up,down").await;
            assert_eq!(m.world.running().await, "v1");
            m.cleaned().await;
        }
        assert_eq!(switched.db.balances().await, balances[1]);
    })
    .await;
}
