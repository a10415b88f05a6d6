//! The objects that a spec names, whether they exist and fit, and descriptions of the procedure. Pure but for files.
//!
//! Called by the verbs; imports `output` only.

pub(super) mod documents;
pub(super) mod needs;
pub(super) mod procedure;
pub(super) mod record;
pub(super) mod world;
