//! The objects that a spec names and whether they exist and fit (`needs`, `world`, `documents`), descriptions of the
//! procedure, and the record that evidence is read from. Pure but for files.
//!
//! Called by `verbs`, and by `connection`, which reads the record. Imports `output` and `error` of the plugin,
//! `machine`, `api` and `shared`; its tests also `commands`.

pub(super) mod documents;
pub(super) mod needs;
pub(super) mod procedure;
pub(super) mod record;
pub(super) mod world;
