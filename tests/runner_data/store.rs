//! The bucket over a bad line: a proxy before the store that breaks connections off, or lets nothing more through.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use credit_migration::{
    api::Reason,
    runner::{
        clients::object_store::{Limits, StoreClient},
        report::Progress,
        settings::Settings,
        tasks::backup,
    },
};
use futures::TryStreamExt;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::{backup::fake_pg_dump, harness::World};

const MIB: u64 = 1 << 20;
/// Longest wait for anything.
const WAIT_TIMEOUT: Duration = Duration::from_secs(120);
/// All but what a test is about ends at once.
const LIMITS: Limits =
    Limits { retry_timeout: Duration::ZERO, silence: Duration::from_secs(1), part: Duration::from_secs(600) };

/// What becomes of one direction of a connection after so many bytes.
#[derive(Clone, Copy)]
enum Fault {
    None,
    Break(u64),
    Stall(u64),
}

/// A line to the store.
struct Line {
    port: u16,
    connections: Arc<AtomicU64>,
    /// Bytes towards the store.
    sent: Arc<AtomicU64>,
}

impl Line {
    /// `fault` says for the n-th connection what becomes of what is sent and what is received.
    async fn to(world: &World, fault: impl Fn(u64) -> (Fault, Fault) + Send + 'static) -> Self {
        let endpoint = world.spec.plan.backup.store.endpoint.as_deref().unwrap();
        let server: u16 = endpoint.rsplit_once(':').unwrap().1.parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (connections, sent) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (count, total) = (connections.clone(), sent.clone());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (up, down) = fault(count.fetch_add(1, Ordering::SeqCst));
                let total = total.clone();
                tokio::spawn(async move {
                    let server = TcpStream::connect(("127.0.0.1", server)).await.unwrap();
                    let ((from_client, to_client), (from_server, to_server)) =
                        (client.into_split(), server.into_split());
                    let ignored = AtomicU64::new(0);
                    // Whichever ends first takes both sockets with it.
                    tokio::select! {
                        () = pump(from_client, to_server, up, &total) => {}
                        () = pump(from_server, to_client, down, &ignored) => {}
                    }
                });
            }
        });
        Self { port, connections, sent }
    }

    /// Waits until so many bytes were sent.
    async fn has_sent(&self, bytes: u64) {
        let started = Instant::now();
        while self.sent.load(Ordering::SeqCst) < bytes {
            assert!(started.elapsed() < WAIT_TIMEOUT, "{} bytes", self.sent.load(Ordering::SeqCst));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

async fn pump(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, fault: Fault, total: &AtomicU64) {
    let (mut passed, mut buffer) = (0, vec![0; 64 << 10]);
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
        passed += read as u64;
        total.fetch_add(read as u64, Ordering::SeqCst);
        match fault {
            Fault::Break(limit) if passed >= limit => return,
            Fault::Stall(limit) if passed >= limit => std::future::pending().await,
            _ => {}
        }
    }
}

fn open(world: &World) -> StoreClient {
    let keys = Settings::new(&world.root, &world.spec, "shop").store_keys().unwrap();
    StoreClient::within(&world.spec.plan.backup.store, &keys, &LIMITS).unwrap()
}

/// The store by a line; before that, directly.
async fn stores(
    world: &mut World,
    fault: impl Fn(u64) -> (Fault, Fault) + Send + 'static,
) -> (StoreClient, StoreClient, Line) {
    let direct = open(world);
    let line = Line::to(world, fault).await;
    world.spec.plan.backup.store.endpoint = Some(format!("https://127.0.0.1:{}", line.port));
    (direct, open(world), line)
}

fn data(mebibytes: u64, seed: u64) -> Vec<u8> {
    (0..mebibytes * MIB).map(|n| u8::try_from((n * seed) % 251).unwrap()).collect()
}

#[tokio::test]
async fn what_breaks_off_is_read_on_from_its_last_byte() {
    let mut world = World::new().await;
    let (direct, store, line) = stores(&mut world, |n| match n {
        // The first one says nothing more, without an end.
        0 => (Fault::None, Fault::Stall(2 * MIB)),
        _ => (Fault::None, Fault::Break(3 * MIB)),
    })
    .await;
    let object = direct.object("large");
    let data = data(24, 7);
    direct.put(&object, data.clone()).await.unwrap();

    let (mut chunks, mut read, mut paused) = (store.get(&object).await.unwrap(), Vec::new(), false);
    while let Some(chunk) = chunks.try_next().await.unwrap() {
        read.extend_from_slice(&chunk);
        if read.len() as u64 > 10 * MIB && !paused {
            // A reader that is busy for longer than the store may be silent.
            tokio::time::sleep(Duration::from_millis(1500)).await;
            paused = true;
        }
    }
    assert!(read == data, "{} of {} bytes, or others", read.len(), data.len());
    assert!(line.connections.load(Ordering::SeqCst) > 7, "each broke off");
}

#[tokio::test]
async fn another_object_is_not_put_into_the_first() {
    let mut world = World::new().await;
    let (direct, store, _line) = stores(&mut world, |_| (Fault::None, Fault::Break(3 * MIB))).await;
    let object = direct.object("large");
    direct.put(&object, data(8, 7)).await.unwrap();
    let mut chunks = store.get(&object).await.unwrap();
    chunks.try_next().await.unwrap().unwrap();
    direct.put(&object, data(8, 11)).await.unwrap();
    let failure = loop {
        match chunks.try_next().await {
            Ok(chunk) => assert!(chunk.is_some(), "read to the end"),
            Err(failure) => break failure,
        }
    };
    assert_eq!(failure.reason, Reason::BackupAltered, "{failure}");
    assert!(failure.message.contains("was replaced while it was read"), "{failure}");
}

#[tokio::test]
async fn an_upload_that_is_given_up_on_a_stalled_line_leaves_no_part() {
    let mut world = World::new().await;
    // The first part gets through, the second does not.
    let (_, store, line) = stores(&mut world, |_| (Fault::Stall(24 * MIB), Fault::None)).await;
    let mut upload = store.upload(&store.object("large"), 0).await.unwrap();
    upload.write(&data(40, 7)).await.unwrap();
    line.has_sent(24 * MIB).await;
    assert!(!world.stored().is_empty(), "no part yet");
    // Long before the stalled part would time out.
    tokio::time::timeout(WAIT_TIMEOUT, upload.abort()).await.expect("it waits for the stalled part");
    assert_eq!(world.stored(), Vec::<std::path::PathBuf>::new());
}

#[tokio::test]
async fn a_backup_terminated_while_its_last_part_is_sent_leaves_nothing() {
    let mut world = World::new().await;
    world.tools = fake_pg_dump(&world, "head -c 20000000 /dev/urandom");
    let (_, _, line) = stores(&mut world, |_| (Fault::Stall(8 * MIB), Fault::None)).await;
    let context = world.context(&Progress::default());
    let terminated = async {
        line.has_sent(8 * MIB).await;
        context.stop.cancel();
    };
    let (ended, ()) = tokio::join!(backup::run(&context), terminated);
    assert_eq!(ended.unwrap_err().reason, Reason::PodFailed);
    assert_eq!(world.stored(), Vec::<std::path::PathBuf>::new());
    assert_eq!(world.count("SELECT count(*) FROM credit_migration.baseline").await, 0);
}
