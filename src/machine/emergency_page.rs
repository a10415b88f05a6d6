//! What docs/emergency.md has to say: each step and each reason with which writes can be blocked.
//!
//! Called by the tests and the simulation: whatever they reach is looked up. Imports `api`.

use std::{collections::BTreeSet, sync::LazyLock};

use crate::api::{CreditMigrationStatus, Reason, Writes};

/// Sections that say what a state means and what ends it.
const SECTIONS: [&str; 3] = ["Decision tree", "Where writes can stay blocked", "RollbackFailed"];

/// Names in the first column of their tables.
static NAMES: LazyLock<BTreeSet<&str>> = LazyLock::new(|| {
    let sections = include_str!("../../docs/emergency.md").split("\n## ");
    let lines = sections.filter(|section| SECTIONS.iter().any(|title| section.starts_with(title))).flat_map(str::lines);
    let first = lines.filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
    first.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect()
});

/// Asserts that the page has what this status shows, if writes are blocked: the step, and the reasons of `Ready` and of
/// problems.
pub(super) fn assert_has(status: &CreditMigrationStatus) {
    if status.writes != Some(Writes::Blocked) {
        return;
    }
    let step = status.step.map(|step| step.to_string());
    let ready = status.conditions.iter().filter(|c| c.type_ == "Ready").map(|c| c.reason.clone());
    let problems = status.problems.iter().filter(|problem| problem.reported).map(|problem| problem.reason.clone());
    for name in step.into_iter().chain(ready).chain(problems) {
        assert!(
            NAMES.contains(name.as_str()),
            "writes are blocked with {name} in {:?}, and no table of docs/emergency.md has it",
            status.phase
        );
    }
}

/// Whether the run of a rollback can end with it, and writes stay blocked. No `_`: a new reason has to be decided here.
fn ends_a_rollback(reason: Reason) -> bool {
    match reason {
        Reason::SecretKeyMissing
        | Reason::ConnectionInvalid
        | Reason::HostUnreachable
        | Reason::CertificateNotTrusted
        | Reason::AuthenticationFailed
        | Reason::WrongDatabase
        | Reason::ServerTooOld
        | Reason::PrivilegeMissing
        | Reason::RoleMissing
        | Reason::TableMissing
        | Reason::ColumnMissing
        | Reason::DatabaseInUse
        | Reason::SqlChanged
        | Reason::SqlSyntaxError
        | Reason::SqlMetaCommand
        | Reason::SqlTransactionControl
        | Reason::SqlOutsideTransaction
        | Reason::SqlOutsideDatabase
        | Reason::SqlFailed
        | Reason::TableNotParked
        | Reason::BalancesUnexplained
        | Reason::VerifyDownFailed
        | Reason::InvariantBroken
        | Reason::LockTimeout
        | Reason::DatabaseUnavailable
        | Reason::WritesNotBlocked
        | Reason::WritesStillBlocked
        | Reason::ConnectionLost
        | Reason::DeadlinePassed
        | Reason::PodFailed
        | Reason::StepTimeout
        | Reason::Internal => true,
        // Of the preparation, of the up SQL, of stages and of notices.
        Reason::ServerTooNew
        | Reason::ClockSkew
        | Reason::AllTablesPublished
        | Reason::ScratchDatabaseExists
        | Reason::CopyTooRisky
        | Reason::ExtensionMissing
        | Reason::TablesNotGone
        | Reason::ParkedTableInUse
        | Reason::RightsLost
        | Reason::BucketMissing
        | Reason::BucketDenied
        | Reason::StoreUnreachable
        | Reason::BackupAltered
        | Reason::BackupUnreadable
        | Reason::DumpFailed
        | Reason::RollbackNotEqual
        | Reason::CheckNotMeasurable
        | Reason::SchemaDrifted
        | Reason::VerifyUpFailed
        | Reason::StandbyBehind
        | Reason::CheckInvalid
        | Reason::RepositoryUnreachable
        | Reason::RepositoryDenied
        | Reason::CommitMissing
        | Reason::RefElsewhere
        | Reason::TemplateInvalid
        | Reason::NoticeUndelivered
        | Reason::ProbeFailed => false,
    }
}

#[test]
fn each_end_of_a_rollback_that_keeps_writes_blocked_is_on_the_page() {
    let absent: Vec<&Reason> =
        Reason::ALL.iter().filter(|reason| ends_a_rollback(**reason) && !NAMES.contains(reason.as_str())).collect();
    assert!(absent.is_empty(), "{absent:?} not in docs/emergency.md");
}
