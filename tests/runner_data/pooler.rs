//! A pooler between the runner and the server.

use std::{
    net::{TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use credit_migration::{
    api::{Reason, Task, mounts},
    runner::database::connection::Target,
};
use tokio_postgres::NoTls;

use crate::harness::World;

/// PgBouncer in transaction mode in front of a world's database, ended when the pipe to its shell closes.
struct Pooler {
    port: u16,
    _shell: Child,
}

const START: &str = r#"
dir=$(mktemp -d /tmp/credit-pooler-XXXXXX)
chmod 755 "$dir"
trap 'rm -rf "$dir"' EXIT
cp "$1" "$dir/ini"
as=
if [ "$(id -u)" = 0 ]; then as="setpriv --reuid postgres --regid postgres --clear-groups --"; fi
$as /usr/sbin/pgbouncer -q "$dir/ini" </dev/null 2>/dev/null &
pooler=$!
cat >/dev/null
kill "$pooler"
wait
"#;

impl Pooler {
    fn start(world: &World, server: &str, settings: &str) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (address, number) = (world.url("x"), world.number);
        let server_port = address.split("127.0.0.1:").nth(1).unwrap().split('/').next().unwrap();
        let ini = format!(
            "[databases]\n\
             * = host=127.0.0.1 port={server_port} user=migrator_{number} password=migrator-secret {server}\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n\
             pool_mode = transaction\n{settings}\n"
        );
        let folder = world.root.join(format!("pooler-{port}"));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("ini"), ini).unwrap();
        let shell = Command::new("sh")
            .args(["-c", START, "sh"])
            .arg(folder.join("ini"))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let started = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(started.elapsed() < Duration::from_secs(60), "PgBouncer does not start; is it installed?");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { port, _shell: shell }
    }

    fn url(&self, world: &World) -> String {
        format!("postgresql://migrator_{0}:x@127.0.0.1:{1}/shop_{0}?sslmode=disable", world.number, self.port)
    }
}

const IGNORED: &str = "ignore_startup_parameters = extra_float_digits,options";

#[tokio::test]
async fn a_pooler_is_noticed_whatever_it_does_with_start_up_options() {
    let world = World::new().await;
    for (server, settings, finding, seen) in [
        ("", "", "database connection", "SQLSTATE 08P01"),
        ("", IGNORED, "database connection", "drops the start-up options"),
        // As one that passes them on.
        (
            "connect_query='SET credit_migration.session = direct'",
            IGNORED,
            "direct connection",
            "a process of the server that is older",
        ),
    ] {
        let pooler = Pooler::start(&world, server, settings);
        world.mount(mounts::DATABASE_URL, &pooler.url(&world));
        let outcome = world.run(Task::Preflight).await;
        let findings = outcome.findings();
        let wrong = findings.iter().find(|found| found.reason.is_some()).unwrap_or_else(|| panic!("{findings:?}"));
        assert_eq!((wrong.name.as_str(), wrong.reason), (finding, Some(Reason::ConnectionInvalid)), "{findings:?}");
        for words in ["is a pooler", seen, "next: set host and port in the Secret"] {
            assert!(wrong.message.contains(words), "{} lacks {words}", wrong.message);
        }
        if settings == IGNORED && server.is_empty() {
            // Nothing was set in the sessions that others get.
            let (client, connection) = tokio_postgres::connect(&pooler.url(&world), NoTls).await.unwrap();
            tokio::spawn(connection);
            let shown = client.simple_query("SHOW search_path").await.unwrap();
            assert!(format!("{shown:?}").contains("public"), "{shown:?}");
        }
    }
}

#[tokio::test]
async fn each_task_refuses_a_pooler_that_drops_start_up_options() {
    let world = World::new().await;
    let pooler = Pooler::start(&world, "", IGNORED);
    let target = Target::parse(&pooler.url(&world), None).unwrap();
    for failure in [
        target.connect("test").await.unwrap_err(),
        target.connect_for_control("test").await.unwrap_err().failure,
        target.connect_for_observation("test").await.unwrap_err(),
    ] {
        assert_eq!(failure.reason, Reason::ConnectionInvalid, "{failure}");
    }
}
