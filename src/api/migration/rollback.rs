//! Effect of a breached check, and how a rollback stays possible.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Triggers;
use crate::api::named::named;

/// Whether the operator may roll back on its own after the window.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum RollbackPolicy {
    /// A breached check with `onBreach: Rollback` starts the rollback.
    #[default]
    Automatic,
    /// A breached check blocks the stage until an approver decides.
    Manual,
}

/// Effect of a breached check.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct Rollback {
    /// Who starts a rollback. `Automatic`: a breached trigger or check with `onBreach: Rollback`. `Manual`: an approver
    /// only; a breach is reported and blocks the stage.
    pub policy: RollbackPolicy,
    /// The checklist's five triggers, measured in the validation and monitoring stages. Each starts a rollback if
    /// `policy` allows it.
    pub triggers: Triggers,
    /// The rollback is rehearsed again while the new version runs.
    // Not serialized while it is the default: the digests of existing plans stay valid.
    #[serde(skip_serializing_if = "RollbackRehearsal::is_default")]
    pub rehearsal: RollbackRehearsal,
}

/// The rehearsal of the rollback after the window: on a copy of the live database, with what was written since.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct RollbackRehearsal {
    /// When it is carried out. `Daily`: at the end of Monitoring, and each day until the decision. `Once`: at the end
    /// of Monitoring. `Never`: not at all.
    pub mode: RollbackRehearsalMode,
}

impl RollbackRehearsal {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// When the rollback is rehearsed again.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum RollbackRehearsalMode {
    /// At the end of Monitoring, and each day until the decision.
    #[default]
    Daily,
    /// At the end of Monitoring.
    Once,
    /// Not at all.
    Never,
}

named! {
    RollbackRehearsalMode: Daily, Once, Never
}
