//! A backup in several archives, its compression, and the limits of its load.

use std::{path::PathBuf, process::Command, time::Instant};

use credit_migration::{
    api::{BackupFormat, Compression, CompressionMethod, Reason, Task, sha256},
    runner::{
        clients::{pg_tools::Tools, rate_limit::RateLimit},
        database::fingerprint::Fingerprint,
        report::Progress,
        tasks::backup,
    },
};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::{
    backup::fake_pg_dump,
    harness::{DOWN, UP, World},
    programs,
};

/// A table with an archive of its own, whose name `pg_dump` would take for a pattern, and what depends on its rows.
const LARGE: &str = r#"
CREATE TABLE "Ev""en.t*s?" (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, body text NOT NULL);
ALTER TABLE "Ev""en.t*s?" ALTER COLUMN body SET STORAGE EXTERNAL;
INSERT INTO "Ev""en.t*s?" (body) SELECT repeat(md5(n::text), 256) FROM generate_series(1, 1500) AS n;
CREATE TABLE "Evens" (event_id bigint NOT NULL REFERENCES "Ev""en.t*s?" (id));
INSERT INTO "Evens" SELECT id FROM "Ev""en.t*s?" WHERE id % 2 = 0;
CREATE INDEX ON "Ev""en.t*s?" (md5(body));
CREATE MATERIALIZED VIEW bodies AS SELECT count(*) AS bodies, sum(length(body)) AS bytes FROM "Ev""en.t*s?";
SELECT lo_from_bytea(0, decode(md5('large object'), 'hex'));"#;

/// A world with a large table and format Directory.
async fn world(jobs: u32) -> World {
    let mut world = World::new().await;
    world.owner().await.batch_execute(LARGE).await.unwrap();
    world.sql(UP, DOWN);
    world.spec.plan.backup.format = BackupFormat::Directory;
    world.spec.plan.backup.jobs = jobs;
    world
}

fn manifest(world: &World) -> Value {
    serde_json::from_slice(&std::fs::read(world.object_file()).unwrap()).unwrap()
}

/// The files of the archives, by what they hold.
fn archives(world: &World) -> Vec<(String, PathBuf)> {
    let manifest = manifest(world);
    let of = |archive: &Value| {
        let text = |key: &str| archive[key].as_str().unwrap().to_owned();
        (text("holds"), world.object_file().with_file_name(text("name")))
    };
    manifest["archives"].as_array().unwrap().iter().map(of).collect()
}

