//! For tests: a spec as the API server would complete it, and evidence that fits it.

use serde_json::json;

use super::{
    BackupEvidence, BackupFormat, BaselineEvidence, CreditMigrationSpec, KeyUsersEvidence, LeftOutObjects,
    RehearsalEvidence, ReportEvidence, RollbackRehearsalEvidence, SchemaEvidence, TableUsers, Time,
    VerificationEvidence,
};

/// Represents what only the runner may know. It must never appear in an API object.
pub(crate) const SECRET: &str = "postgresql://migrator:s3cr3t@db/shop";

/// A migration with one check that rolls back, author `author`, two approvals.
#[allow(clippy::expect_used)]
pub(crate) fn spec() -> CreditMigrationSpec {
    serde_json::from_value(json!({
        "requestedBy": "author",
        "database": {
            "name": "shop",
            "connection": {"secretRef": {"name": "db", "key": "url"}},
            "applicationRoles": ["app"],
        },
        "migration": {
            "up": {"configMapKeyRef": {"name": "sql", "key": "up"}},
            "down": {"configMapKeyRef": {"name": "sql", "key": "down"}},
            "tablesGone": ["credit_packages"],
        },
        "application": {
            "flag": {"configMapKeyRef": {"name": "shop", "key": "VERSION"}, "from": "v1", "to": "v2"},
            "workloads": [{"kind": "Deployment", "name": "shop"}],
            "versionProbe": {"url": "http://shop/version", "jsonPath": "$.running"},
        },
        "backup": {"store": {"url": "s3://backups/x/", "secretRef": {"name": "bucket"}}},
        "schedule": {"leadTime": "0s"},
        "window": {"maxDuration": "60s"},
        "validation": {"duration": "20s", "checks": []},
        "monitoring": {"duration": "30s", "checks": [{
            "name": "errors", "sql": {"query": "SELECT 0"}, "interval": "5s", "max": "0", "onBreach": "Rollback",
        }]},
        // Triggers that need no source would be in each stage of each table.
        "followUps": {
            "day": {"after": "60s", "duration": "1s"},
            "week": {"after": "70s", "duration": "1s"},
            "reminderInterval": "10m",
        },
        "rollback": {"triggers": {"balanceErrors": {"mode": "Disabled"}, "databaseConnection": {"mode": "Disabled"}},
            "rehearsal": {"mode": "Never"}},
    }))
    .expect("the fixture fits the types")
}

/// Statistics of two users.
pub(crate) fn baseline(taken_at: Time) -> BaselineEvidence {
    BaselineEvidence {
        users: 2,
        total_balance: "3".into(),
        total_purchased: Some("1".into()),
        average_balance: "1.5".into(),
        max_balance: "2".into(),
        transactions: vec![],
        taken_at,
    }
}

/// A dump.
pub(crate) fn backup(finished_at: Time) -> BackupEvidence {
    BackupEvidence {
        object: "s3://b/o".into(),
        statistics_object: "s3://b/o.json".into(),
        bytes: 10,
        sha256: "sha256:dump".into(),
        format: BackupFormat::Custom,
        archives: 1,
        jobs: 1,
        pg_dump_version: "17".into(),
        finished_at,
    }
}

/// That dump, read back.
pub(crate) fn verification() -> VerificationEvidence {
    VerificationEvidence { bytes: 10, sha256: "sha256:dump".into(), entries: 3 }
}

/// A rehearsal whose SQL took so many seconds.
pub(crate) fn rehearsal(migrate_seconds: f64) -> RehearsalEvidence {
    RehearsalEvidence {
        users: 2,
        restore_seconds: 1.0,
        migrate_seconds,
        rollback_seconds: 1.0,
        tables_equal: 3,
        checks_measured: 0,
        checks_not_passing: vec![],
        compare_seconds: 0.0,
        writes: None,
        schema: Some(SchemaEvidence { sha256: "sha256:schema".into(), objects: 9 }),
        left_out: LeftOutObjects::default(),
        rights_lost: vec![],
        invariants: vec![],
        server: None,
        statements: vec![],
        up_compares_all: false,
        down_compares_all: false,
    }
}

/// A rollback that works on a copy of the live database.
pub(crate) fn rollback_rehearsal(finished_at: Time) -> RollbackRehearsalEvidence {
    RollbackRehearsalEvidence {
        finished_at,
        rows: 900,
        users: 300,
        users_written: 7,
        credits_written: Some("120".into()),
        unexplained: Some(0),
        transactions: vec![],
        duration_seconds: 20.0,
        rollback_seconds: 2.0,
        compare_seconds: 1.5,
        compares_all: false,
        schema: None,
        left_out: LeftOutObjects::default(),
        message: "each balance kept".into(),
    }
}

/// One key user.
pub(crate) fn key_users(taken_at: Time) -> KeyUsersEvidence {
    KeyUsersEvidence {
        object: "s3://b/o.key-users.csv".into(),
        users: 1,
        bytes: 40,
        sha256: "sha256:csv".into(),
        taken_at,
    }
}

/// A report in which all checks pass.
pub(crate) fn report(taken_at: Time) -> ReportEvidence {
    ReportEvidence {
        object: "s3://b/o.report.json".into(),
        bytes: 100,
        sha256: "sha256:report".into(),
        passed: 0,
        checks: 0,
        summary: "2 users, 3 credits".into(),
        users: TableUsers::default(),
        taken_at,
    }
}
