//! Tables that the migration gives up: kept for a while where no one uses them.

use kube::{KubeSchema, core::Duration};
use serde::{Deserialize, Serialize};

/// Tables that the new version does not need. Instead of dropping them the up SQL leaves them alone: its transaction
/// moves them to a schema of their own and takes their grants away, before the first statement. A rollback moves them
/// back with their grants, before the down SQL. They are dropped `dropAfter` after the decision to keep.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Park {
    /// The tables, with their partitions, indexes and own sequences. Their writes are blocked in the window. Tables of
    /// `credits` cannot be parked: the new version's balances are compared with theirs.
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 127)))]
    pub tables: Vec<String>,
    /// Schema that they are moved to. It is created if it is not there, and dropped with them.
    #[serde(default = "parked_schema")]
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(
        validation = Rule::new("!self.startsWith('pg_') && !(self in \
            ['public', 'information_schema', 'credit_migration'])")
            .message("park.schema must be a schema for these tables alone, for example credit_migration_parked")
    )]
    pub schema: String,
    /// Time from the decision to keep until they are dropped.
    #[serde(default = "thirty_days")]
    #[x_kube(
        validation = Rule::new("duration(self) >= duration('0s')")
            .message("park.dropAfter must not be negative, for example 720h")
    )]
    pub drop_after: Duration,
}

impl Park {
    /// The statement that drops them where they are parked.
    pub fn drop_statement(&self) -> String {
        let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
        let parked = self.tables.iter().map(|table| {
            let name = table.split_once('.').map_or(table.as_str(), |(_, name)| name);
            format!("{}.{}", quoted(&self.schema), quoted(name))
        });
        format!("DROP TABLE {};", parked.collect::<Vec<_>>().join(", "))
    }
}

fn parked_schema() -> String {
    "credit_migration_parked".to_owned()
}

fn thirty_days() -> Duration {
    std::time::Duration::from_secs(30 * 24 * 3600).into()
}
