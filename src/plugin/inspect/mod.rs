//! What a spec names and whether the cluster, or the given files, have it; and the procedure in words. Pure.
//!
//! Called by the verbs; imports `output` only.

pub(super) mod documents;
pub(super) mod needs;
pub(super) mod procedure;
pub(super) mod world;