fn contents(archive: &PathBuf) -> String {
    let output = Command::new(programs::CLIENT.join("pg_restore")).arg("--list").arg(archive).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn a_dump_in_several_archives_is_read_back_and_restored() {
    let mut world = world(3).await;
    world.spec.plan.backup.compression = Some(Compression { method: CompressionMethod::Zstd, level: Some(3) });
    let noted = world.backed_up().await.noted["backup"].clone();
    assert_eq!((&noted["format"], &noted["archives"], &noted["jobs"]), (&"Directory".into(), &3.into(), &3.into()));
    assert_eq!(noted["sha256"], sha256(&std::fs::read(world.object_file()).unwrap()));
    assert!(noted["object"].as_str().unwrap().ends_with("_pre_migration_0d9f2c11_1.dump/manifest.json"), "{noted}");
    let statistics = noted["statisticsObject"].as_str().unwrap();
    assert!(statistics.ends_with("_pre_migration_0d9f2c11_1.statistics.json"), "{noted}");
    assert!(world.file_of(statistics).exists());

    let manifest = manifest(&world);
    let mut bytes = 0;
    for archive in manifest["archives"].as_array().unwrap() {
        let file = world.object_file().with_file_name(archive["name"].as_str().unwrap());
        let found = std::fs::read(&file).unwrap();
        assert_eq!((&archive["bytes"], &archive["sha256"]), (&found.len().into(), &sha256(&found).into()));
        bytes += found.len();
        assert!(contents(&file).contains("Compression: zstd"), "{}", contents(&file));
    }
    assert_eq!(noted["bytes"], bytes);
    let found = archives(&world);
    let kinds: Vec<&str> = found.iter().map(|(holds, _)| holds.as_str()).collect();
    assert_eq!(kinds, ["Rest", "Schema", "Table"]);
    // The rows of each table are in one archive.
    let rows = |file| contents(file).lines().filter(|line| line.contains(" TABLE DATA ")).count();
    assert_eq!(found.iter().map(|(_, file)| rows(file)).collect::<Vec<_>>(), [rows(&found[0].1), 0, 1]);
    assert_eq!(manifest["archives"][2]["table"], r#"public."Ev""en.t*s?""#);
    assert!(!contents(&found[0].1).contains("TABLE DATA public Ev\"en.t*s?"));
    assert!(contents(&found[0].1).contains("TABLE DATA public Evens"));

    let verified = world.run(Task::VerifyBackup).await;
    assert!(verified.result.is_ok(), "{:?}", verified.result);
    assert_eq!(verified.noted["verification"]["bytes"], bytes);
    assert_eq!(verified.noted["verification"]["sha256"], noted["sha256"]);
    let rehearsed = world.run(Task::Rehearse).await;
    assert!(rehearsed.result.is_ok(), "{:?}", rehearsed.result);
    assert!(!world.has_scratch().await);
}

/// What is done by hand, by the manual; and that the copy is the original.
#[tokio::test]
async fn a_dump_in_several_archives_is_restored_by_hand() {
    let mut world = world(2).await;
    world.backed_up().await;
    let folder = world.object_file().parent().unwrap().to_owned();
    let script = format!(
        "set -e; cd {}; pg_restore() {{ {1}/pg_restore --dbname restored_{2} --exit-on-error --no-owner \"$@\"; }}
         {1}/psql -Xqd postgres -c 'CREATE DATABASE restored_{2}'
         pg_restore --section=pre-data schema.dump
         for rows in rest.dump table-*.dump; do pg_restore \"$rows\"; done
         pg_restore --section=post-data --jobs=2 schema.dump",
        folder.display(),
        programs::CLIENT.display(),
        world.number,
    );
    let script = match *programs::MAJOR {
        17.. => script,
        // Those do not know one setting of pg_restore.
        _ => script
            .replace("--exit-on-error", "")
            .replace("\"$@\";", "\"$@\" 2>&1 | grep -v transaction_timeout || true;"),
    };
    let mut shell = Command::new("bash");
    shell.arg("-c").arg(script).envs(world.superuser_env());
    let output = shell.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let figures = r#"SELECT concat_ws(' ', (SELECT count(*) FROM users), (SELECT sum(balance) FROM user_credits),
        (SELECT sum(hashtext(body)) FROM "Ev""en.t*s?"), (SELECT count(*) FROM "Evens"), (SELECT bytes FROM bodies),
        (SELECT count(*) FROM pg_index WHERE indrelid = '"Ev""en.t*s?"'::regclass AND indisvalid),
        (SELECT count(*) FROM pg_constraint WHERE contype = 'f'),
        (SELECT md5(string_agg(lo_get(oid), '')) FROM pg_largeobject_metadata),
        (SELECT string_agg(coalesce(last_value, 0)::text, ',' ORDER BY schemaname, sequencename) FROM pg_sequences))"#;
    let mut found = vec![];
    for database in [format!("shop_{}", world.number), format!("restored_{}", world.number)] {
        let session = world.root_session(&database).await;
        found.push(session.query_one(figures, &[]).await.unwrap().get::<_, String>(0));
    }
    assert_eq!(found[0], found[1]);
}

#[tokio::test]
async fn one_altered_archive_of_several_is_noticed() {
    let mut world = world(2).await;
    world.backed_up().await;
    let files = archives(&world).into_iter().map(|(_, file)| file).chain([world.object_file()]);
    for file in files {
        let whole = std::fs::read(&file).unwrap();
        let mut altered = whole.clone();
        let middle = altered.len() / 2;
        altered[middle] ^= 1;
        std::fs::write(&file, altered).unwrap();
        for task in [Task::VerifyBackup, Task::Rehearse] {
            let outcome = world.run(task).await;
            assert_eq!(outcome.failure().reason, Reason::BackupAltered, "{task:?} {}", outcome.failure());
        }
        std::fs::remove_file(&file).unwrap();
        assert_eq!(world.run(Task::VerifyBackup).await.failure().reason, Reason::BackupUnreadable);
        std::fs::write(&file, whole).unwrap();
    }
    assert!(world.run(Task::VerifyBackup).await.result.is_ok());
    assert!(!world.has_scratch().await);
}

#[tokio::test]
async fn a_dump_of_which_one_program_fails_leaves_nothing() {
    let mut world = world(2).await;
    let real = programs::CLIENT.join("pg_dump");
    for fails in ["--table=*) head -c 20000000 /dev/urandom; exit 1", "--section=post-data) exit 1"] {
        let script = format!("for a; do case $a in {fails};; esac; done\nexec {} \"$@\"", real.display());
        world.tools = fake_pg_dump(&world, &script);
        let outcome = world.run(Task::Backup).await;
        assert_eq!(outcome.failure().reason, Reason::DumpFailed, "{}", outcome.failure());
        assert_eq!(world.stored(), Vec::<PathBuf>::new(), "no object, no part");
        assert_eq!(world.count("SELECT count(*) FROM credit_migration.baseline").await, 0);
    }
}

/// A pod that is killed leaves archives without a manifest. They are of no backup.
#[tokio::test]
async fn archives_that_a_killed_pod_left_are_of_no_backup() {
    let mut world = world(1).await;
    let (real, waits) = (programs::CLIENT.join("pg_dump"), world.root.join("waits"));
    let script = format!(
        "for a; do case $a in --section=post-data) touch {}; exec sleep 1000;; esac; done\nexec {} \"$@\"",
        waits.display(),
        real.display()
    );
    world.tools = fake_pg_dump(&world, &script);
    let progress = Progress::default();
    let context = world.context(&progress);
    tokio::select! {
        ended = backup::run(&context) => panic!("{ended:?}"),
        () = async { while !waits.exists() { tokio::time::sleep(std::time::Duration::from_millis(20)).await } } => {}
    }
    let left: Vec<PathBuf> =
        world.stored().into_iter().filter(|file| file.extension().is_some_and(|e| e == "dump")).collect();
    assert_eq!(left.len(), 2, "{left:?}");
    assert!(progress.fields().get("backup").is_none());

    world.tools = Tools::in_folder(&*programs::CLIENT);
    world.spec.attempt = 2;
    world.backed_up().await;
    assert!(archives(&world).iter().all(|(_, file)| !left.contains(file)), "{left:?}");
    assert!(world.run(Task::VerifyBackup).await.result.is_ok());
}

#[tokio::test]
async fn a_dump_by_several_jobs_that_is_terminated_leaves_nothing() {
    let mut world = world(2).await;
    let (real, waits) = (programs::CLIENT.join("pg_dump"), world.root.join("waits"));
    let script = format!(
        "for a; do case $a in --section=post-data) touch {}; exec sleep 1000;; esac; done\nexec {} \"$@\"",
        waits.display(),
        real.display()
    );
    world.tools = fake_pg_dump(&world, &script);
    let progress = Progress::default();
    let mut context = world.context(&progress);
    context.stop = CancellationToken::new();
    let stop = context.stop.clone();
    let terminated = async {
        while !waits.exists() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        stop.cancel();
    };
    let (ended, ()) = tokio::join!(backup::run(&context), terminated);
    assert!(ended.is_err(), "{ended:?}");
    assert_eq!(world.stored(), Vec::<PathBuf>::new());
}

/// `TRUNCATE` takes rows from a snapshot, too.
#[tokio::test]
async fn no_table_can_be_truncated_between_the_snapshot_and_its_dump() {
    let mut world = world(1).await;
    let (real, seen) = (&programs::CLIENT, world.root.join("locks"));
    let locks =
        "SELECT count(*) FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid) WHERE l.relation::regclass::text \
        ~ ''^\"Ev'' AND l.mode = ''AccessShareLock'' AND a.application_name = ''credit-migration/backup''"
            .replace("''", "'\\''");
    let script = format!("{0}/psql -XAtc '{locks}' >> {1}\nexec {0}/pg_dump \"$@\"", real.display(), seen.display());
    world.tools = fake_pg_dump(&world, &script);
    world.backed_up().await;
    assert_eq!(std::fs::read_to_string(seen).unwrap(), "1\n1\n1\n");
}

#[tokio::test]
async fn each_method_compresses() {
    let mut world = World::new().await;
    for (method, level, named) in [
        (CompressionMethod::None, None, "none"),
        (CompressionMethod::Gzip, Some(9), "gzip"),
        (CompressionMethod::Lz4, None, "lz4"),
        (CompressionMethod::Zstd, Some(19), "zstd"),
    ] {
        world.spec.plan.backup.compression = Some(Compression { method, level });
        world.spec.attempt += 1;
        world.backed_up().await;
        let contents = contents(&world.object_file());
        assert!(contents.contains(&format!("Compression: {named}")), "{contents}");
        assert!(world.run(Task::VerifyBackup).await.result.is_ok(), "{method}");
    }
}

/// All jobs together stay below the limit. Only a lower bound of the time is asked for, which no load can break.
#[tokio::test]
async fn a_dump_is_no_faster_than_its_limit() {
    let mut world = world(3).await;
    world.spec.plan.backup.compression = Some(Compression { method: CompressionMethod::None, level: None });
    world.spec.plan.runner.limits.dump_per_second = Some("5M".to_owned());
    let started = Instant::now();
    let bytes = world.backed_up().await.noted["backup"]["bytes"].as_f64().unwrap();
    assert!(bytes > 11e6, "{bytes}");
    // What passes at once is what one second allows.
    assert!(started.elapsed().as_secs_f64() >= bytes / 5e6 - 1.0, "{:?} for {bytes} bytes", started.elapsed());
}

#[tokio::test]
async fn a_fingerprint_in_chunks_is_that_of_whole_tables() {
    let world = world(1).await;
    let mut client = world.target().connect("fingerprint").await.unwrap();
    let chunks = RateLimit::new(Some(1 << 50));
    let whole = Fingerprint::take(&mut client, &RateLimit::new(None), |_, _| {}).await.unwrap();
    assert_eq!(Fingerprint::take(&mut client, &chunks, |_, _| {}).await.unwrap(), whole);
    let last = r#"UPDATE "Ev""en.t*s?" SET body = 'other' WHERE id = 1500"#;
    world.owner().await.batch_execute(last).await.unwrap();
    let changed = Fingerprint::take(&mut client, &chunks, |_, _| {}).await.unwrap();
    assert_eq!(whole.differences(&changed), [r#"table public."Ev""en.t*s?": rows changed"#]);
}

/// As of the dump: a lower bound alone.
#[tokio::test]
async fn a_fingerprint_is_no_faster_than_its_limit() {
    let world = world(1).await;
    let mut client = world.target().connect("fingerprint").await.unwrap();
    let started = Instant::now();
    Fingerprint::take(&mut client, &RateLimit::new(Some(5_000_000)), |_, _| {}).await.unwrap();
    assert!(started.elapsed().as_secs_f64() >= 11e6 / 5e6 - 1.0, "{:?}", started.elapsed());
}
