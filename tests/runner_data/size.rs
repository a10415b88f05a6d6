//! Figures of the manual: memory of the runner, and what jobs are worth. Ignored, since they take minutes and
//! gigabytes:
//! `cargo test --test runner_data -- --ignored --nocapture size`.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use credit_migration::api::{BackupFormat, Compression, CompressionMethod, Task};

use crate::harness::{DOWN, UP, World};

/// Memory of this process and of those that it has started, in KiB: the largest sum that was seen, and the largest of
/// each program.
#[derive(Default)]
struct Peak {
    sum: u64,
    each: BTreeMap<String, u64>,
}

/// Name, parent, and the most memory so far, of a process.
fn process(pid: &str) -> Option<(String, u32, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let memory = field("VmHWM:")?.strip_suffix(" kB")?.parse().ok()?;
    let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
    let program = command.split('\0').rfind(|word| word.ends_with("/pg_dump") || word.ends_with("/pg_restore"));
    let name = program.and_then(|path| path.rsplit('/').next()).unwrap_or(field("Name:")?);
    Some((name.to_owned(), field("PPid:")?.parse().ok()?, memory))
}

impl Peak {
    fn read(&mut self) {
        let own = std::process::id();
        let mut all = BTreeMap::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let pid = entry.file_name().to_string_lossy().into_owned();
            if let (Ok(number), Some(found)) = (pid.parse::<u32>(), process(&pid)) {
                all.insert(number, found);
            }
        }
        // The servers are started by a shell, and are no part of the runner.
        let is_own = |mut pid: u32| loop {
            match all.get(&pid) {
                _ if pid == own => return true,
                Some((name, parent, _)) if name != "sh" => pid = *parent,
                _ => return false,
            }
        };
        let mut sum = 0;
        for (_, (name, _, memory)) in all.iter().filter(|(pid, _)| is_own(**pid)) {
            sum += memory;
            let most = self.each.entry(name.clone()).or_default();
            *most = (*most).max(*memory);
        }
        self.sum = self.sum.max(sum);
    }
}

/// Runs a task; how long it took, and the most memory meanwhile.
async fn measured(world: &mut World, task: Task) -> (Duration, Peak) {
    // From here on the process counts again.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let (mut peak, started) = (Peak::default(), Instant::now());
    let run = async {
        match task {
            Task::Backup => world.backed_up().await,
            other => world.run(other).await,
        }
    };
    tokio::pin!(run);
    let mut ticks = tokio::time::interval(Duration::from_millis(50));
    let outcome = loop {
        tokio::select! {
            outcome = &mut run => break outcome,
            _ = ticks.tick() => peak.read(),
        }
    };
    outcome.result.unwrap();
    (started.elapsed(), peak)
}

async fn gibibytes(world: &World) -> f64 {
    let bytes = world.count("SELECT pg_database_size('shop_{n}')").await;
    f64::from(u32::try_from(bytes >> 20).unwrap()) / 1024.0
}

/// `GB` gigabytes of rows (default 1); then a row with 200 MB.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes, and gigabytes of disk"]
async fn size_of_the_runner_in_memory() {
    let gigabytes: i64 = std::env::var("GB").map_or(1, |text| text.parse().unwrap());
    let mut world = World::new().await;
    world.sql(UP, DOWN);
    let rows = gigabytes * 1_000_000_000 / 128;
    let fill = format!(
        "CREATE TABLE accounts (aid bigint, bid int, abalance int, filler char(84));
         INSERT INTO accounts SELECT n, n % 100, n, md5(n::text) FROM generate_series(1, {rows}) AS n"
    );
    world.owner().await.batch_execute(&fill).await.unwrap();
    let mut most = 0;
    for (format, jobs) in [(BackupFormat::Custom, 1), (BackupFormat::Directory, 4)] {
        (world.spec.plan.backup.format, world.spec.plan.backup.jobs) = (format, jobs);
        for task in [Task::Backup, Task::VerifyBackup, Task::Rehearse] {
            let (took, peak) = measured(&mut world, task).await;
            let size = gibibytes(&world).await;
            println!("{size:.1} GiB, {format}, {jobs} jobs, {task}: {} MiB {:?} {took:.0?}", peak.sum >> 10, peak.each);
            most = most.max(peak.sum);
        }
    }
    let large = "DROP TABLE accounts; CREATE TABLE files (body bytea);
        INSERT INTO files SELECT decode(repeat(md5('x'), 12500000), 'hex')";
    world.owner().await.batch_execute(large).await.unwrap();
    (world.spec.plan.backup.format, world.spec.plan.backup.jobs) = (BackupFormat::Custom, 1);
    for task in [Task::Backup, Task::VerifyBackup] {
        let (took, peak) = measured(&mut world, task).await;
        println!("a row of 200 MB, {task}: {} MiB {:?} {took:.0?}", peak.sum >> 10, peak.each);
    }
    assert!(most < 128 << 10, "{most} KiB, limit 128 MiB");
}

/// Eight tables of `MB` megabytes each (default 64): medians of three.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes, and gigabytes of disk"]
async fn size_of_the_gain_by_jobs() {
    let megabytes: i64 = std::env::var("MB").map_or(64, |text| text.parse().unwrap());
    let mut world = World::new().await;
    world.sql(UP, DOWN);
    for table in 0..8 {
        let fill = format!(
            "CREATE TABLE entries_{table} (id bigint PRIMARY KEY, user_id bigint, note text);
             INSERT INTO entries_{table} SELECT n, n % 1000, md5(n::text) || md5((n + {table})::text)
                 FROM generate_series(1, {} * 1000000 / 120) AS n;
             CREATE INDEX ON entries_{table} (user_id); CREATE INDEX ON entries_{table} (note)",
            megabytes
        );
        world.owner().await.batch_execute(&fill).await.unwrap();
    }
    println!("{:.1} GiB", gibibytes(&world).await);
    for method in [CompressionMethod::Gzip, CompressionMethod::Zstd] {
        world.spec.plan.backup.compression = Some(Compression { method, level: None });
        for (format, jobs) in [
            (BackupFormat::Custom, 1),
            (BackupFormat::Directory, 1),
            (BackupFormat::Directory, 2),
            (BackupFormat::Directory, 4),
        ] {
            (world.spec.plan.backup.format, world.spec.plan.backup.jobs) = (format, jobs);
            let mut seconds: [Vec<f64>; 3] = Default::default();
            let mut bytes = 0;
            for _ in 0..3 {
                world.spec.attempt += 1;
                for (times, task) in seconds.iter_mut().zip([Task::Backup, Task::VerifyBackup, Task::Rehearse]) {
                    times.push(measured(&mut world, task).await.0.as_secs_f64());
                }
                bytes = 0;
                for left in world.stored() {
                    if left.extension().is_some_and(|ending| ending == "dump") {
                        bytes += std::fs::metadata(&left).unwrap().len();
                    }
                    std::fs::remove_file(left).unwrap();
                }
            }
            let medians = seconds.map(|mut times| {
                times.sort_by(f64::total_cmp);
                format!("{:.1} s", times[1])
            });
            println!(
                "{method}, {format}, {jobs} jobs: dump, read back, rehearse: {} ({bytes} bytes)",
                medians.join(", ")
            );
        }
    }
}
