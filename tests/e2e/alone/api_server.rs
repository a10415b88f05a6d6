//! The API server is down from within the window until after its deadline: the window ends all the same.

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
        // One whose switch was acknowledged, one whose SQL is under way.
        futures::join!(a.approve(), b.approve());
        b.switched().await;
        a.window(Task::Window, "the blocked gate", |p| p.state == WindowState::Blocked).await;
        let down = ApiServerDown::stop().await;
        drop(closed);

        // Not acknowledged: the runner undoes it at the deadline, and opens the gate, with nobody to ask.
        eventually("the way back without a controller", async || {
            let ledger = unswitched.db.ledger().await;
            if ledger == "up,down" && !unswitched.db.gate_closed().await { Ok(()) } else { Err(ledger) }
        })
        .await;
        assert_eq!(unswitched.db.schema().await, "v1");
        unswitched.db.writable().await.unwrap();
        assert_eq!(unswitched.running().await, "v1");
        assert_eq!(unswitched.deduct(1, 1).await, balances[0][&1] - 1);
        // Acknowledged: the application may be on its way to v2. Writes stay blocked, and it is told.
        eventually("the held window", async || {
            let state = switched
                .db
                .ask("SELECT progress->>'state' FROM credit_migration.window_record")
                .await
                .unwrap_or_default();
            if state == "Held" { Ok(()) } else { Err(state) }
        })
        .await;
        assert!(switched.db.gate_closed().await && switched.db.writable().await.is_err(), "writes are open");
        assert_eq!(switched.db.ledger().await, "up");
        down.start(&unswitched.client).await;

        // The controller learns what was done, and does what is left.
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
