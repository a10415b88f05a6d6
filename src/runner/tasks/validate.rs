//! Tasks `Validate` and `Monitor`: measures a stage's checks until the process receives SIGTERM.
//!
//! The controller decides when a stage has ended and what a breach does.

use crate::{
    api::CheckResult,
    runner::{Failure, checks, context::TaskContext},
};

/// Measures. Reports `checks`. `before` is what an earlier process of the same run reported.
///
/// # Errors
/// As [`checks::watch`].
pub async fn run(context: &TaskContext<'_>, before: &[CheckResult]) -> Result<String, Failure> {
    checks::watch(context, &context.spec.plan.checks_of(context.spec.task), before, &context.stop).await?;
    Ok("ended by the controller".to_owned())
}
