//! The Secret of the connection as operators for PostgreSQL make it.

use credit_migration::{
    api::{Reason, Task, mounts},
    runner::{Failure, settings::Settings},
};

use crate::harness::World;

/// The value of one key.
type Key = (&'static str, String);

struct Case {
    world: World,
    port: String,
}

impl Case {
    async fn new() -> Self {
        let mut world = World::new().await;
        let url = world.url("x");
        let port = url.split("127.0.0.1:").nth(1).unwrap().split('/').next().unwrap().to_owned();
        world.unmount(mounts::DATABASE_URL);
        world.spec.plan.database.connection.secret_ref.key = None;
        Self { world, port }
    }

    /// The port that a session has come to.
    async fn connects(&self, keys: &[Key]) -> Result<String, Failure> {
        let _ = std::fs::remove_dir_all(self.world.root.join(mounts::DATABASE));
        for (key, value) in keys {
            self.world.mount(&format!("{}/{key}", mounts::DATABASE), value);
        }
        let target = Settings::new(&self.world.root, &self.world.spec, "shop").target()?;
        let client = target.connect("test").await?;
        let query = "SELECT current_user::text || current_setting('port')";
        Ok(client.query_one(query, &[]).await.unwrap().get(0))
    }
}

fn keys<const N: usize>(pairs: [(&'static str, &str); N]) -> Vec<Key> {
    pairs.iter().map(|(key, value)| (*key, (*value).to_owned())).collect()
}

#[tokio::test]
async fn each_form_of_the_secret_leads_to_the_server() {
    let mut case = Case::new().await;
    let (port, number) = (case.port.clone(), case.world.number);
    let (user, name) = (format!("migrator_{number}"), format!("shop_{number}"));
    let expected = Ok(format!("{user}{port}"));
    let at = |hosts: &str, query: &str| format!("postgresql://{user}:migrator-secret@{hosts}/{name}{query}");
    let own = format!("127.0.0.1:{port}");
    let both = format!("127.0.0.1:1,{own}");
    // As of CloudNativePG: the URL says nothing of TLS, and goes before the parts.
    let cloud_native = |host: &str, uri: &str| {
        keys([
            ("dbname", &name),
            ("host", host),
            ("jdbc-uri", "jdbc:postgresql://nowhere"),
            ("password", "migrator-secret"),
            ("pgpass", "nowhere:5432:shop:me:x"),
            ("port", &port),
            ("uri", uri),
            ("user", &user),
            ("username", &user),
        ])
    };
    let mut parts = cloud_native("127.0.0.1", "");
    for wanted in [
        cloud_native("absent.invalid", &at(&own, "")),
        parts.clone(),
        keys([("url", &at(&own, "?sslmode=verify-full")), ("uri", "postgresql://me@absent.invalid/x")]),
        // Several hosts, in each form.
        keys([("uri", &at(&both, "?target_session_attrs=read-write"))]),
        keys([("uri", &at(&both, "?target_session_attrs=primary&sslmode=verify-ca"))]),
        keys([("username", &user), ("password", "migrator-secret\n"), ("host", &both), ("dbname", &name)]),
        keys([
            ("username", &user),
            ("password", "migrator-secret"),
            ("host", "127.0.0.1,127.0.0.1"),
            ("port", &format!("1,{port}")),
        ]),
    ] {
        assert_eq!(case.connects(&wanted).await, expected, "{:?}", wanted.iter().map(|k| k.0).collect::<Vec<_>>());
    }
    // As of Zalando: the server is the spec's.
    let zalando = keys([("username", &user), ("password", "migrator-secret")]);
    let failure = case.connects(&zalando).await.unwrap_err();
    assert_eq!(failure.reason, Reason::SecretKeyMissing);
    for words in ["no host: it has password, username", "next: set spec.database.connection.host"] {
        assert!(failure.message.contains(words), "{failure}");
    }
    case.world.spec.plan.database.connection.host = Some(own.clone());
    assert_eq!(case.connects(&zalando).await, expected);
    // The spec goes before the Secret: a copy in another namespace has a short name.
    assert_eq!(case.connects(&cloud_native("absent.invalid", "")).await, expected);
    assert_eq!(case.connects(&cloud_native("absent.invalid", &at("absent.invalid", ""))).await, expected);
    case.world.spec.plan.database.connection.host = Some("localhost".to_owned());
    let failure = case.connects(&parts).await.unwrap_err();
    assert!(failure.message.contains("set sslmode=verify-ca"), "{failure}");
    case.world.spec.plan.database.connection.ssl_mode = serde_json::from_str("\"VerifyCa\"").unwrap();
    assert_eq!(case.connects(&parts).await, expected);
    // The whole of it by the tasks.
    let outcome = case.world.run(Task::Preflight).await;
    assert!(outcome.result.is_ok(), "{:?}", outcome.result);
    case.world.backed_up().await;
    parts.retain(|(key, _)| *key != "dbname");
    assert_eq!(case.connects(&parts).await, expected);
}

#[tokio::test]
async fn what_a_secret_lacks_is_named_with_the_keys_that_it_has() {
    let case = Case::new().await;
    let uri = |database: &str| format!("postgresql://me:hunter2@127.0.0.1:{}/{database}", case.port);
    for (given, reason, words) in [
        (keys([]), Reason::SecretKeyMissing, "it is missing, or has no key; next: kubectl -n shop create secret"),
        (
            keys([("DATABASE_URL", "hunter2"), ("password", "hunter2")]),
            Reason::SecretKeyMissing,
            "neither url nor uri, and no username, no host: it has DATABASE_URL, password; next: set \
             spec.database.connection.secretRef.key",
        ),
        (keys([("username", "me"), ("host", "h")]), Reason::SecretKeyMissing, "no password: it has host, username"),
        (keys([("uri", &uri("other"))]), Reason::WrongDatabase, "key uri of Secret shop/shop-db leads to"),
        (
            keys([("username", "me"), ("password", "hunter2"), ("host", "h"), ("dbname", "other")]),
            Reason::WrongDatabase,
            "key dbname of Secret shop/shop-db leads to database \"other\"",
        ),
        (
            keys([("username", "me"), ("password", "hunter2"), ("host", "/run/postgresql")]),
            Reason::ConnectionInvalid,
            "sockets are not supported",
        ),
    ] {
        let failure = case.connects(&given).await.unwrap_err();
        assert_eq!(failure.reason, reason, "{failure}");
        assert!(failure.message.contains(words) && !failure.message.contains("hunter2"), "{failure}");
    }
}
