//! The rehearsal's part on checks that read the database: each is measured once on the migrated copy, before the
//! rollback. Otherwise a query that does not fit the new schema is found when the new version is live, by a stage that
//! cannot end or a trigger that never fires.

use std::time::Duration;

use crate::{
    api::{Check, CheckOutcome, CreditMigrationSpec, OnBreach, Reason},
    runner::{
        Failure,
        checks::{
            Source, SourceContext,
            evaluator::{Measurement, assess},
        },
        context::TaskContext,
        database::connection::Target,
    },
};

/// What was measured on the copy.
#[derive(Debug, Default)]
pub struct Measured {
    /// Checks that were measured.
    pub checks: u32,
    /// Those among them that do not pass there, with name, observed value and limit.
    pub not_passing: Vec<String>,
}

/// Measures the `sql` and `balances` checks of all stages once on `copy`.
///
/// A check beyond its limit is reported, not refused: the copy has no traffic.
///
/// # Errors
/// `CheckNotMeasurable` for a check that can be measured on no copy of this schema; whatever connecting to `copy` fails
/// with.
pub async fn measure(context: &TaskContext<'_>, copy: &Target) -> Result<Measured, Failure> {
    let source_context = SourceContext::on(context, copy.clone().into())?;
    let mut measured = Measured::default();
    for (field, check) in context.spec.plan.all_checks() {
        if check.sql.is_none() && check.balances.is_none() {
            continue;
        }
        let measurement =
            Source::new(&check, &source_context).measure(&check, Duration::from(check.interval), &source_context).await;
        let (outcome, detail) = assess(&check, &measurement);
        let summary = format!("{}: {detail}", check.name);
        if outcome == CheckOutcome::Error || outcome == CheckOutcome::NoData && never_ends(&context.spec.plan, &check) {
            if matches!(measurement, Measurement::Error(_)) {
                // A database that is away says nothing about the check.
                copy.connect("rehearsal-copy").await?;
            }
            let next = if measurement.has_next() { "" } else { "; next: write it for the new schema" };
            let message = format!("{field} on the migrated copy: {summary}{next}");
            return Err(Failure::new(Reason::CheckNotMeasurable, message));
        }
        measured.checks += 1;
        if outcome != CheckOutcome::Pass {
            measured.not_passing.push(summary);
        }
    }
    Ok(measured)
}

/// Whether a check without data would block its stage for ever. That a query has no row may change with traffic, and
/// what a trigger does not find it does not watch.
fn never_ends(plan: &CreditMigrationSpec, check: &Check) -> bool {
    let of_a_stage = plan.validation.checks.contains(check) || plan.monitoring.checks.contains(check);
    of_a_stage && check.balances.is_some() && check.on_breach != OnBreach::Warn
}
