//! Certificates of a server and of a role, as clients of libpq have them: in the runner's own sessions, and in those of
//! `pg_dump`.

use std::{
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    time::{Duration, Instant},
};

use credit_migration::{
    api::{MigrationRunSpec, Reason, mounts},
    runner::{Failure, clients::pg_tools::Tools, database::connection::Target, settings::Settings},
};
use tokio_postgres::Client;

use crate::{
    harness::{Script, World},
    programs,
};

/// A server of its own.
struct Server {
    dir: PathBuf,
    port: u16,
    spec: MigrationRunSpec,
    _script: Script,
}

impl Server {
    async fn start() -> Self {
        let mut spec = World::new().await.spec;
        spec.plan.database.name = "postgres".to_owned();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let script = Script::start("tls.sh", &[programs::SERVER.clone(), port.to_string().into()]);
        assert_eq!(script.said.as_deref(), Some("started"));
        let server = Self { dir: script.dir.clone(), port, spec, _script: script };
        server.root().await.batch_execute("CREATE ROLE certified LOGIN").await.unwrap();
        server
    }

    async fn root(&self) -> Client {
        let url = format!("postgresql://postgres@127.0.0.1:{}/postgres?sslmode=disable", self.port);
        let (target, started) = (Target::parse(&url, None).unwrap(), Instant::now());
        loop {
            match target.connect("test").await {
                Ok(client) => return client,
                Err(failure) => assert!(started.elapsed() < Duration::from_secs(60), "{failure}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The server shows this certificate from now on.
    async fn show(&self, certificate: &str) {
        let path = self.dir.join("pg").join(certificate).display().to_string();
        let set = format!("ALTER SYSTEM SET ssl_cert_file = '{path}'");
        let root = self.root().await;
        root.batch_execute(&set).await.unwrap();
        root.batch_execute("SELECT pg_reload_conf()").await.unwrap();
        let started = Instant::now();
        // A new session has what its parent process has read.
        while self.root().await.query_one("SHOW ssl_cert_file", &[]).await.unwrap().get::<_, String>(0) != path {
            assert!(started.elapsed() < Duration::from_secs(30), "{certificate} is not read");
        }
    }

    fn file(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.join(name)).unwrap()
    }

    fn mount(&self, file: &str, text: &str) {
        let path = self.dir.join("mounts").join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        // As in a pod, where root owns them and the group of the pod reads them.
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o440)).unwrap();
    }

    /// Connects with what a Secret says; if that is possible, by `pg_dump`, too.
    async fn connects(&self, user: &str, sslmode: &str, authority: &str) -> Result<(), Failure> {
        let [session, dump] = self.both_connect(user, sslmode, authority).await?;
        if session.is_ok() {
            dump.unwrap();
        }
        session
    }

    /// Connects with what a Secret says: the runner's own session, and `pg_dump`.
    async fn both_connect(
        &self,
        user: &str,
        sslmode: &str,
        authority: &str,
    ) -> Result<[Result<(), Failure>; 2], Failure> {
        let url = format!("postgresql://{user}@127.0.0.1:{}/postgres?sslmode={sslmode}", self.port);
        let _ = std::fs::remove_file(self.dir.join("mounts").join(mounts::DATABASE_URL));
        let _ = std::fs::remove_file(self.dir.join("mounts").join(mounts::DATABASE_CA));
        self.mount(mounts::DATABASE_URL, &url);
        self.mount(mounts::DATABASE_CA, &self.file(authority));
        let settings = Settings::new(self.dir.join("mounts"), &self.spec, "shop");
        let target = settings.target()?;
        let session = target.connect("test").await;
        let dump = Tools::in_folder(programs::CLIENT.clone()).start(
            "pg_dump",
            &["--schema-only", "--no-password", "--file=/dev/null"].map(str::to_owned),
            &target.libpq_env(settings.database_ca_file().as_deref()),
        );
        let dump = dump.unwrap().end().await;
        Ok([session.map(drop), dump])
    }
}

#[tokio::test]
async fn certificates_of_servers() {
    let server = Server::start().await;
    let (full, ca) = ("verify-full", "verify-ca");
    for (certificate, sslmode, authority, refused) in [
        ("named", full, "ca.crt", None),
        ("named", ca, "ca.crt", None),
        ("named", full, "other.crt", Some("caSecretRef")),
        // As of Cloud SQL.
        ("nameless", full, "ca.crt", Some("next: connect by a name that is in the certificate. If it has none")),
        ("nameless", full, "ca.crt", Some("set sslmode=verify-ca")),
        ("nameless", ca, "ca.crt", None),
        ("nameless", ca, "other.crt", Some("caSecretRef")),
        // The certificate in the Secret is the server's own.
        ("own", ca, "pg/own", None),
        ("own", full, "pg/own", Some("verify-ca")),
        ("own-named", full, "pg/own-named", None),
        ("own-named", full, "pg/own", Some("subjectAltName=IP:127.0.0.1")),
        ("own-expired", ca, "pg/own-expired", Some("not valid at this time")),
        // Of an authority, and not acceptable to today's clients.
        ("authority", ca, "ca.crt", Some("openssl x509 -req -in server.csr")),
        ("version-1", ca, "ca.crt", Some("X.509 version 3")),
        ("own-version-1", ca, "pg/own-version-1", Some("X.509 version 3")),
    ] {
        server.show(certificate).await;
        let case = format!("{certificate} {sslmode} {authority}");
        let [session, dump] = server.both_connect("postgres", sslmode, authority).await.unwrap();
        // OpenSSL takes certificates that are authorities, or are not of version 3.
        let taken_by_libpq = ["authority", "version-1", "own-version-1"].contains(&certificate);
        assert_eq!(dump.is_ok(), refused.is_none() || taken_by_libpq, "{case}: {dump:?}");
        match (session, refused) {
            (Ok(()), None) => {}
            (Err(failure), Some(words)) => {
                assert_eq!(failure.reason, Reason::CertificateNotTrusted, "{case}: {failure}");
                assert!(failure.message.contains(words), "{case}: {failure}");
                assert!(!failure.message.contains("Other"), "{case}: {failure}");
            }
            (result, _) => panic!("{case}: {result:?}"),
        }
    }
}

#[tokio::test]
async fn a_role_authenticates_itself_by_certificate() {
    let mut server = Server::start().await;
    let connects = async |server: &Server| server.connects("certified", "verify-full", "ca.crt").await;
    let failure = connects(&server).await.unwrap_err();
    assert_eq!(failure.reason, Reason::AuthenticationFailed, "{failure}");
    let remove = |server: &Server, key: &str| {
        std::fs::remove_file(server.dir.join("mounts").join(mounts::DATABASE).join(key)).unwrap();
    };
    let database = |key: &str| format!("{}/{key}", mounts::DATABASE);
    for [certificate, key] in mounts::CLIENT_CERTIFICATE_KEYS {
        server.mount(&database(certificate), &server.file("client.crt"));
        let failure = connects(&server).await.unwrap_err();
        assert_eq!(failure.reason, Reason::SecretKeyMissing);
        assert!(failure.message.contains(&format!("has key {certificate} and no key {key}")), "{failure}");
        server.mount(&database(key), &server.file("client.key"));
        connects(&server).await.unwrap();
        remove(&server, certificate);
        remove(&server, key);
    }
    let [certificate, key] = mounts::CLIENT_CERTIFICATE_KEYS[0];
    // Of another authority, of another key, and no key at all.
    server.mount(&database(key), &server.file("client.key"));
    server.mount(&database(certificate), &server.file("stranger.crt"));
    let failure = connects(&server).await.unwrap_err();
    assert_eq!(failure.reason, Reason::AuthenticationFailed, "{failure}");
    assert!(failure.message.contains("tls.crt"), "{failure}");
    for (file, text) in [(certificate, server.file("ca.crt")), (key, "secret words".to_owned())] {
        remove(&server, file);
        server.mount(&database(file), &text);
        let failure = connects(&server).await.unwrap_err();
        assert_eq!(failure.reason, Reason::ConnectionInvalid, "{failure}");
        assert!(failure.message.contains(file) && !failure.message.contains("secret words"), "{failure}");
        remove(&server, file);
        server.mount(&database(file), &server.file(if file == key { "client.key" } else { "client.crt" }));
    }
    // Without a password, in keys of their own.
    server.spec.plan.database.connection.secret_ref.key = None;
    server.spec.plan.database.connection.host = Some(format!("127.0.0.1:{}", server.port));
    connects(&server).await.unwrap();
    remove(&server, "url");
    server.mount(&database("username"), "certified\n");
    let settings = Settings::new(server.dir.join("mounts"), &server.spec, "shop");
    settings.target().unwrap().connect("test").await.unwrap();
}
