//! Task `DayCheck`: measures for a while and writes a report.
use super::{Failure, work::Work};
use crate::api::Reason;

/// measures for a while and writes a report.
///
/// # Errors
/// Not written yet.
pub async fn run(_work: &Work<'_>, _before: &[crate::api::CheckResult]) -> Result<String, Failure> {
    Err(Failure::new(Reason::Internal, "not written yet"))
}
