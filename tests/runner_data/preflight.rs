//! Preflight: each finding, and the command that fixes it.

use credit_migration::{
    api::{AllTablesPublications, Reason, Task, mounts},
    runner::clients::pg_tools::Tools,
};

use serde_json::json;

use crate::harness::{DOWN, UP, World};

#[tokio::test]
async fn everything_is_good() {
    let world = World::new().await;
    let outcome = world.run(Task::Preflight).await;
    assert!(outcome.result.is_ok(), "{:?} {:?}", outcome.result, outcome.findings());
    assert!(outcome.findings().len() > 20, "{:?}", outcome.findings());
    assert_eq!(world.stored(), Vec::<std::path::PathBuf>::new(), "the probe is removed");
    assert_eq!(world.count("SELECT count(*) FROM pg_namespace WHERE nspname = 'credit_migration'").await, 0);
}

/// The trigger on wrong balances reads transactions by user. Without an index it works, and is slow.
#[tokio::test]
async fn an_index_that_a_check_lacks_is_named_and_is_no_failure() {
    let world = World::new().await;
    let found = async || {
        let outcome = world.run(Task::Preflight).await;
        assert!(outcome.result.is_ok(), "{:?}", outcome.result);
        outcome.findings().into_iter().find(|f| f.name == "index of transactions").expect("the finding").message
    };
    let message = found().await;
    assert!(message.contains("has one by user_id"), "{message}");
    world.owner().await.batch_execute("DROP INDEX credit_transactions_user_idx").await.unwrap();
    let message = found().await;
    let command = "CREATE INDEX CONCURRENTLY ON \"public\".\"credit_transactions\" (\"user_id\", \"created_at\")";
    assert!(message.starts_with("warning: ") && message.contains(command), "{message}");
}

/// Finding, reason, and what the message must hold; `{n}` is the world's number.
type Want = (&'static str, Reason, &'static str);

async fn finds(world: &World, wants: &[Want]) {
    let outcome = world.run(Task::Preflight).await;
    let wrong: Vec<_> = outcome.findings().into_iter().filter(|f| f.reason.is_some()).collect();
    let names: Vec<_> = wrong.iter().map(|f| (f.name.clone(), f.reason)).collect();
    let fill = |text: &str| text.replace("{n}", &world.number.to_string());
    let wanted: Vec<_> = wants.iter().map(|(name, reason, _)| (fill(name), Some(*reason))).collect();
    assert_eq!(names, wanted, "{wrong:#?}");
    for (found, (_, _, words)) in wrong.iter().zip(wants) {
        assert!(found.message.contains(&fill(words)), "{} lacks {}", found.message, fill(words));
    }
    assert_eq!(outcome.failure().reason, wants[0].1);
}

