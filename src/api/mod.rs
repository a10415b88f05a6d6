//! The three kinds of group `creditmigration.io/v1alpha1`: serde types, schemas, CEL rules. Pure.
#![allow(
    clippy::duplicated_attributes,
    reason = "kube takes each printer column and each rule as an attribute of one name"
)]

mod checks;
mod code;
mod coverage;
mod crds;
mod decision;
mod digest;
#[cfg(test)]
pub(crate) mod fixtures;
mod follow_ups;
mod migration;
pub mod mounts;
mod names;
mod notifications;
mod reason;
mod run;
mod schedule;
mod sources;
mod status;
mod triggers;

pub use checks::*;
pub use code::*;
pub use coverage::Gap;
pub use crds::{crds, crds_yaml};
pub use decision::*;
pub use digest::*;
pub use follow_ups::*;
pub use migration::*;
pub use names::*;
pub use notifications::*;
pub use reason::*;
pub use run::*;
pub use schedule::*;
pub use sources::*;
pub use status::*;
pub use triggers::*;

pub use crate::shared::time::Time;

/// API group of all kinds.
pub const GROUP: &str = "creditmigration.io";
