//! Task `CodeBackup`: pushes tag and branch.
use super::{Failure, work::Work};
use crate::api::Reason;

/// pushes tag and branch.
///
/// # Errors
/// Not written yet.
pub async fn run(_work: &Work<'_>) -> Result<String, Failure> {
    Err(Failure::new(Reason::Internal, "not written yet"))
}