#[tokio::test]
async fn mounts_and_connection() {
    let world = World::new().await;
    world.unmount(mounts::DATABASE_CA);
    world.unmount(mounts::STORE_ACCESS_KEY_ID);
    finds(
        &world,
        &[
            (
                "database connection",
                Reason::SecretKeyMissing,
                "key ca.crt of Secret shop/shop-db is missing; next: \
                kubectl -n shop create secret generic shop-db --from-file=ca.crt=FILE",
            ),
            (
                "bucket",
                Reason::SecretKeyMissing,
                "kubectl -n shop create secret generic backup-bucket \
                --from-literal=accessKeyId=",
            ),
        ],
    )
    .await;

    let world = World::new().await;
    let good = world.url("migrator-secret");
    world.mount(mounts::DATABASE_URL, &world.url("wrong"));
    finds(&world, &[("database connection", Reason::AuthenticationFailed, "spec.database.connection.secretRef")]).await;
    world.mount(mounts::DATABASE_URL, &good.replace("127.0.0.1:", "127.0.0.1:1"));
    assert_ne!(world.run(Task::Preflight).await.failure().reason, Reason::AuthenticationFailed);
    let (before, after) = good.split_once("127.0.0.1:").unwrap();
    let rest = after.split_once('/').unwrap().1;
    world.mount(mounts::DATABASE_URL, &format!("{before}127.0.0.1:1/{rest}"));
    finds(&world, &[("database connection", Reason::HostUnreachable, "127.0.0.1:1")]).await;
    world.mount(mounts::DATABASE_URL, &good.replace("/shop_", "/other_"));
    finds(&world, &[("database connection", Reason::WrongDatabase, "spec.database.name is \"shop_{n}\"")]).await;
    world.mount(mounts::DATABASE_URL, &good.replace("verify-full", "require"));
    finds(&world, &[("database connection", Reason::ConnectionInvalid, "sslmode=require")]).await;
    world.mount(mounts::DATABASE_URL, &good);
    // A valid certificate of an authority that signed nothing here.
    let dir = world.root.join("foreign");
    std::fs::create_dir_all(&dir).unwrap();
    let made = std::process::Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-subj",
            "/CN=foreign",
            "-keyout",
        ])
        .arg(dir.join("key"))
        .arg("-out")
        .arg(dir.join("crt"))
        .output()
        .unwrap();
    assert!(made.status.success());
    let foreign = std::fs::read_to_string(dir.join("crt")).unwrap();
    world.mount(mounts::DATABASE_CA, &foreign);
    world.mount(mounts::STORE_CA, &foreign);
    finds(
        &world,
        &[
            ("database connection", Reason::CertificateNotTrusted, "caSecretRef"),
            ("bucket", Reason::StoreUnreachable, "ca.crt in Secret backup-bucket"),
        ],
    )
    .await;
}

#[tokio::test]
async fn privileges() {
    let world = World::new().await;
    world
        .alter(
            "ALTER ROLE migrator_{n} NOCREATEDB; REVOKE pg_signal_backend, app_{n} FROM migrator_{n};
             ALTER DATABASE shop_{n} OWNER TO postgres; ALTER TABLE user_credits OWNER TO postgres",
        )
        .await;
    finds(
        &world,
        &[
            (
                "owner of the database",
                Reason::PrivilegeMissing,
                "next: ALTER DATABASE \"shop_{n}\" OWNER TO \
                \"migrator_{n}\";",
            ),
            (
                "CREATE on the database",
                Reason::PrivilegeMissing,
                "GRANT CREATE ON DATABASE \"shop_{n}\" TO \"migrator_{n}\";",
            ),
            ("pg_signal_backend", Reason::PrivilegeMissing, "GRANT pg_signal_backend TO \"migrator_{n}\";"),
            ("application role app_{n}", Reason::PrivilegeMissing, "GRANT \"app_{n}\" TO \"migrator_{n}\";"),
            (
                "table user_credits",
                Reason::PrivilegeMissing,
                "does not own table user_credits; next: ALTER TABLE \"user_credits\" OWNER TO \"migrator_{n}\";",
            ),
            (
                "rights to dump",
                Reason::PrivilegeMissing,
                "may not dump table public.user_credits; next: GRANT SELECT ON TABLE \"public\".\"user_credits\" TO \
                    \"migrator_{n}\";",
            ),
            ("CREATEDB", Reason::PrivilegeMissing, "ALTER ROLE \"migrator_{n}\" CREATEDB;"),
        ],
    )
    .await;
}

