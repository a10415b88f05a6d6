//! The three kinds of group `creditmigration.io/v1alpha1`: serde types, schemas, CEL rules, defaults. Pure.
//!
//! `migration/` has the spec of a `CreditMigration`.
//!
//! Called by `machine`, `controller`, `runner` and `plugin`. Imports `shared` only.
#![allow(
    clippy::duplicated_attributes,
    reason = "kube takes each printer column and each rule as an attribute of one name"
)]

mod backup_format;
mod clock;
mod crds;
mod decision;
mod digest;
mod direction;
mod evidence;
mod expected_window;
#[cfg(test)]
pub(crate) mod fixtures;
mod left_out;
mod migration;
pub mod mounts;
mod named;
mod names;
mod notice;
mod obstacle;
mod procedure;
mod ready_reason;
mod reason;
mod replication;
mod run;
mod safeguards;
mod statements;
mod status;
mod table_users;
mod task_spec;
pub mod window_rules;
mod window_state;
mod work;

pub use backup_format::*;
pub use clock::*;
pub use crds::{crds, crds_yaml};
pub use decision::*;
pub use digest::*;
pub use direction::*;
pub use evidence::*;
pub use expected_window::*;
pub use left_out::*;
pub use migration::*;
pub use names::*;
pub use notice::*;
pub use obstacle::*;
pub use procedure::*;
pub use ready_reason::*;
pub use reason::*;
pub use replication::*;
pub use run::*;
pub use safeguards::*;
pub use statements::*;
pub use status::*;
pub use table_users::*;
pub use task_spec::*;
pub use window_state::*;
pub use work::*;

pub use crate::shared::time::Time;

/// API group of all kinds.
pub const GROUP: &str = "creditmigration.io";
