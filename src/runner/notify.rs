//! Task `Notify`: tells people.
use super::{Failure, work::Work};
use crate::api::Reason;

/// tells people.
///
/// # Errors
/// Not written yet.
pub async fn run(_work: &Work<'_>) -> Result<String, Failure> {
    Err(Failure::new(Reason::Internal, "not written yet"))
}