/// What an apply worker of logical replication writes, no statement trigger stops.
#[tokio::test]
async fn a_subscription_to_a_protected_table() {
    let world = World::new().await;
    world
        .alter(
            "CREATE SUBSCRIPTION copy_{n} CONNECTION 'host=127.0.0.1 port=1 dbname=nowhere'
                 PUBLICATION p WITH (connect = false);
             INSERT INTO pg_subscription_rel (srsubid, srrelid, srsubstate)
             SELECT oid, 'user_credits'::regclass, 'r' FROM pg_subscription WHERE subname = 'copy_{n}'",
        )
        .await;
    // It is not enabled.
    finds_nothing(&world).await;
    world.alter("UPDATE pg_subscription SET subenabled = true WHERE subname = 'copy_{n}'").await;
    let next = "subscription copy_{n} writes to public.user_credits, and the write block does not stop what logical \
        replication applies; next: ALTER SUBSCRIPTION \"copy_{n}\" DISABLE;";
    finds(&world, &[("subscriptions", Reason::WritesNotBlocked, next)]).await;
    world.alter("ALTER SUBSCRIPTION \"copy_{n}\" DISABLE").await;
    finds_nothing(&world).await;
}

/// What a subscriber makes of the control schema: `runner_window` `a_publication_for_all_tables_stops_its_subscriber`.
#[tokio::test]
async fn a_publication_for_all_tables() {
    let mut world = World::new().await;
    world.alter("CREATE PUBLICATION listed FOR TABLE user_credits").await;
    finds_nothing(&world).await;
    let found = world.run(Task::Preflight).await.findings();
    let found = found.iter().find(|found| found.name == "publications").unwrap();
    assert!(found.message.contains("listed (user_credits)"), "{found:?}");
    world.alter("CREATE PUBLICATION everything FOR ALL TABLES").await;
    let next = "publication everything is FOR ALL TABLES and publishes schema credit_migration, too";
    finds(&world, &[("publications", Reason::AllTablesPublished, next)]).await;
    world.spec.plan.database.all_tables_publications = AllTablesPublications::Allowed;
    finds_nothing(&world).await;
}

/// A consumer that the migration stops would fill the disk; one without publications decodes each table.
#[tokio::test]
async fn logical_slots_are_named_with_what_they_keep() {
    let world = World::new().await;
    let found = async || {
        let found = world.run(Task::Preflight).await.findings();
        found.into_iter().find(|found| found.name == "logical slots").unwrap().message
    };
    assert_eq!(found().await, "none");
    for slot in ["'a_{n}', 'pgoutput'", "'b_{n}', 'test_decoding'"] {
        world.alter(&format!("SELECT pg_create_logical_replication_slot({slot})")).await;
    }
    let message = found().await;
    let number = world.number;
    assert!(message.starts_with(&format!("a_{number} (pgoutput, inactive, ")), "{message}");
    assert!(message.contains(&format!(" behind), b_{number} (test_decoding, inactive, ")), "{message}");
    assert!(message.ends_with(" behind, decodes schema credit_migration, too)"), "{message}");
    assert_eq!(message.matches("decodes schema").count(), 1, "{message}");
    for slot in ["a_{n}", "b_{n}"] {
        world.alter(&format!("SELECT pg_drop_replication_slot('{slot}')")).await;
    }
}

async fn finds_nothing(world: &World) {
    let outcome = world.run(Task::Preflight).await;
    assert!(outcome.result.is_ok(), "{:?} {:?}", outcome.result, outcome.findings());
}

#[tokio::test]
async fn a_member_that_inherits_nothing() {
    let world = World::new().await;
    world
        .alter(
            "REVOKE app_{n} FROM migrator_{n}; CREATE ROLE bridge_{n} NOINHERIT; GRANT app_{n} TO bridge_{n}; GRANT \
                bridge_{n} TO migrator_{n}",
        )
        .await;
    let next = "does not see when sessions of app_{n} started; next: GRANT pg_read_all_stats TO \"migrator_{n}\";";
    finds(&world, &[("application role app_{n}", Reason::PrivilegeMissing, next)]).await;
    world.alter("GRANT pg_read_all_stats TO migrator_{n}").await;
    finds_nothing(&world).await;
}

