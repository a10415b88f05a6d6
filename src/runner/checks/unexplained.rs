//! Which balances nothing explains: a CSV in the bucket next to the backup, written when a check of balances fails.
//!
//! # Contract
//! - Rows go into the bucket and nowhere else: status and log have the object, its digest and the number of rows.
//! - At most [`MAX_ROWS`] rows. A later list replaces the earlier one.
//! - It runs next to the checks, and delays none.

use std::{fmt::Write as _, time::Duration};

use tokio::sync::Notify;

use super::balances::{UnexplainedBalance, unexplained_balances};
use crate::{
    api::{BalancesComparison, Check, CheckOutcome, CheckResult, Reason, UnexplainedEvidence, sha256},
    runner::{
        Failure,
        clients::object_store::{STORE_RETRY_TIMEOUT, StoreClient},
        context::TaskContext,
    },
    telemetry,
};

/// Most rows of a list.
const MAX_ROWS: usize = 10_000;
/// Pause between two lists: while a check fails, each measurement asks for one.
const LIST_INTERVAL: Duration = Duration::from_secs(60);

/// Whether a result says that balances of single users are not explained.
pub(super) fn concerns(checks: &[Check], result: &CheckResult) -> bool {
    let check = checks.iter().find(|check| check.name == result.name);
    let by_user = check.and_then(|check| check.balances.as_ref()).is_some_and(|balances| {
        // A total differs without a user to name.
        balances.compare == BalancesComparison::Users
    });
    by_user && result.outcome == CheckOutcome::Fail
}

/// Writes a list whenever one is asked for, as long as it is polled. Notes `unexplained`.
pub(super) async fn list_when_asked(context: &TaskContext<'_>, asked: &Notify) {
    loop {
        asked.notified().await;
        match list(context).await {
            Ok(evidence) => {
                let UnexplainedEvidence { object, rows, .. } = &evidence;
                tracing::warn!(object, rows, "balances that nothing explains are listed");
                context.progress.update(|status| status.unexplained = Some(evidence));
            }
            Err(failure) => {
                tracing::warn!(reason = %failure.reason, error = %failure, "unexplained balances are not listed");
            }
        }
        tokio::time::sleep(LIST_INTERVAL).await;
    }
}

async fn list(context: &TaskContext<'_>) -> Result<UnexplainedEvidence, Failure> {
    let plan = &context.spec.plan;
    let backup = context.spec.inputs.backup_object.as_deref();
    let backup = backup.ok_or_else(|| Failure::new(Reason::Internal, "the run has no input backupObject"))?;
    let store = StoreClient::open(&plan.backup.store, &context.settings.store_keys()?, STORE_RETRY_TIMEOUT)?;
    let mut client = context.settings.target()?.connect("unexplained").await?;
    let found = unexplained_balances(&mut client, &context.control_spec(), MAX_ROWS).await?;
    let text = csv(&found);
    let evidence = UnexplainedEvidence {
        object: format!("{}.unexplained.csv", TaskContext::backup_base(backup)),
        rows: u64::try_from(found.len()).unwrap_or(u64::MAX),
        sha256: sha256(text.as_bytes()),
        taken_at: telemetry::now(),
    };
    store.put(&evidence.object, text.into_bytes()).await?;
    Ok(evidence)
}

/// A header and one line for each user. What a user does not have is empty.
fn csv(found: &[UnexplainedBalance]) -> String {
    let mut text = String::from("user,before,transactions since,expected,now\n");
    for UnexplainedBalance { user, before, since, expected, now } in found {
        let (before, now) = (before.as_deref().unwrap_or_default(), now.as_deref().unwrap_or_default());
        // Writing to a String cannot fail.
        let _ = writeln!(text, "\"{}\",{before},{since},{expected},{now}", user.replace('"', "\"\""));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_quoted_and_what_is_missing_is_empty() {
        let found = [UnexplainedBalance {
            user: "a\"b,c".to_owned(),
            before: None,
            since: "-1.5".to_owned(),
            expected: "-1.5".to_owned(),
            now: Some("7".to_owned()),
        }];
        assert_eq!(csv(&found), "user,before,transactions since,expected,now\n\"a\"\"b,c\",,-1.5,-1.5,7\n");
    }
}
