//! Deliberate faults of the machine, one for each property that is its to break. The simulation must find them.
//! Nothing of them is in what is shipped: there [`fault`] is `false`.
//!
//! Property 5 has none here: no secret reaches the machine, since `Observed` has none. Its fault is the runner's,
//! in the simulated world.

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// 1: each attempt names another migration, so its ledger row is another one.
    UidOfAttempt,
    /// 2: a failed rollback is not reported as stalled.
    SilentFailure,
    /// 3: the flag is set before the runner has acknowledged that it no longer rolls back by itself.
    UnacknowledgedSwitch,
    /// 3: a flag that was changed after the window is not notified.
    SilentDrift,
    /// 4: a person who approves twice counts as two.
    OnePersonTwice,
    /// 4: evidence and approvals outlast an edit of the spec.
    EditIgnored,
    /// 3: whether an answer of the probe is fresh follows from the operator's own clock.
    ProbedByOwnClock,
    /// 3: a rollback that is given up does not write the flag once more before it unblocks writes.
    FlagNotConfirmed,
    /// 7: a window, or a rollback, blocks writes although it could not be ended.
    BlocksWithoutExit,
    /// 7: a rollback whose switch never started is not given up.
    RollbackNotGivenUp,
    /// 7: a window whose new pods crash waits for them until its deadline.
    FailedRolloutAwaited,
    /// 7: `RollbackReady` ignores what was measured in the database.
    SafeguardsIgnored,
    /// 7: `RollbackReady` ignores the rehearsals of the rollback.
    RehearsalsIgnored,
    /// 7: a rollback blocks writes although its down SQL is nowhere.
    DownSqlAssumed,
    /// 7: a rollback that waits with writes open notifies no one.
    SilentWait,
    /// 7: a window past its deadline notifies no one.
    SilentOverdue,
    /// 7: a rollback that cannot switch the application back notifies no one.
    SilentSwitch,
    /// 7: of a flag whose write the API server refuses no one is notified.
    SilentRefusal,
    /// 6: a Job that ends without a report is waited for.
    LostJobAwaited,
    /// 6: a check whose Job could not be started is not measured again.
    LostCheckAwaited,
}

/// Whether the machine of this thread has the fault.
#[cfg(test)]
pub(super) fn fault(fault: Fault) -> bool {
    PRESENT.get() == Some(fault)
}

/// Whether the machine has the fault.
#[cfg(not(test))]
pub(super) const fn fault(_: Fault) -> bool {
    false
}

/// Gives the machine of this thread a fault, or none.
#[cfg(test)]
pub(super) fn build_in(fault: Option<Fault>) {
    PRESENT.set(fault);
}

#[cfg(test)]
thread_local! {
    static PRESENT: std::cell::Cell<Option<Fault>> = const { std::cell::Cell::new(None) };
}
