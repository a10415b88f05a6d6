//! Backup and VerifyBackup.

use std::os::unix::fs::PermissionsExt;

use credit_migration::{
    api::{Reason, Task, mounts, sha256},
    runner::clients::pg_tools::Tools,
};
use serde_json::Value;

use crate::{
    harness::{USERS, World},
    programs,
};

#[tokio::test]
async fn a_backup_can_be_read_back_and_reports_its_statistics() {
    let mut world = World::new().await;
    let outcome = world.backed_up().await;
    let baseline = &outcome.noted["baseline"];
    assert_eq!(baseline["users"], USERS);
    assert_eq!(baseline["totalBalance"], "451500");
    assert_eq!(baseline["totalPurchased"], "15000");
    assert_eq!(baseline["averageBalance"], "1505.0000");
    assert_eq!(baseline["maxBalance"], "3000");
    assert_eq!(baseline["transactions"][0]["type"], "bonus");
    assert_eq!(baseline["transactions"][1]["count"], USERS);
    assert_eq!(baseline["transactions"][1]["totalAmount"], "1500");
    assert_eq!(world.count("SELECT count(*) FROM credit_migration.baseline").await, 300);

    let file = std::fs::read(world.object_file()).unwrap();
    assert_eq!(outcome.noted["backup"]["bytes"], file.len());
    assert_eq!(outcome.noted["backup"]["sha256"], sha256(&file));
    let statistics = world.object_file().with_extension("statistics.json");
    let statistics: Value = serde_json::from_slice(&std::fs::read(statistics).unwrap()).unwrap();
    assert_eq!((&statistics["dumpSha256"], &statistics["baseline"]), (&outcome.noted["backup"]["sha256"], baseline));
    let name = world.object_file().file_name().unwrap().to_str().unwrap().to_owned();
    assert!(name.ends_with("_pre_migration_0d9f2c11_1.dump") && name.starts_with("shop_"), "{name}");

    let verified = world.run(Task::VerifyBackup).await;
    assert!(verified.result.is_ok(), "{:?}", verified.result);
    assert_eq!(verified.noted["verification"]["bytes"], file.len());
    assert!(verified.noted["verification"]["entries"].as_u64().unwrap() > 30);
}

#[tokio::test]
async fn a_column_of_free_text_makes_no_endless_list_of_types() {
    let mut world = World::new().await;
    world.alter("UPDATE credit_transactions SET description = repeat('x', 100) || id").await;
    world.spec.plan.credits.transactions.as_mut().unwrap().type_column = Some("description".into());
    let outcome = world.backed_up().await;
    let kinds = outcome.noted["baseline"]["transactions"].as_array().unwrap().clone();
    let all = world.count("SELECT count(*) FROM credit_transactions").await;
    let counted: i64 = kinds.iter().map(|kind| kind["count"].as_i64().unwrap()).sum();
    assert!(all > 100 && counted == all, "{counted} of {all}");
    // Those of the first 64 characters are one here: the most frequent 50 types, and all others.
    assert_eq!(kinds.len(), 2, "{kinds:?}");
    let other = kinds.iter().find(|kind| kind["type"] == "other").unwrap();
    assert_eq!(other["count"], all - 50);
}

