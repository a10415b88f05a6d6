//! A spec, as the API server would have completed it.

use serde_json::json;

use crate::api::CreditMigrationSpec;

/// Stands in for what only the runner may know; it must never be seen in an API object.
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
        "window": {"maxDuration": "60s"},
        "validation": {"duration": "20s", "checks": []},
        "monitoring": {"duration": "30s", "checks": [{
            "name": "errors", "sql": {"query": "SELECT 0"}, "interval": "5s", "max": "0", "onBreach": "Rollback",
        }]},
    }))
    .expect("the fixture fits the types")
}