#[tokio::test]
async fn tables_columns_and_claims() {
    let mut world = World::new().await;
    let own = format!("migrator_{}", world.number);
    world.spec.plan.database.application_roles.extend(["nobody_here".to_owned(), own]);
    world.spec.plan.migration.protected_tables.push("billing.invoices".to_owned());
    world.spec.plan.rehearsal.database = "postgres".to_owned();
    world
        .alter(
            "ALTER TABLE user_credits RENAME COLUMN purchased_credits TO bought;
             ALTER TABLE user_credits ALTER COLUMN balance TYPE double precision;
             ALTER TABLE user_credits DROP CONSTRAINT user_credits_pkey;
             CREATE SCHEMA credit_migration AUTHORIZATION migrator_{n};
             SET ROLE migrator_{n};
             CREATE TABLE credit_migration.claim (
                 only_one boolean PRIMARY KEY, migration_uid text, migration_name text, since timestamptz);
             INSERT INTO credit_migration.claim VALUES (true, 'u', 'other-migration', now())",
        )
        .await;
    finds(
        &world,
        &[
            ("application role nobody_here", Reason::RoleMissing, "CREATE ROLE \"nobody_here\" LOGIN;"),
            ("application role migrator_{n}", Reason::RoleMissing, "give the application a role of its own"),
            ("table billing.invoices", Reason::TableMissing, "does not exist"),
            (
                "column user_credits.user_id",
                Reason::ColumnMissing,
                "CREATE UNIQUE INDEX CONCURRENTLY ON \"user_credits\" (\"user_id\");",
            ),
            ("column user_credits.balance", Reason::ColumnMissing, "is double precision"),
            ("column user_credits.purchased_credits", Reason::ColumnMissing, "does not exist"),
            ("other migrations", Reason::DatabaseInUse, "other-migration (uid u)"),
            ("scratch database", Reason::ScratchDatabaseExists, "database postgres exists"),
        ],
    )
    .await;
}

