//! The two directions of a migration, and the schema that each leaves behind.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::WindowState;

/// Direction in which the window applies the SQL and switches the application.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the old version to the new one: task `Window`, up SQL.
    Forward,
    /// Back to the old version: task `RollbackWindow`, down SQL.
    Rollback,
}

impl Direction {
    /// Name of its SQL, also in the database's ledger: `up` or `down`.
    pub fn sql_name(self) -> &'static str {
        match self {
            Direction::Forward => "up",
            Direction::Rollback => "down",
        }
    }

    /// The schema that is in place as long as the SQL of this direction has not been committed.
    pub fn schema_before(self) -> SchemaInPlace {
        match self {
            Direction::Forward => SchemaInPlace::Old,
            Direction::Rollback => SchemaInPlace::New,
        }
    }
}

/// Which schema the application's tables have when writes are allowed again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SchemaInPlace {
    /// The one before the migration.
    Old,
    /// The one that the up SQL made.
    New,
}

impl SchemaInPlace {
    /// The state of a window that has ended with this schema, and writes allowed.
    pub fn final_state(self) -> WindowState {
        match self {
            SchemaInPlace::Old => WindowState::RolledBack,
            SchemaInPlace::New => WindowState::Unblocked,
        }
    }
}
