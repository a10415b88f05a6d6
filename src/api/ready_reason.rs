//! Why a migration is in its state: the reasons that the machine gives, in addition to [`super::Reason`] of tasks.

macro_rules! ready_reasons {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// Reason of the condition `Ready`, of Events, of steps and of a rollback's cause, as the machine gives it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum ReadyReason { $($(#[doc = $doc])+ $name,)+ }

        impl ReadyReason {
            /// Every reason, for documentation and tests.
            pub const ALL: &[ReadyReason] = &[$(ReadyReason::$name,)+];

            /// Its name, CamelCase, as users see it.
            pub const fn as_str(self) -> &'static str {
                match self { $(ReadyReason::$name => stringify!($name),)+ }
            }
        }
    };
}

ready_reasons! {
    /// A step is under way.
    Progressing,
    /// The plan changed: earlier evidence and approvals do not count.
    PreparationRestarted,
    /// The application that was approved is not the one that is there: approvals do not count.
    ApplicationChanged,
    /// A step's evidence is void because the plan changed.
    Superseded,
    /// The spec does not ask for the step.
    NotConfigured,
    /// ConfigMap or key of the SQL is missing.
    SqlMissing,
    /// The flag's ConfigMap is missing.
    FlagConfigMapMissing,
    /// The flag's key is missing.
    FlagKeyMissing,
    /// The flag's ConfigMap is immutable.
    FlagConfigMapImmutable,
    /// The API server refuses the write that switches the flag.
    FlagWriteRefused,
    /// Whether the application can be switched back is not known: a webhook supports no dry run.
    DryRunUnsupported,
    /// The flag is not at `from`.
    FlagNotAtFrom,
    /// The key that confirms that the release can be rolled back is missing or not `"true"`.
    RollbackNotEnabled,
    /// The allowed hours cannot be computed.
    ScheduleInvalid,
    /// A workload is missing.
    WorkloadMissing,
    /// No container of a workload reads the flag's key.
    WorkloadDoesNotReadFlag,
    /// A workload is paused: a restart replaces no pod.
    WorkloadPaused,
    /// The API server refuses the restart of a workload.
    WorkloadWriteRefused,
    /// A workload's rollout is under way or has stopped, or replicas are not available.
    WorkloadNotSettled,
    /// Pods that are not a workload's own match its selector.
    ForeignPods,
    /// A quota has no room for the pods of a rollout.
    QuotaExceeded,
    /// The operator may not read the quotas.
    QuotaNotReadable,
    /// The clocks of controller and API server differ.
    ControllerClockSkew,
    /// An admission policy is missing or weak.
    DecisionPolicyMissing,
    /// The rehearsal predicts a longer window than the spec allows.
    WindowTooShort,
    /// Approvals are missing.
    ApprovalPending,
    /// An approver rejected the plan.
    Rejected,
    /// The migration was aborted before its window.
    Aborted,
    /// The start is planned.
    Scheduled,
    /// The allowed hours passed without a start.
    StartMissed,
    /// No channel has taken the maintenance notice.
    NoticePending,
    /// Every channel took a notice.
    NoticeDelivered,
    /// A notice is not sent any more.
    NoticeGivenUp,
    /// Too few people confirmed that they are present.
    PresencePending,
    /// The window's pod is being started.
    PreparingWindow,
    /// A prepared transaction has locked a protected table.
    TransactionPrepared,
    /// A vacuum of a protected table gives way to no lock.
    VacuumRunning,
    /// A session has locked a protected table, and cannot be ended, or has done so for long.
    TableLocked,
    /// Fewer connections to the database are free than a window needs.
    TooFewConnections,
    /// A standby does not replay what is committed, or with a delay.
    StandbyNotReplaying,
    /// The database cannot be searched for what would keep writes from being blocked.
    DatabaseNotSearched,
    /// A window went on although something could not be shown once more.
    NotShown,
    /// A precondition changed at the last moment; the window was not started.
    WindowNotStarted,
    /// The order to block writes is out.
    BlockingWrites,
    /// Writes are blocked.
    WritesBlocked,
    /// A window's run ended without a report; another pod goes on.
    WindowPodLost,
    /// A window is past its deadline.
    WindowOverdue,
    /// Flag and rollout are as wanted, and the version probe answers another version.
    RestartedAgain,
    /// Pods that a switch started do not become ready.
    RolloutFailed,
    /// The flag was changed after the window.
    FlagDrifted,
    /// The down SQL is not what was approved.
    DownSqlChanged,
    /// The API server refused a write of the operator.
    EffectRefused,
    /// Objects cannot be read.
    ReconcileFailed,
    /// A run's pod does not start.
    PodNotStarted,
    /// Writes of the application are refused although no window is open.
    WritesRefused,
    /// The change-tracking trigger fails, and with it each write of the balances.
    ChangeTrackingFails,
    /// A change-tracking trigger is missing or disabled.
    ChangeTrackingMissing,
    /// A write-block trigger is missing or disabled.
    WriteBlockMissing,
    /// Neither ConfigMap nor database has the down SQL that is approved.
    DownSqlNotStored,
    /// An object in the control schema is not the operator's.
    ControlSchemaForeign,
    /// The database could not be reached when it was last measured.
    DatabaseUnreachable,
    /// What a rollback needs in the database is not measured.
    SafeguardsNotMeasured,
    /// Triggers are not measured: no rollback starts by itself.
    TriggersNotMeasured,
    /// A check was breached.
    CheckBreached,
    /// A stage cannot end: checks do not pass.
    ChecksNotPassing,
    /// The new version is being observed.
    Observing,
    /// A decision to keep or to roll back is due.
    DecisionDue,
    /// The new version stays.
    Completed,
    /// Cause of a rollback: a check with `onBreach: Rollback` was breached.
    TriggerFired,
    /// Cause of a rollback: a decision after the window.
    Rollback,
    /// Cause of a rollback: a decision inside the window.
    Stopped,
    /// The old version runs again. As a cause: the window's runner rolled back by itself.
    RolledBack,
    /// The `CreditMigration` was deleted.
    Deleted,
    /// A rollback is under way.
    RollingBack,
    /// Writes are blocked again for the rollback, after a failed attempt.
    BlockingWritesForRollback,
    /// The rollback could not be started.
    RollbackNotStarted,
    /// The rollback failed in its rehearsal on a copy of the live database.
    RollbackRehearsalFailed,
    /// The rollback was not rehearsed for more than two days.
    RollbackRehearsalTooOld,
    /// Triggers stay in a database that could not be reached.
    TriggersLeft,
    /// Parked tables stay in a database whose migration was deleted before they were dropped.
    ParkedTablesLeft,
}

impl From<ReadyReason> for String {
    fn from(reason: ReadyReason) -> Self {
        reason.as_str().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Reason;

    #[test]
    fn no_reason_has_two_meanings() {
        for reason in ReadyReason::ALL {
            let same = Reason::ALL.iter().find(|r| r.as_str() == reason.as_str());
            assert_eq!(same, None, "{reason:?} is a task's reason");
        }
    }

    #[test]
    fn each_is_documented() {
        let docs = include_str!("../../docs/reasons.md");
        for reason in ReadyReason::ALL {
            assert!(docs.contains(&format!("`{}`", reason.as_str())), "{reason:?} is not in docs/reasons.md");
        }
    }
}