#[tokio::test]
async fn sql_and_store() {
    let mut world = World::new().await;
    world.sql("\\set x 1\nSELECT 1;", "SELECT 1;\nALTER TABEL x;");
    world.spec.plan.backup.store.url = "s3://no-such-bucket/".to_owned();
    finds(
        &world,
        &[
            ("up SQL", Reason::SqlMetaCommand, "up SQL, line 1: `\\set`"),
            ("down SQL", Reason::SqlSyntaxError, "down SQL, line 2: syntax error at or near \"TABEL\""),
            ("bucket", Reason::BucketMissing, "aws s3 mb s3://no-such-bucket"),
        ],
    )
    .await;
    world.sql("BEGIN;\nSELECT 1;\nCOMMIT;", "VACUUM;");
    world.spec.plan.backup.store.endpoint = Some("https://127.0.0.1:1".to_owned());
    finds(
        &world,
        &[
            ("up SQL", Reason::SqlTransactionControl, "line 1"),
            ("down SQL", Reason::SqlOutsideTransaction, "line 1"),
            ("bucket", Reason::StoreUnreachable, "https://127.0.0.1:1 cannot be used"),
        ],
    )
    .await;
    world.sql(UP, DOWN);
    world.mount(mounts::UP_SQL, "SELECT 2;");
    world.spec.plan.backup.store = World::new().await.spec.plan.backup.store;
    world.mount(mounts::STORE_ACCESS_KEY_ID, "unknown");
    finds(
        &world,
        &[
            ("SQL", Reason::SqlChanged, "key up.sql of ConfigMap shop/migration-0003 has sha256:"),
            ("bucket", Reason::BucketDenied, "refused the key of Secret backup-bucket (XAdminUserNotFound)"),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_server_newer_than_pg_dump() {
    let mut world = World::new().await;
    let folder = world.root.join("old");
    // Written by a process of its own: one that was forked off here meanwhile would hold the file open, and it could
    // not be run.
    let script = r#"mkdir "$0" && printf '#!/bin/sh\necho "pg_dump (PostgreSQL) 12.22"\n' >"$0/pg_dump" &&
        chmod 755 "$0/pg_dump""#;
    assert!(std::process::Command::new("sh").args(["-c", script]).arg(&folder).status().unwrap().success());
    world.tools = Tools::in_folder(folder);
    let wanted = "pg_dump of this image is 12.22; next: use an image of the operator with pg_dump ";
    finds(&world, &[("server version", Reason::ServerTooNew, wanted)]).await;
}

#[tokio::test]
async fn an_owner_that_is_no_superuser_is_granted() {
    let world = World::new().await;
    world
        .alter(
            "CREATE ROLE owner_{n}; ALTER DATABASE shop_{n} OWNER TO owner_{n};
             ALTER TABLE user_credits OWNER TO owner_{n};
             GRANT SELECT ON user_credits TO migrator_{n}; GRANT CREATE ON DATABASE shop_{n} TO migrator_{n}",
        )
        .await;
    let next = "next: GRANT \"owner_{n}\" TO \"migrator_{n}\";";
    finds(
        &world,
        &[
            ("owner of the database", Reason::PrivilegeMissing, next),
            ("table user_credits", Reason::PrivilegeMissing, next),
        ],
    )
    .await;
}

/// What Preflight names is what `pg_dump` misses, no more and no less.
#[tokio::test]
async fn rights_to_dump() {
    let world = World::new().await;
    // An empty schema and a view need no right.
    world
        .alter(
            "CREATE SCHEMA hidden; CREATE TABLE hidden.a (id serial); CREATE TABLE hidden.\"B\" (id int);
             CREATE SEQUENCE hidden.s; CREATE VIEW hidden.v AS SELECT 1; CREATE SCHEMA nothing;
             CREATE TABLE hidden.p (id int) PARTITION BY LIST (id);
             CREATE TABLE hidden.p1 PARTITION OF hidden.p FOR VALUES IN (1)",
        )
        .await;
    finds(
        &world,
        &[(
            "rights to dump",
            Reason::PrivilegeMissing,
            "role migrator_{n} may not dump schema hidden, table hidden.B, table hidden.a, sequence hidden.a_id_seq, \
             table hidden.p and 2 more; next: GRANT USAGE ON SCHEMA \"hidden\" TO \"migrator_{n}\"; \
             GRANT SELECT ON TABLE \"hidden\".\"B\" TO \"migrator_{n}\";",
        )],
    )
    .await;
    assert_eq!(world.run(Task::Backup).await.failure().reason, Reason::DumpFailed);
    // What it says is run, until it has nothing to say.
    for _ in 0..2 {
        let found = world.run(Task::Preflight).await;
        world.alter(found.failure().message.split_once("next: ").unwrap().1.rsplit_once(';').unwrap().0).await;
    }
    let found = world.run(Task::Preflight).await;
    assert!(found.result.is_ok(), "{:?}", found.result);
    let dumped = world.run(Task::Backup).await;
    assert!(dumped.result.is_ok(), "{:?}", dumped.result);
}

#[tokio::test]
async fn times_without_a_zone_need_one_that_the_server_knows() {
    let mut world = World::new().await;
    world.alter("ALTER TABLE credit_transactions ALTER created_at TYPE timestamp").await;
    let column = "column credit_transactions.created_at";
    let found = world.run(Task::Preflight).await;
    assert!(found.result.is_ok(), "{:?}", found.result);
    let found = serde_json::to_string(&found.noted).unwrap();
    assert!(found.contains("timestamp without time zone, read as UTC"), "{found}");
    world.spec.plan.credits.transactions.as_mut().unwrap().created_at_time_zone = "Europe/Berlim".to_owned();
    let wanted =
        "and the server knows no zone \"Europe/Berlim\"; next: set spec.credits.transactions.createdAtTimeZone";
    finds(&world, &[(column, Reason::ColumnMissing, wanted)]).await;
}

#[tokio::test]
async fn checks_that_cannot_be_measured() {
    let mut world = World::new().await;
    world.mount(&mounts::secret("login", "user"), "ann");
    let sequence = |url: &str| json!({"secretRef": {"name": "login"}, "steps": [{"name": "in", "url": url}]});
    let checks = json!([
        {"name": "good", "sequence": sequence("http://127.0.0.1:1/{{ secret.user }}")},
        {"name": "sql", "sql": {"query": "SELEC 1"}, "max": "1"},
        {"name": "two", "sql": {"query": "SELECT 1; SELECT 2"}, "max": "1"},
        {"name": "path", "http": {"url": "http://127.0.0.1:1/", "jsonPath": "$["}, "max": "1"},
        {"name": "template", "sequence": sequence("http://127.0.0.1:1/{{ token }}")},
        {"name": "secret", "sequence": sequence("http://127.0.0.1:1/{{ secret.password }}")},
        {"name": "pattern", "logs": {"workload": {"kind": "Deployment", "name": "shop"}, "pattern": "("}, "max": "1"},
        {"name": "rate", "prometheus": {"url": "http://127.0.0.1:1", "query": "up"}, "max": "1"},
    ]);
    world.spec.plan.validation.checks = serde_json::from_value(checks).unwrap();
    let later = json!([{"name": "slow", "statements": {}, "max": "50"}]);
    world.spec.plan.follow_ups.week.checks = serde_json::from_value(later).unwrap();
    let invalid = Reason::CheckInvalid;
    finds(
        &world,
        &[
            ("check sql", invalid, "query, line 1: syntax error at or near \"SELEC\"; next: write one SELECT"),
            ("check two", invalid, "query: more than one statement; next: write one SELECT"),
            ("check path", invalid, "next: write it as RFC 9535 has it"),
            ("check template", invalid, "step \"in\": url: token is captured by no earlier step; next: "),
            (
                "check secret",
                invalid,
                "key password of Secret shop/login is missing; next: kubectl -n shop create secret generic login",
            ),
            ("check pattern", invalid, "unclosed group; next: "),
            ("check rate", invalid, "Prometheus gave no answer"),
            ("check slow", invalid, "CREATE EXTENSION pg_stat_statements"),
        ],
    )
    .await;
}

#[tokio::test]
async fn invariants_that_cannot_be_run() {
    let mut world = World::new().await;
    let pair = |name: &str, before: &str, after: &str| json!({"name": name, "before": before, "after": after});
    let view = "CREATE VIEW rated AS SELECT * FROM user_credits, rates";
    world.alter(&format!("SET ROLE migrator_{{n}}; CREATE TABLE rates (rate int); {view}")).await;
    let good = "SELECT count(*) FROM user_credits AS \"c\"; -- all";
    let pairs = json!([
        pair("good", good, "SELECT count(*) FROM accounts"),
        pair("slip", "SELEC 1", good),
        pair("two", good, "SELECT 1; SELECT 2"),
        pair("old", "SELECT count(*) FROM accounts", good),
        pair("open", "SELECT count(*) FROM rated", good),
    ]);
    world.spec.plan.migration.invariants = serde_json::from_value(pairs).unwrap();
    let syntax = Reason::SqlSyntaxError;
    finds(
        &world,
        &[
            ("invariant slip", syntax, "before, line 1: syntax error at or near \"SELEC\""),
            ("invariant two", syntax, "after: query: more than one statement"),
            ("invariant old", Reason::InvariantBroken, "before: relation \"accounts\" does not exist"),
            ("invariant open", Reason::InvariantBroken, "add public.rates to spec.migration.protectedTables"),
        ],
    )
    .await;
}

/// A role that may create schemas could put a view in the place of the write block.
#[tokio::test]
async fn a_control_schema_of_another_is_found() {
    let world = World::new().await;
    world.alter("CREATE SCHEMA credit_migration AUTHORIZATION app_{n}").await;
    finds(&world, &[("migration role", Reason::PrivilegeMissing, "schema credit_migration belongs to role app_{n}")])
        .await;
}
