//! The place of the rehearsals' copy: another server, or next to the original within limits.

use std::{
    net::TcpListener,
    path::PathBuf,
    sync::OnceLock,
    time::{Duration, Instant},
};

use credit_migration::{
    api::{Finding, Reason, RehearsalEvidence, Task, mounts},
    runner::database::{connection::Target, version::SUPPORTED},
};
use serde_json::json;
use tokio_postgres::Client;

use crate::{
    harness::{DOWN, Outcome, Script, UP, World},
    programs,
};

const START_TIMEOUT: Duration = Duration::from_secs(120);

/// The other server: of the newest version, whatever that of the original.
fn other() -> u16 {
    static OTHER: OnceLock<(u16, Script)> = OnceLock::new();
    let started = OTHER.get_or_init(|| {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let programs = programs::folder(&SUPPORTED.end().to_string());
        let script = Script::start("other.sh", &[programs, PathBuf::from(port.to_string())]);
        assert_eq!(script.said.as_deref(), Some("started"));
        (port, script)
    });
    started.0
}

fn url(port: u16, user: &str, password: &str) -> String {
    format!("postgresql://{user}:{password}@127.0.0.1:{port}/postgres?sslmode=disable")
}

async fn root(port: u16) -> Client {
    let target = Target::parse(&url(port, "postgres", "root-secret"), None).unwrap();
    let started = Instant::now();
    loop {
        match target.connect("test").await {
            Ok(client) => return client,
            Err(failure) => assert!(started.elapsed() < START_TIMEOUT, "{failure}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn place(outcome: &Outcome) -> Finding {
    outcome.findings().into_iter().find(|finding| finding.name == "place of the copy").unwrap()
}

#[tokio::test]
async fn the_copy_is_made_on_another_server() {
    let mut world = World::new().await;
    let (number, port) = (world.number, tokio::task::spawn_blocking(other).await.unwrap());
    let root = root(port).await;
    let role = format!("copier_{number}");
    root.batch_execute(&format!("CREATE ROLE {role} LOGIN PASSWORD 'migrator-secret'")).await.unwrap();
    world.mount(&format!("{}/url", mounts::COPY), &url(port, &role, "migrator-secret"));
    world.spec.plan.rehearsal.connection =
        Some(serde_json::from_value(json!({"secretRef": {"name": "rehearsal-db", "key": "url"}})).unwrap());
    let refused = world.run(Task::Preflight).await;
    let creates = refused.findings().into_iter().find(|finding| finding.name == "CREATEDB").unwrap();
    assert!(creates.message.contains(&format!("ALTER ROLE \"{role}\" CREATEDB;")), "{creates:?}");
    let missing = place(&refused);
    assert_eq!(missing.reason, Some(Reason::RoleMissing));
    assert!(missing.message.contains(&format!("no role app_{number}, migrator_{number}, and")), "{missing:?}");
    let roles = format!("ALTER ROLE {role} CREATEDB; CREATE ROLE app_{number}; CREATE ROLE migrator_{number}");
    root.batch_execute(&roles).await.unwrap();
    let missing = place(&world.run(Task::Preflight).await);
    assert_eq!(missing.reason, Some(Reason::PrivilegeMissing));
    assert!(missing.message.contains(&format!("GRANT them TO \"{role}\";")), "{missing:?}");
    root.batch_execute(&format!("GRANT app_{number}, migrator_{number} TO {role}")).await.unwrap();
    // It needs no right of its own to create databases next to the original.
    world.alter("ALTER ROLE migrator_{n} NOCREATEDB").await;
    let preflight = world.run(Task::Preflight).await;
    assert!(preflight.result.is_ok(), "{:?}", preflight.findings());
    let found = place(&preflight).message;
    let newest = SUPPORTED.end();
    let words = format!("on another server, PostgreSQL {newest} at 127.0.0.1:{port}: ");
    assert!(found.starts_with(&words) && found.contains("free space cannot be seen"), "{found}");

    world.backed_up().await;
    let rehearsed = world.run(Task::Rehearse).await;
    assert!(rehearsed.result.is_ok(), "{:?}", rehearsed.result);
    let evidence: RehearsalEvidence = serde_json::from_value(rehearsed.noted["rehearsal"].clone()).unwrap();
    assert_eq!(evidence.server, Some(format!("PostgreSQL {newest} at 127.0.0.1:{port}")));
    assert!(evidence.left_out.is_empty(), "{:?}", evidence.left_out);
    world.cutover(UP).await;
    world.sql(UP, DOWN);
    let again = world.run(Task::RehearseRollback).await;
    let message = again.result.unwrap();
    let message = format!("{message} {}", again.noted["rollbackRehearsal"]["message"]);
    assert!(message.contains("on another server"), "{message}");
    let scratch = format!("SELECT count(*) FROM pg_database WHERE datname = 'scratch_{number}'");
    let left = async || root.query_one(&scratch, &[]).await.unwrap().get::<_, i64>(0);
    assert_eq!((left().await, world.has_scratch().await), (0, false));

    // What a killed pod has left there.
    let mark = format!(
        "COMMENT ON DATABASE scratch_{number} IS 'credit-migration: scratch database of migration {}, dropped after \
            its rehearsal'",
        world.spec.migration_uid
    );
    root.batch_execute(&format!("CREATE DATABASE scratch_{number} OWNER {role}")).await.unwrap();
    root.batch_execute(&mark).await.unwrap();
    let cleaned = world.run(Task::Cleanup).await.result.unwrap();
    assert!(cleaned.contains("1 scratch databases dropped"), "{cleaned}");
    assert_eq!(left().await, 0);
}

#[tokio::test]
async fn a_copy_that_is_too_large_is_not_made_next_to_the_original() {
    let mut world = World::new().await;
    let found = place(&world.run(Task::Preflight).await);
    assert_eq!(found.reason, None, "{found:?}");
    assert!(found.message.contains("limit 100Gi (spec.rehearsal.maxSize); "), "{found:?}");
    world.backed_up().await;
    world.spec.plan.rehearsal.max_size = "1Mi".to_owned();
    let found = place(&world.run(Task::Preflight).await);
    assert_eq!(found.reason, Some(Reason::CopyTooRisky));
    let words = "MB, limit 1Mi (spec.rehearsal.maxSize); next: set spec.rehearsal.connection";
    assert!(found.message.contains(words), "{found:?}");
    // Nor later: it may have grown since.
    let refused = world.run(Task::Rehearse).await;
    assert_eq!(refused.failure().reason, Reason::CopyTooRisky, "{}", refused.failure());
    assert!(!world.has_scratch().await);
}
