//! The states of a window task, as its runner reports them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::named::named;

/// State of a window task.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Default, PartialOrd, Ord, Hash)]
pub enum WindowState {
    /// Not connected yet.
    #[default]
    Starting,
    /// Connected, SQL loaded, digest checked. Writes are not blocked.
    Ready,
    /// The window is recorded, writes are being blocked.
    Blocking,
    /// Writes are blocked, verified by a refused write.
    Blocked,
    /// The up SQL is committed and verified. Writes are blocked.
    Migrated,
    /// Ended: writes are unblocked, with the new schema.
    Unblocked,
    /// Ended: writes are unblocked, with the old schema.
    RolledBack,
}

named! {
    WindowState: Starting, Ready, Blocking, Blocked, Migrated, Unblocked, RolledBack
}
