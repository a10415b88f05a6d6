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
mod follow_ups;
mod migration;
pub mod mounts;
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
pub use notifications::*;
pub use reason::*;
pub use run::*;
pub use schedule::*;
pub use sources::*;
pub use status::*;
pub use triggers::*;

/// API group of all kinds.
pub const GROUP: &str = "creditmigration.io";

/// Finalizer which keeps a `CreditMigration` until its window is closed and its guards are removed.
pub const FINALIZER: &str = "creditmigration.io/window-closed";

/// Pod template annotation that restarts a workload for one switch; its value names migration and direction,
/// so that each pod tells which switch it was started after.
pub const RESTARTED_FOR: &str = "creditmigration.io/restarted-for";

/// Annotation on the flag's ConfigMap: migration and direction of the last switch. It is written with every switch, also
/// when the value needs no change, so that a late write of a former leader meets another resourceVersion.
pub const FLAG_SET_FOR: &str = "creditmigration.io/flag-set-for";

/// Point in time, RFC 3339 in UTC.
pub type Time = jiff::Timestamp;
