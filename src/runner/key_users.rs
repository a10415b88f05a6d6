//! Task `ExportKeyUsers`: streams the rows of key users into the bucket.
use super::{Failure, work::Work};
use crate::api::Reason;

/// streams the rows of key users into the bucket.
///
/// # Errors
/// Not written yet.
pub async fn run(_work: &Work<'_>) -> Result<String, Failure> {
    Err(Failure::new(Reason::Internal, "not written yet"))
}