#[tokio::test]
async fn a_cut_or_altered_object_is_noticed() {
    let mut world = World::new().await;
    world.backed_up().await;
    let whole = std::fs::read(world.object_file()).unwrap();
    let recorded = world.spec.inputs.backup_sha256.clone();

    let cut = &whole[..whole.len() / 2];
    std::fs::write(world.object_file(), cut).unwrap();
    assert_eq!(world.run(Task::VerifyBackup).await.failure().reason, Reason::BackupAltered);
    // A dump that was cut before its digest was taken.
    world.spec.inputs.backup_sha256 = Some(sha256(cut));
    let failure = world.run(Task::VerifyBackup).await;
    assert_eq!(failure.failure().reason, Reason::BackupUnreadable, "{}", failure.failure());

    let mut altered = whole.clone();
    let middle = altered.len() / 2;
    altered[middle] ^= 1;
    std::fs::write(world.object_file(), altered).unwrap();
    world.spec.inputs.backup_sha256 = recorded;
    assert_eq!(world.run(Task::VerifyBackup).await.failure().reason, Reason::BackupAltered);
    let rehearsed = world.run(Task::Rehearse).await;
    assert_eq!(rehearsed.failure().reason, Reason::BackupAltered, "{}", rehearsed.failure());
    assert!(!world.has_scratch().await);

    std::fs::remove_file(world.object_file()).unwrap();
    assert_eq!(world.run(Task::VerifyBackup).await.failure().reason, Reason::BackupUnreadable);
}

/// A folder with a `pg_dump` that does what a script says.
pub fn fake_pg_dump(world: &World, script: &str) -> Tools {
    let folder = world.root.join("bin");
    std::fs::create_dir_all(&folder).unwrap();
    let real = programs::CLIENT.join("pg_dump");
    let text = format!("#!/bin/sh\nif [ \"$1\" = --version ]; then exec {0} --version; fi\n{script}\n", real.display());
    std::fs::write(folder.join("pg_dump"), text).unwrap();
    std::fs::set_permissions(folder.join("pg_dump"), std::fs::Permissions::from_mode(0o755)).unwrap();
    Tools::in_folder(folder)
}

/// A transaction with a number would keep the WAL of each logical slot for the hours of a dump.
#[tokio::test]
async fn a_dump_holds_no_transaction_number() {
    let mut world = World::new().await;
    let (real, seen) = (&programs::CLIENT, world.root.join("numbers"));
    let numbers =
        "SELECT count(*) FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND datname = current_database()";
    let script = format!("{0}/psql -XAtc '{numbers}' > {1}\nexec {0}/pg_dump \"$@\"", real.display(), seen.display());
    world.tools = fake_pg_dump(&world, &script);
    world.backed_up().await;
    assert_eq!(std::fs::read_to_string(seen).unwrap(), "0\n");
    assert_eq!(world.count("SELECT count(*) FROM credit_migration.baseline").await, i64::try_from(USERS).unwrap());
}

#[tokio::test]
async fn a_dump_that_fails_midway_leaves_nothing() {
    for script in [
        "head -c 40000000 /dev/urandom; echo 'pg_dump: error: query failed: server closed the connection' >&2; exit 1",
        "head -c 40000000 /dev/urandom; kill -9 $$",
    ] {
        let mut world = World::new().await;
        world.tools = fake_pg_dump(&world, script);
        let outcome = world.run(Task::Backup).await;
        assert_eq!(outcome.failure().reason, Reason::DumpFailed, "{}", outcome.failure());
        assert_eq!(world.stored(), Vec::<std::path::PathBuf>::new(), "no object, no part");
        assert_eq!(
            world.count("SELECT count(*) FROM credit_migration.baseline").await,
            0,
            "a baseline without its dump"
        );
    }
}

#[tokio::test]
async fn the_store_says_what_is_wrong() {
    let mut world = World::new().await;
    world.mount(mounts::STORE_SECRET_ACCESS_KEY, "wrong");
    let outcome = world.run(Task::Backup).await;
    assert_eq!(outcome.failure().reason, Reason::BucketDenied, "{}", outcome.failure());
    assert!(
        outcome.failure().message.contains("Secret backup-bucket (SignatureDoesNotMatch)"),
        "{}",
        outcome.failure()
    );

    world.mount(mounts::STORE_SECRET_ACCESS_KEY, "key-secret");
    world.spec.plan.backup.store.url = "s3://no-such-bucket/p/".to_owned();
    let outcome = world.run(Task::Backup).await;
    assert_eq!(outcome.failure().reason, Reason::BucketMissing, "{}", outcome.failure());
}
