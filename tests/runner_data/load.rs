//! What the server says of itself: connections and statements.

use std::time::Duration;

use credit_migration::{
    api::{SqlCheck, StatementsCheck, mounts},
    runner::{
        checks::{
            TargetProvider, connection,
            evaluator::{Measurement, Value},
            sql::SqlQuerySource,
            statements::StatementsSource,
        },
        database::connection::Target,
    },
};

use crate::harness::World;

#[tokio::test]
async fn a_connection_is_available_or_not() {
    let world = World::new().await;
    let good = TargetProvider::from(world.target());
    let Measurement::Value { value: Value::Number(part), .. } = connection::measure(&good).await else {
        panic!("no value")
    };
    let part: f64 = part.parse().unwrap();
    assert!(part > 0.0 && part < 0.9, "{part}");
    let at = |url: &str| TargetProvider::from(Target::parse(url, None).unwrap());
    let measured = connection::measure(&at("postgresql://a:b@127.0.0.1:1/shop?sslmode=disable")).await;
    assert!(matches!(&measured, Measurement::Failed(words) if words.contains("127.0.0.1:1")), "{measured:?}");
    // Accepts and keeps silent.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("postgresql://a:b@{}/shop?sslmode=disable", silent.local_addr().unwrap());
    let measured = connection::measure(&at(&url)).await;
    assert!(matches!(&measured, Measurement::Failed(words) if words.contains("within 2 s")), "{measured:?}");
    let closed = format!("ALTER DATABASE shop_{} ALLOW_CONNECTIONS false", world.number);
    world.root_session("postgres").await.batch_execute(&closed).await.unwrap();
    let measured = connection::measure(&good).await;
    assert!(matches!(measured, Measurement::Failed(_)), "{measured:?}");
}

/// What is wrong with the migration role alone must not start a rollback.
#[tokio::test]
async fn what_only_the_own_role_is_refused_for_is_no_measurement() {
    let world = World::new().await;
    let address = TargetProvider::mounted(world.root.clone(), world.spec.clone(), "shop".to_owned());
    let (mut sql, second) = (SqlQuerySource::new(address.clone()), Duration::from_secs(1));
    let query = SqlCheck { query: "SELECT 7".to_owned() };
    let error = async |words: &str| {
        let measured = connection::measure(&address).await;
        assert!(matches!(&measured, Measurement::Error(text) if text.to_string().contains(words)), "{measured:?}");
    };
    let good = async || {
        let measured = connection::measure(&address).await;
        assert!(matches!(&measured, Measurement::Value { .. }), "{measured:?}");
    };
    good().await;
    assert!(matches!(sql.measure(&query, second, second).await, Measurement::Value { .. }));

    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'migrator_{n}'";
    world.alter(&format!("ALTER ROLE migrator_{{n}} PASSWORD 'migrator-secret-2'; {end}")).await;
    error("next: correct the Secret").await;
    assert!(matches!(sql.measure(&query, second, second).await, Measurement::Error(_)));
    // The kubelet brings the new one later.
    world.mount(mounts::DATABASE_URL, &world.url("migrator-secret-2"));
    good().await;
    assert!(matches!(sql.measure(&query, second, second).await, Measurement::Value { .. }));

    world.alter("ALTER ROLE migrator_{n} CONNECTION LIMIT 0").await;
    error("raise the CONNECTION LIMIT of the role").await;
    world.alter("ALTER ROLE migrator_{n} CONNECTION LIMIT -1").await;
    world
        .alter("ALTER DATABASE shop_{n} OWNER TO postgres; REVOKE ALL ON DATABASE shop_{n} FROM PUBLIC, migrator_{n}")
        .await;
    error("GRANT CONNECT").await;
    let ca = std::fs::read_to_string(world.root.join(mounts::DATABASE_CA)).unwrap();
    world.mount(mounts::DATABASE_CA, "no PEM");
    error("").await;
    world.mount(mounts::DATABASE_CA, &ca);
    world.mount(mounts::DATABASE_URL, &world.url("migrator-secret-2").replace("shop_", "other_"));
    error("spec.database.name").await;
}

#[tokio::test]
async fn statements_are_timed_from_one_measurement_to_the_next() {
    let world = World::new().await;
    let mut statements =
        StatementsSource::new(&StatementsCheck { containing: None }, &world.spec.plan.credits.balances, world.target());
    let missing = statements.measure().await;
    assert!(matches!(&missing, Measurement::NoData(words) if words.text.contains("CREATE EXTENSION")), "{missing:?}");
    world.alter("CREATE EXTENSION pg_stat_statements").await;
    let hidden = statements.measure().await;
    assert!(
        matches!(&hidden, Measurement::Error(words) if words.to_string().contains(&format!("GRANT pg_read_all_stats TO \
            \"migrator_{}\"", world.number))),
        "{hidden:?}"
    );
    world.alter("GRANT pg_read_all_stats TO migrator_{n}").await;
    assert!(
        matches!(statements.measure().await, Measurement::NoData(words) if words.text.contains("first measurement"))
    );
    assert!(matches!(statements.measure().await, Measurement::NoData(words) if words.text.contains("no call")));

    let app = world.root_session(&format!("shop_{}", world.number)).await;
    let slow = "SELECT pg_sleep(0.02), balance FROM user_credits WHERE user_id = 1";
    for _ in 0..3 {
        app.query(slow, &[]).await.unwrap();
    }
    app.query("SELECT count(*) FROM users", &[]).await.unwrap();
    // The operator's own does not count.
    let own = world.owner().await;
    own.query("SELECT count(*) FROM user_credits", &[]).await.unwrap();
    let Measurement::Value { value: Value::Number(mean), samples } = statements.measure().await else {
        panic!("no value")
    };
    assert_eq!(samples, Some(3.0));
    assert!((20.0..1000.0).contains(&mean.parse::<f64>().unwrap()), "{mean}");
    assert!(matches!(statements.measure().await, Measurement::NoData(_)));

    app.query(slow, &[]).await.unwrap();
    let reset = "SELECT pg_stat_statements_reset(0, (SELECT oid FROM pg_database WHERE datname = current_database()))";
    app.query(reset, &[]).await.unwrap();
    app.query(slow, &[]).await.unwrap();
    app.query(slow, &[]).await.unwrap();
    assert!(matches!(statements.measure().await, Measurement::Value { samples: Some(2.0), .. }));
}
