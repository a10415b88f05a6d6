//! Schema, CEL rules and defaults.

use serde_json::{Value, json};

use super::cluster::{Person, set, try_crd, with_cluster};

#[tokio::test]
async fn crds_are_accepted_without_warning() {
    with_cluster("crds", async |w| {
        for crd in credit_migration::api::crds().unwrap() {
            let answer = try_crd(&w.admin, &crd).await;
            assert!(answer.ok(), "{}", answer.message());
            assert!(answer.warnings.is_empty(), "{:?}", answer.warnings);
        }
    })
    .await;
}

/// Path, invalid value, and part of the error message.
pub(super) type Bad = (&'static str, Value, &'static str);

pub(super) async fn refused(person: &Person, plural: &str, good: &Value, cases: Vec<Bad>) {
    let mut wrong = vec![];
    let answer = person.create(plural, good, true).await;
    assert!(answer.ok(), "the good one is refused: {}", answer.message());
    let n = cases.len();
    for (path, value, text) in cases {
        let mut object = good.clone();
        set(&mut object, path, value.clone());
        let answer = person.create(plural, &object, true).await;
        if answer.ok() || !answer.message().contains(text) {
            wrong.push(format!("{path} = {value}: {} {:?}, expected {text:?}", answer.code, answer.message()));
        }
    }
    println!("{n} bad {plural} refused");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn check() -> Value {
    json!({"name": "errors", "sql": {"query": "SELECT 0"}, "max": "0"})
}

fn invariant(name: &str) -> Value {
    json!({"name": name, "before": "SELECT 1", "after": "SELECT 1"})
}

#[tokio::test]
async fn rejected_migrations() {
    with_cluster("migrations", async |w| {
        let mut good = w.migration("m");
        set(&mut good, "spec/monitoring", json!({"duration": "2h", "checks": [check()]}));
        set(&mut good, "spec/application/versionProbe", json!({"url": "http://shop/version"}));
        set(&mut good, "spec/window", json!({"maxDuration": "5m"}));
        set(&mut good, "spec/runner", json!({}));
        set(&mut good, "spec/credits", json!({"balances": {}, "transactions": {}}));
        let long = "x".repeat(64);
        refused(&w.admin, "creditmigrations", &good, vec![
            ("metadata/name", "m".repeat(41).into(),
                "metadata.name must have at most 40 characters: names of Jobs are derived from it"),
            ("spec/requestedBy", Value::Null, "spec.requestedBy: Required value"),
            ("spec/requestedBy", "".into(), "spec.requestedBy: Invalid value"),
            ("spec/database", Value::Null, "spec.database: Required value"),
            ("spec/database/name", "".into(), "spec.database.name: Invalid value"),
            ("spec/database/name", long.clone().into(), "spec.database.name: Too long: may not be more than 63"),
            ("spec/database/connection", Value::Null, "spec.database.connection: Required value"),
            ("spec/database/connection/secretRef/key", "".into(),
                "spec.database.connection.secretRef.key: Invalid value"),
            ("spec/database/connection/host", "".into(), "spec.database.connection.host: Invalid value"),
            ("spec/database/connection/sslMode", "Require".into(),
                "spec.database.connection.sslMode: Unsupported value"),
            ("spec/database/connection/secretRef/name", "".into(),
                "spec.database.connection.secretRef.name: Invalid value"),
            ("spec/database/allTablesPublications", "Ignored".into(),
                "spec.database.allTablesPublications: Unsupported value"),
            ("spec/database/applicationRoles", json!([]), "spec.database.applicationRoles: Invalid value"),
            ("spec/database/applicationRoles", Value::Null, "spec.database.applicationRoles: Required value"),
            ("spec/credits/balances/table", "".into(), "spec.credits.balances.table: Invalid value"),
            ("spec/credits/balances/userColumn", long.clone().into(), "spec.credits.balances.userColumn: Too long"),
            ("spec/credits/after", json!({"balances": {"table": ""}}),
                "spec.credits.after.balances.table: Invalid value"),
            ("spec/migration/up", Value::Null, "spec.migration.up: Required value"),
            ("spec/migration/down", Value::Null, "spec.migration.down: Required value"),
            ("spec/migration/lockTimeout", "0s".into(),
                "lockTimeout must be more than 0s and at most 1m, for example 2s"),
            ("spec/migration/lockTimeout", "61s".into(),
                "lockTimeout must be more than 0s and at most 1m, for example 2s"),
            ("spec/migration/lockTimeout", "soon".into(), "spec.migration.lockTimeout"),
            ("spec/migration/statementTimeout", "0s".into(), "statementTimeout must be more than 0s, for example 10m"),
            ("spec/migration/tablesGone", vec!["t"; 65].into(),
                "spec.migration.tablesGone: Too many: 65: must have at most 64 items"),
            ("spec/migration/invariants", json!([invariant("total"), invariant("total")]),
                "spec.migration.invariants[1]: Duplicate value"),
            ("spec/migration/invariants", json!([invariant("Total")]),
                "spec.migration.invariants[0].name: Invalid value"),
            ("spec/migration/invariants", json!([{"name": "total", "before": "SELECT 1"}]),
                "spec.migration.invariants[0].after: Required value"),
            ("spec/migration/park", json!({"tables": []}),
                "spec.migration.park.tables: Invalid value"),
            ("spec/migration/park", json!({"tables": ["t"], "schema": "public"}),
                "park.schema must be a schema for these tables alone, for example credit_migration_parked"),
            ("spec/migration/park", json!({"tables": ["t"], "dropAfter": "-1s"}),
                "park.dropAfter must not be negative, for example 720h"),
            ("spec/migration/protectedTables", vec!["t"; 65].into(),
                "spec.migration.protectedTables: Too many: 65: must have at most 64 items"),
            ("spec/application/flag/to", "v1".into(), "flag.from and flag.to must differ, for example v1 and v2"),
            ("spec/application/flag/configMapKeyRef", Value::Null,
                "spec.application.flag.configMapKeyRef: Required value"),
            ("spec/application/workloads", json!([]), "spec.application.workloads: Invalid value"),
            ("spec/application/workloads/0/kind", "StatefulSet".into(),
                "Unsupported value: \"StatefulSet\": supported values: \"Deployment\""),
            ("spec/application/versionProbe/url", "ftp://shop".into(), "url must start with http:// or https://"),
            ("spec/backup/store/url", "https://x/".into(),
                "url must be s3://BUCKET/PREFIX/, for example s3://backups/credit-migration/"),
            ("spec/backup/store/url", "s3://".into(), "url must be s3://BUCKET/PREFIX/"),
            ("spec/backup/store/endpoint", "ftp://x".into(),
                "endpoint must start with https:// (or http:// for a test)"),
            ("spec/backup/store/secretRef", Value::Null, "spec.backup.store.secretRef: Required value"),
            ("spec/rehearsal", json!({"database": ""}), "spec.rehearsal.database: Invalid value"),
            ("spec/rehearsal", json!({"database": long}), "spec.rehearsal.database: Too long"),
            ("spec/approval", json!({"required": 1}),
                "spec.approval.required: Invalid value: 1: spec.approval.required in body should be greater than or \
                equal to 2"),
            ("spec/approval", json!({"required": 11}), "should be less than or equal to 10"),
            ("spec/window/maxDuration", "14s".into(), "maxDuration must be between 15s and 1h, for example 5m"),
            ("spec/window/maxDuration", "61m".into(), "maxDuration must be between 15s and 1h, for example 5m"),
            ("spec/window/attempts", json!(0), "should be greater than or equal to 1"),
            ("spec/window/attempts", json!(11), "should be less than or equal to 10"),
            ("spec/window/maxDuration", json!(300), "spec.window.maxDuration: Invalid value: \"integer\""),
            ("spec/validation", json!({"duration": "-1s"}), "duration must not be negative, for example 30m"),
            ("spec/validation", json!({"checks": []}), "spec.validation.duration: Required value"),
            ("spec/monitoring/checks", json!([check(), check()]), "names of checks must be unique"),
            ("spec/monitoring/checks/0/name", "Bad_Name".into(), "spec.monitoring.checks[0].name: Invalid value"),
            ("spec/monitoring/checks/0/sql", Value::Null,
                "exactly one of sql, http, sequence, prometheus, balances, logs, connection, statements, workload \
                and job must be set"),
            ("spec/monitoring/checks/0/workload", json!({"kind": "Deployment", "name": "shop"}),
                "exactly one of sql, http, sequence, prometheus, balances, logs, connection, statements, workload \
                and job must be set"),
            ("spec/monitoring/checks/0/max", Value::Null,
                "a limit is missing: set max, min or equals, for example max: \"0.05\""),
            ("spec/monitoring/checks/0/max", "much".into(), "spec.monitoring.checks[0].max: Invalid value"),
            ("spec/monitoring/checks/0/max", json!(0.05), "spec.monitoring.checks[0].max: Invalid value: \"number\""),
            ("spec/monitoring/checks/0/minimumSamples", json!(5),
                "minimumSamples needs prometheus.samplesQuery, http.percentile, statements or logs: other sources \
                count no samples"),
            ("spec/monitoring/checks/0/failures", json!({"count": 4, "of": 3}),
                "failures.count must be at most failures.of"),
            ("spec/monitoring/checks/0/failures", json!({"count": 0, "of": 3}), "should be greater than or equal to 1"),
            ("spec/monitoring/checks/0/interval", "0s".into(), "interval must be at least 1s, for example 30s"),
            ("spec/monitoring/checks/0/onBreach", "Panic".into(),
                "Unsupported value: \"Panic\": supported values: \"Rollback\", \"Hold\", \"Warn\""),
            ("spec/monitoring/checks/0", json!({"name": "a", "http": {"url": "shop"}}),
                "url must start with http:// or https://"),
            ("spec/monitoring/checks/0", json!({"name": "a", "http": {"url": "http://shop", "method": "HEAD"}}),
                "Unsupported value: \"HEAD\""),
            ("spec/monitoring/checks/0", json!({"name": "a", "prometheus": {"url": "x", "query": "q"}, "max": "1"}),
                "url must start with http:// or https://"),
            ("spec/monitoring/checks/0", json!({"name": "a", "prometheus": {"url": "http://x", "query": "q"},
                "max": "1", "minimumSamples": 5}), "minimumSamples needs prometheus.samplesQuery"),
            ("spec/monitoring/checks", (0..33).map(|i| {
                let mut check = check();
                check["name"] = format!("c{i}").into();
                check
            }).collect(), "must have at most 32 items"),
            ("spec/rollback", json!({"policy": "Never"}),
                "Unsupported value: \"Never\": supported values: \"Automatic\", \"Manual\""),
            ("spec/runner/maxAttempts", json!(0), "should be greater than or equal to 1"),
            ("spec/runner/maxAttempts", json!(11), "should be less than or equal to 10"),
            ("spec/runner/stepTimeout", "9s".into(), "stepTimeout must be at least 10s, for example 6h"),
            ("spec/runner/resources", json!({"limits": {"memory": "100Mi"}}), "must be at least 128Mi"),
            ("spec/runner/resources", json!({"limits": {"memory": "much"}}), "spec.runner.resources.limits.memory"),
            ("spec/runner/resources", json!({"requests": {"cpu": "2"}, "limits": {"cpu": "1500m"}}),
                "resources.requests must not be above resources.limits"),
            ("spec/runner/limits", json!({"dumpPerSecond": "50"}), "spec.runner.limits.dumpPerSecond"),
            ("spec/backup/jobs", json!(17), "should be less than or equal to 16"),
            ("spec/backup/jobs", json!(2), "backup.jobs needs format Directory"),
            ("spec/backup/format", "Plain".into(), "Unsupported value: \"Plain\""),
            ("spec/backup/compression", json!({"method": "Gzip", "level": 10}), "compression.level must be at most 9"),
            ("spec/backup/compression", json!({"method": "None", "level": 1}), "None has no level"),
            ("spec/windoww", json!({}), "unknown field \"spec.windoww\""),
            ("spec/window/length", "5m".into(), "unknown field \"spec.window.length\""),
            ("spec/monitoring/checks/0/limit", "1".into(), "unknown field \"spec.monitoring.checks[0].limit\""),
        ])
        .await;
    })
    .await;
}

#[tokio::test]
async fn rejected_decisions() {
    with_cluster("decisions", async |w| {
        let good = w.decision("d", "Approve", Some("sha256:0"));
        let digest = "need spec.digest: kubectl get creditmigrations NAME -o jsonpath='{.status.plan.digest}'";
        refused(
            &w.admin,
            "migrationdecisions",
            &good,
            vec![
                ("spec/digest", Value::Null, digest),
                ("spec/digest", "abc".into(), digest),
                ("spec/digest", "x".repeat(129).into(), "spec.digest: Too long"),
                (
                    "spec/decision",
                    "Maybe".into(),
                    "Unsupported value: \"Maybe\": supported values: \"Approve\", \"Ready\", \"Reject\", \"Abort\", \
                \"Rollback\", \"Keep\"",
                ),
                ("spec/decision", Value::Null, "spec.decision: Required value"),
                ("spec/migration", "".into(), "spec.migration: Invalid value"),
                ("spec/migrationUID", Value::Null, "spec.migrationUID: Required value"),
                ("spec/by", "".into(), "spec.by: Invalid value"),
                ("spec/by", "another-user".into(), "spec.by must be your own name"),
                ("spec/reason", "x".repeat(1025).into(), "spec.reason: Too long"),
                ("spec/why", "x".into(), "unknown field \"spec.why\""),
            ],
        )
        .await;
        for word in ["Ready", "Keep"] {
            let answer = w.admin.create("migrationdecisions", &w.decision("d", word, None), true).await;
            assert!(answer.message().contains(digest), "{word}: {}", answer.message());
        }
        for word in ["Reject", "Abort", "Rollback"] {
            let answer = w.admin.create("migrationdecisions", &w.decision("d", word, None), true).await;
            assert!(answer.ok(), "{word} at night, without a hash: {}", answer.message());
        }
    })
    .await;
}

#[tokio::test]
async fn the_minimal_manifest_comes_back_with_the_checklists_values() {
    with_cluster("defaults", async |w| {
        let made = w.admin.create("creditmigrations", &w.migration("m"), true).await.object();
        let spec = &made["spec"];
        let columns =
            |names: &[(&str, &str)]| names.iter().map(|(k, v)| ((*k).to_owned(), json!(v))).collect::<Value>();
        let expected = [
            (
                "credits/balances",
                columns(&[
                    ("table", "user_credits"),
                    ("userColumn", "user_id"),
                    ("balanceColumn", "balance"),
                    ("purchasedColumn", "purchased_credits"),
                ]),
            ),
            (
                "credits/transactions",
                columns(&[
                    ("table", "credit_transactions"),
                    ("userColumn", "user_id"),
                    ("typeColumn", "type"),
                    ("amountColumn", "amount"),
                    ("createdAtColumn", "created_at"),
                    ("createdAtTimeZone", "UTC"),
                ]),
            ),
            ("database/allTablesPublications", json!("Refused")),
            ("migration/tablesGone", json!([])),
            ("migration/protectedTables", json!([])),
            ("migration/lockTimeout", json!("2s")),
            ("migration/statementTimeout", json!("600s")),
            ("application/flag/from", json!("v1")),
            ("application/flag/to", json!("v2")),
            ("backup/store/region", json!("us-east-1")),
            ("rehearsal", json!({"database": "test_credit_migration"})),
            ("approval", json!({"required": 2})),
            ("window", json!({"maxDuration": "300s", "attempts": 1})),
            ("validation", json!({"duration": "1800s", "checks": []})),
            ("monitoring", json!({"duration": "7200s", "checks": []})),
            ("application/flag/rollbackKey", json!("ENABLE_ROLLBACK")),
            ("backup/keyUsers", json!({"balanceOver": "1000", "purchasedOver": "0"})),
            (
                "schedule",
                json!({
                    "leadTime": "3600s", "backupMaxAge": "86400s", "allowedHours": [],
                    "presence": {"required": 2, "within": "3600s"},
                }),
            ),
            ("notifications", json!({"channels": [], "contacts": []})),
            (
                "followUps",
                json!({
                    "day": {"duration": "300s", "checks": []}, "week": {"duration": "300s", "checks": []},
                    "reminderInterval": "86400s",
                }),
            ),
            ("rollback/policy", json!("Automatic")),
            (
                "rollback/triggers",
                json!({
                    "interval": "3s", "failures": {"count": 3, "of": 3}, "balanceErrors": {"mode": "Enabled",
                        "maxUsers": 10},
                    "databaseConnection": {"mode": "Enabled", "maxUsed": "0.95"},
                }),
            ),
            ("runner", json!({"maxAttempts": 3, "stepTimeout": "21600s"})),
        ];
        let mut wrong = vec![];
        for (path, value) in expected {
            let found = spec.pointer(&format!("/{path}")).unwrap_or(&Value::Null);
            if *found != value {
                wrong.push(format!("{path}: {found}, expected {value}"));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        // The types read what the API server has completed, and fill in the same defaults.
        let by_server: credit_migration::api::CreditMigrationSpec = serde_json::from_value(spec.clone()).unwrap();
        let by_types: credit_migration::api::CreditMigrationSpec =
            serde_json::from_value(w.migration("m")["spec"].clone()).unwrap();
        assert_eq!(by_server, by_types);

        // What is null stays so: the ledger does not have it.
        let mut without = w.migration("m");
        set(&mut without, "spec/credits", json!({"balances": {"purchasedColumn": null}, "transactions": null}));
        let spec = w.admin.create("creditmigrations", &without, true).await.object()["spec"].take();
        let wanted = json!({"table": "user_credits", "userColumn": "user_id", "balanceColumn": "balance",
            "purchasedColumn": null});
        assert_eq!(spec["credits"], json!({"balances": wanted, "transactions": null}));
        set(&mut without, "spec/credits", json!({"transactions": {"typeColumn": null}}));
        let spec = w.admin.create("creditmigrations", &without, true).await.object()["spec"].take();
        assert_eq!(spec["credits"]["transactions"]["typeColumn"], Value::Null);
        assert_eq!(spec["credits"]["transactions"]["amountColumn"], "amount");

        // Defaults of partial objects.
        let mut partial = w.migration("m");
        set(&mut partial, "spec/database/allTablesPublications", "Allowed".into());
        set(&mut partial, "spec/application/versionProbe", json!({"url": "http://shop"}));
        set(
            &mut partial,
            "spec/monitoring",
            json!({"duration": "1m", "checks": [
                {"name": "answers", "http": {"url": "http://shop"}},
                {"name": "errors", "sql": {"query": "SELECT 0"}, "max": "0", "failures": {"of": 5}},
            ]}),
        );
        let spec = w.admin.create("creditmigrations", &partial, true).await.object()["spec"].take();
        assert_eq!(spec["application"]["versionProbe"]["jsonPath"], "$.running");
        let checks = &spec["monitoring"]["checks"];
        assert_eq!(checks[0]["interval"], "30s");
        assert_eq!(checks[0]["onBreach"], "Hold");
        assert_eq!(checks[0]["failures"], json!({"count": 3, "of": 3}));
        assert_eq!(
            checks[0]["http"],
            json!({"url": "http://shop", "method": "GET", "expectedStatus": 200, "timeout": "5s"})
        );
        assert_eq!(checks[1]["failures"], json!({"count": 3, "of": 5}));
        // Durations in all notations.
        for (text, seconds) in [("90s", 90), ("1m30s", 90), ("5m", 300), ("0h5m0s", 300), ("1h", 3600)] {
            let mut m = w.migration("m");
            set(&mut m, "spec/window", json!({"maxDuration": text}));
            let object = w.admin.create("creditmigrations", &m, true).await.object();
            let m: credit_migration::api::CreditMigration = serde_json::from_value(object).unwrap();
            assert_eq!(std::time::Duration::from(m.spec.window.max_duration).as_secs(), seconds, "{text}");
        }
    })
    .await;
}
