//! The rules of a window's pod: what it does next, given what it knows.
//!
//! ```text
//!  WaitingForOtherPod ──> Standby ──> Blocking ──> ApplyingSql (forward) ──> AwaitingCutover ──> End
//! ```
//! Pure: the runner's window task acts on [`next_move`], and so can a model of it. The task asks again whenever an
//! order arrives, time passes, or a move has been made.
//!
//! # Guarantees
//! - Until the switch is acknowledged, nothing keeps writes blocked past the deadline or a `Rollback` order.
//! - Once it is acknowledged, writes are unblocked by an order only. The flag may have been changed by then.

use super::{Direction, SchemaInPlace, WindowCommand};

/// What the pod is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WindowActivity {
    /// Another session holds the lock of the one task that works on the database.
    WaitingForOtherPod {
        /// Writes are blocked by this migration.
        writes_blocked: bool,
    },
    /// Everything is prepared, nothing is blocked.
    Standby,
    /// Writes are being blocked: sessions are drained, the block is verified.
    Blocking,
    /// The up SQL is running.
    ApplyingSql,
    /// Writes are blocked and the controller switches the application.
    AwaitingCutover,
    /// The window ends on this schema, and the read-only default of the database could not be restored: writes are not
    /// unblocked without it.
    RestoringDefault {
        /// The schema in place.
        schema: SchemaInPlace,
    },
    /// The session failed.
    Interrupted {
        /// This pod has blocked writes, as far as it knows.
        writes_may_be_blocked: bool,
        /// Its first order was beyond `Standby`: an earlier container of the pod may have blocked writes.
        resumed: bool,
        /// Another session may succeed.
        connection_lost: bool,
        /// The database has been unreachable for as long as a pod waits for it that has not blocked anything.
        wait_exhausted: bool,
    },
}

/// What the pod knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowView {
    /// Direction of its run.
    pub direction: Direction,
    /// What it is doing.
    pub activity: WindowActivity,
    /// The highest order so far.
    pub command: WindowCommand,
    /// The deadline has passed, or the run is gone.
    pub overdue: bool,
    /// The `MigrationRun` is gone: no order can come any more.
    pub run_gone: bool,
    /// No other pod will come after this one.
    pub last_pod: bool,
    /// `Switch` was acknowledged, by this pod or an earlier one.
    pub switch_acknowledged: bool,
    /// It was reported that writes stay blocked until an order comes.
    pub stuck: bool,
    /// Users with a balance that nothing explains, once all balances have been compared.
    pub unexplained_balances: Option<u64>,
    /// Those were reported.
    pub unexplained_reported: bool,
}

#[cfg(test)]
impl WindowView {
    /// What a pod knows that has just started an activity: in time, nothing acknowledged or compared.
    pub(crate) fn starting(direction: Direction, activity: WindowActivity, command: WindowCommand) -> Self {
        Self {
            direction,
            activity,
            command,
            overdue: false,
            run_gone: false,
            last_pod: false,
            switch_acknowledged: false,
            stuck: false,
            unexplained_balances: None,
            unexplained_reported: false,
        }
    }
}

/// Why a window ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndCause {
    /// By order.
    Ordered,
    /// The deadline has passed, or the run is gone.
    Overdue,
    /// By the failure at hand.
    Failed,
}

/// What the pod does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    /// Continue with the activity.
    Wait,
    /// End the session of the other pod if it has been silent for long, and report on it.
    ReplaceOtherPod,
    /// Block writes.
    BlockWrites,
    /// Acknowledge `Switch`: from here on only an order unblocks writes.
    AcknowledgeSwitch,
    /// Report that writes stay blocked because of unexplained balances.
    ReportUnexplained,
    /// Report that writes stay blocked until an order comes.
    BecomeStuck,
    /// Stop the activity and end the window.
    End(Ending),
}

/// How a window ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Run the down SQL, then unblock writes on the old schema.
    Rollback(EndCause),
    /// Unblock writes on this schema.
    Finish(SchemaInPlace, EndCause),
    /// Leave writes blocked.
    Stuck(EndCause),
    /// Nothing was blocked. The window counts as over if a schema is given.
    NothingBlocked(Option<SchemaInPlace>, EndCause),
}

/// What the pod does next. See the head of this file.
pub fn next_move(view: &WindowView) -> Move {
    match view.activity {
        WindowActivity::WaitingForOtherPod { writes_blocked } => waiting_for_other_pod(view, writes_blocked),
        WindowActivity::Standby => standby(view),
        WindowActivity::Blocking => blocking(view),
        WindowActivity::ApplyingSql => applying_sql(view),
        WindowActivity::AwaitingCutover => awaiting_cutover(view),
        WindowActivity::RestoringDefault { schema } => restoring_default(view, schema),
        WindowActivity::Interrupted { writes_may_be_blocked, resumed, connection_lost, wait_exhausted } => {
            let worth_a_retry = connection_lost && (view.command > WindowCommand::Standby || !wait_exhausted);
            if !writes_may_be_blocked && !worth_a_retry {
                Move::End(Ending::NothingBlocked(None, EndCause::Failed))
            } else if (writes_may_be_blocked || resumed) && view.overdue {
                Move::BecomeStuck
            } else {
                Move::Wait
            }
        }
    }
}

/// How a window ends in which writes could not be blocked, or the block could not be verified. Once the switch is
/// acknowledged the flag may have been changed: writes must not be unblocked by a failure.
pub fn when_blocking_failed(direction: Direction, switch_acknowledged: bool) -> Ending {
    match switch_acknowledged {
        true => Ending::Stuck(EndCause::Failed),
        false => Ending::Finish(direction.schema_before(), EndCause::Failed),
    }
}

/// Before the deadline the other session may be that of a healthy pod. After it writes must not stay blocked because it
/// hangs.
fn waiting_for_other_pod(view: &WindowView, writes_blocked: bool) -> Move {
    if writes_blocked && (view.overdue || view.command == WindowCommand::Rollback) {
        Move::ReplaceOtherPod
    } else {
        Move::Wait
    }
}

fn standby(view: &WindowView) -> Move {
    match view.command {
        _ if view.run_gone => Move::End(Ending::NothingBlocked(None, EndCause::Overdue)),
        WindowCommand::Standby => Move::Wait,
        WindowCommand::Rollback => Move::End(Ending::NothingBlocked(Some(SchemaInPlace::Old), EndCause::Ordered)),
        WindowCommand::BlockWrites | WindowCommand::Switch | WindowCommand::UnblockWrites if view.overdue => {
            Move::End(Ending::NothingBlocked(Some(view.direction.schema_before()), EndCause::Overdue))
        }
        WindowCommand::BlockWrites | WindowCommand::Switch | WindowCommand::UnblockWrites => Move::BlockWrites,
    }
}

/// Sessions that hold the tables delay neither the deadline nor an order. Past an acknowledged switch the deadline
/// stops nothing: one that has passed would leave no time to drain, and each rollback would fail at once.
fn blocking(view: &WindowView) -> Move {
    let overdue = view.overdue && !view.switch_acknowledged;
    let cancelled = view.direction == Direction::Forward && view.command == WindowCommand::Rollback;
    if overdue || cancelled {
        let cause = if view.overdue { EndCause::Overdue } else { EndCause::Ordered };
        Move::End(Ending::Finish(view.direction.schema_before(), cause))
    } else {
        Move::Wait
    }
}

fn applying_sql(view: &WindowView) -> Move {
    match view.command {
        _ if view.overdue => Move::End(Ending::Finish(SchemaInPlace::Old, EndCause::Overdue)),
        WindowCommand::Rollback => Move::End(Ending::Finish(SchemaInPlace::Old, EndCause::Ordered)),
        _ => Move::Wait,
    }
}

fn awaiting_cutover(view: &WindowView) -> Move {
    let forward = view.direction == Direction::Forward;
    let unblock = view.command == WindowCommand::UnblockWrites;
    let unexplained = view.unexplained_balances.is_some_and(|users| users > 0);
    if view.command == WindowCommand::Rollback {
        return Move::End(Ending::Rollback(EndCause::Ordered));
    }
    if unblock && (!forward || view.unexplained_balances == Some(0)) {
        return Move::End(Ending::Finish(SchemaInPlace::New, EndCause::Ordered));
    }
    // Unblocking waits for the comparison, also past the deadline: once unblocked, a rollback would lose what is
    // written from then on.
    let comparing = unblock && view.unexplained_balances.is_none();
    if view.overdue && !comparing && !view.stuck {
        return match view.direction {
            _ if view.switch_acknowledged || unblock => Move::BecomeStuck,
            Direction::Forward => Move::End(Ending::Rollback(EndCause::Overdue)),
            Direction::Rollback => Move::End(Ending::Finish(SchemaInPlace::New, EndCause::Overdue)),
        };
    }
    if view.command >= WindowCommand::Switch && !view.switch_acknowledged && !view.overdue {
        return Move::AcknowledgeSwitch;
    }
    if unblock && unexplained && !view.unexplained_reported {
        return Move::ReportUnexplained;
    }
    // No order can come any more, and the session would keep the pod of another run waiting.
    if view.stuck && view.last_pod {
        return Move::End(Ending::Stuck(EndCause::Overdue));
    }
    Move::Wait
}

/// It is retried until it succeeds. Meanwhile a rollback is still possible: nothing was written on the new schema.
fn restoring_default(view: &WindowView, schema: SchemaInPlace) -> Move {
    match view.command {
        WindowCommand::Rollback if schema == SchemaInPlace::New => Move::End(Ending::Rollback(EndCause::Ordered)),
        _ if view.stuck && view.last_pod => Move::End(Ending::Stuck(EndCause::Overdue)),
        _ if view.overdue && !view.stuck => Move::BecomeStuck,
        _ => Move::Wait,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Direction::{Forward, Rollback};
    use EndCause::{Failed, Ordered, Overdue};
    use SchemaInPlace::{New, Old};
    use WindowActivity::{ApplyingSql, AwaitingCutover, Blocking, Standby, WaitingForOtherPod};

    fn overdue(view: WindowView) -> WindowView {
        WindowView { overdue: true, ..view }
    }

    fn acknowledged(view: WindowView) -> WindowView {
        WindowView { switch_acknowledged: true, ..view }
    }

    fn stuck(view: WindowView) -> WindowView {
        WindowView { stuck: true, ..view }
    }

    fn compared(unexplained: u64, view: WindowView) -> WindowView {
        WindowView { unexplained_balances: Some(unexplained), ..view }
    }

    fn finish(schema: SchemaInPlace, cause: EndCause) -> Move {
        Move::End(Ending::Finish(schema, cause))
    }

    fn rollback(cause: EndCause) -> Move {
        Move::End(Ending::Rollback(cause))
    }

    fn end_stuck(cause: EndCause) -> Move {
        Move::End(Ending::Stuck(cause))
    }

    fn nothing_blocked(schema: Option<SchemaInPlace>, cause: EndCause) -> Move {
        Move::End(Ending::NothingBlocked(schema, cause))
    }

    fn assert_moves<const N: usize>(rows: [(&str, WindowView, Move); N]) {
        for (name, view, wanted) in rows {
            assert_eq!(next_move(&view), wanted, "{name}: {view:?}");
        }
    }

    #[test]
    fn another_pod_is_replaced_only_when_writes_must_not_stay_blocked() {
        let at =
            |writes_blocked, command| WindowView::starting(Forward, WaitingForOtherPod { writes_blocked }, command);
        assert_moves([
            ("in time, the other pod may be healthy", at(true, WindowCommand::BlockWrites), Move::Wait),
            ("past the deadline it is replaced", overdue(at(true, WindowCommand::BlockWrites)), Move::ReplaceOtherPod),
            ("so it is on an order to roll back", at(true, WindowCommand::Rollback), Move::ReplaceOtherPod),
            ("without blocked writes there is no hurry", overdue(at(false, WindowCommand::Rollback)), Move::Wait),
        ]);
    }

    #[test]
    fn a_pod_on_standby_blocks_writes_by_order_and_in_time() {
        let at = |command| WindowView::starting(Forward, Standby, command);
        let back = |command| WindowView::starting(Rollback, Standby, command);
        assert_moves([
            ("without an order it waits", at(WindowCommand::Standby), Move::Wait),
            ("also past the deadline", overdue(at(WindowCommand::Standby)), Move::Wait),
            ("it blocks writes by order", at(WindowCommand::BlockWrites), Move::BlockWrites),
            ("a later order includes that one", at(WindowCommand::Switch), Move::BlockWrites),
            ("and so does the last one", at(WindowCommand::UnblockWrites), Move::BlockWrites),
            ("the rollback does the same", back(WindowCommand::BlockWrites), Move::BlockWrites),
            ("not past the deadline", overdue(at(WindowCommand::BlockWrites)), nothing_blocked(Some(Old), Overdue)),
            ("nor in the rollback", overdue(back(WindowCommand::BlockWrites)), nothing_blocked(Some(New), Overdue)),
            ("a rollback has nothing to undo", at(WindowCommand::Rollback), nothing_blocked(Some(Old), Ordered)),
            (
                "without its run it ends",
                WindowView { run_gone: true, ..overdue(at(WindowCommand::BlockWrites)) },
                nothing_blocked(None, Overdue),
            ),
        ]);
    }

    #[test]
    fn blocking_ends_by_deadline_or_order_unless_the_switch_was_acknowledged() {
        let at = |command| WindowView::starting(Forward, Blocking, command);
        let back = |command| WindowView::starting(Rollback, Blocking, command);
        assert_moves([
            ("in time it continues", at(WindowCommand::BlockWrites), Move::Wait),
            ("at the deadline it stops", overdue(at(WindowCommand::BlockWrites)), finish(Old, Overdue)),
            ("on an order to roll back, too", at(WindowCommand::Rollback), finish(Old, Ordered)),
            ("of both the deadline is the cause", overdue(at(WindowCommand::Rollback)), finish(Old, Overdue)),
            ("the rollback stops at the deadline", overdue(back(WindowCommand::BlockWrites)), finish(New, Overdue)),
            ("its own order does not stop it", back(WindowCommand::Rollback), Move::Wait),
            ("nor does a deadline past the switch", acknowledged(overdue(back(WindowCommand::Rollback))), Move::Wait),
        ]);

        assert_eq!(when_blocking_failed(Forward, false), Ending::Finish(Old, Failed));
        assert_eq!(when_blocking_failed(Rollback, false), Ending::Finish(New, Failed));
        assert_eq!(when_blocking_failed(Rollback, true), Ending::Stuck(Failed), "past the switch writes stay blocked");
    }

    #[test]
    fn the_up_sql_is_stopped_by_deadline_or_order() {
        let at = |command| WindowView::starting(Forward, ApplyingSql, command);
        assert_moves([
            ("in time it runs on", at(WindowCommand::BlockWrites), Move::Wait),
            ("at the deadline it is stopped", overdue(at(WindowCommand::BlockWrites)), finish(Old, Overdue)),
            ("on an order to roll back, too", at(WindowCommand::Rollback), finish(Old, Ordered)),
            ("of both the deadline is the cause", overdue(at(WindowCommand::Rollback)), finish(Old, Overdue)),
        ]);
    }

    #[test]
    fn writes_are_unblocked_by_order_or_before_the_switch() {
        let at = |command| WindowView::starting(Forward, AwaitingCutover, command);
        let back = |command| WindowView::starting(Rollback, AwaitingCutover, command);
        let last = |view| WindowView { last_pod: true, ..view };
        assert_moves([
            ("it waits for the switch", at(WindowCommand::BlockWrites), Move::Wait),
            ("which it acknowledges", at(WindowCommand::Switch), Move::AcknowledgeSwitch),
            ("the rollback, too", back(WindowCommand::Switch), Move::AcknowledgeSwitch),
            ("once", acknowledged(at(WindowCommand::Switch)), Move::Wait),
            ("also by a later order", at(WindowCommand::UnblockWrites), Move::AcknowledgeSwitch),
            ("not past the deadline: rolled back", overdue(at(WindowCommand::Switch)), rollback(Overdue)),
            ("nor in the rollback: new schema", overdue(back(WindowCommand::Switch)), finish(New, Overdue)),
            ("a deadline before the switch rolls back", overdue(at(WindowCommand::BlockWrites)), rollback(Overdue)),
            ("or ends the rollback", overdue(back(WindowCommand::BlockWrites)), finish(New, Overdue)),
            ("past the switch it is stuck", acknowledged(overdue(at(WindowCommand::Switch))), Move::BecomeStuck),
            ("as is the rollback", acknowledged(overdue(back(WindowCommand::Switch))), Move::BecomeStuck),
            ("once", stuck(acknowledged(overdue(at(WindowCommand::Switch)))), Move::Wait),
            ("an order rolls back", at(WindowCommand::Rollback), rollback(Ordered)),
            ("past the switch", acknowledged(at(WindowCommand::Rollback)), rollback(Ordered)),
            ("past the deadline", stuck(acknowledged(overdue(at(WindowCommand::Rollback)))), rollback(Ordered)),
            ("and runs the down SQL of the rollback", back(WindowCommand::Rollback), rollback(Ordered)),
            (
                "the last pod does not wait when stuck",
                last(stuck(overdue(at(WindowCommand::BlockWrites)))),
                end_stuck(Overdue),
            ),
            ("it waits while it is not", last(at(WindowCommand::BlockWrites)), Move::Wait),
        ]);
    }

    #[test]
    fn writes_are_unblocked_only_if_all_balances_are_explained() {
        let at = |command| acknowledged(WindowView::starting(Forward, AwaitingCutover, command));
        let unblock = at(WindowCommand::UnblockWrites);
        let reported = |view| WindowView { unexplained_reported: true, ..view };
        assert_moves([
            ("it waits for the comparison", unblock, Move::Wait),
            ("also past the deadline", overdue(unblock), Move::Wait),
            ("also when stuck", stuck(overdue(unblock)), Move::Wait),
            ("explained, writes are unblocked", compared(0, unblock), finish(New, Ordered)),
            ("also past the deadline", stuck(overdue(compared(0, unblock))), finish(New, Ordered)),
            ("not without the order", compared(0, at(WindowCommand::Switch)), Move::Wait),
            ("unexplained, it is reported", compared(1, unblock), Move::ReportUnexplained),
            ("once", reported(compared(1, unblock)), Move::Wait),
            ("at the deadline it is stuck", reported(overdue(compared(1, unblock))), Move::BecomeStuck),
            (
                "also without an acknowledged switch",
                overdue(compared(1, WindowView::starting(Forward, AwaitingCutover, WindowCommand::UnblockWrites))),
                Move::BecomeStuck,
            ),
            ("and reported again by the next session", stuck(overdue(compared(1, unblock))), Move::ReportUnexplained),
            (
                "the rollback's unblocking compares nothing",
                acknowledged(WindowView::starting(Rollback, AwaitingCutover, WindowCommand::UnblockWrites)),
                finish(New, Ordered),
            ),
        ]);
    }

    #[test]
    fn a_default_that_is_not_restored_is_retried_and_reported_at_the_deadline() {
        let at = |schema, command| WindowView::starting(Forward, WindowActivity::RestoringDefault { schema }, command);
        let last = |view| WindowView { last_pod: true, ..view };
        assert_moves([
            ("it is retried", at(Old, WindowCommand::BlockWrites), Move::Wait),
            ("past the deadline it is stuck", overdue(at(Old, WindowCommand::BlockWrites)), Move::BecomeStuck),
            ("once", stuck(overdue(at(Old, WindowCommand::BlockWrites))), Move::Wait),
            ("an order to roll back is obeyed", at(New, WindowCommand::Rollback), rollback(Ordered)),
            ("unless it is done", at(Old, WindowCommand::Rollback), Move::Wait),
            ("the last pod ends", last(stuck(overdue(at(New, WindowCommand::UnblockWrites)))), end_stuck(Overdue)),
        ]);
    }

    #[test]
    fn a_pod_that_may_have_blocked_writes_never_gives_up_its_database() {
        let at = |writes_may_be_blocked, connection_lost, command, wait_exhausted| {
            let resumed = false;
            let activity =
                WindowActivity::Interrupted { writes_may_be_blocked, resumed, connection_lost, wait_exhausted };
            WindowView::starting(Forward, activity, command)
        };
        let resumed = WindowActivity::Interrupted {
            writes_may_be_blocked: false,
            resumed: true,
            connection_lost: true,
            wait_exhausted: true,
        };
        assert_moves([
            ("a lost connection is retried", at(false, true, WindowCommand::Standby, false), Move::Wait),
            ("for a while", at(false, true, WindowCommand::Standby, true), nothing_blocked(None, Failed)),
            ("past Standby for ever", at(false, true, WindowCommand::BlockWrites, true), Move::Wait),
            ("also to roll back", at(false, true, WindowCommand::Rollback, true), Move::Wait),
            (
                "another failure ends it",
                at(false, false, WindowCommand::BlockWrites, false),
                nothing_blocked(None, Failed),
            ),
            ("unless writes may be blocked", at(true, false, WindowCommand::Standby, true), Move::Wait),
            ("with a lost connection, too", at(true, true, WindowCommand::Standby, true), Move::Wait),
            (
                "past the deadline it is stuck",
                overdue(at(true, true, WindowCommand::BlockWrites, true)),
                Move::BecomeStuck,
            ),
            (
                "as is a restarted container",
                overdue(WindowView::starting(Forward, resumed, WindowCommand::BlockWrites)),
                Move::BecomeStuck,
            ),
            (
                "without blocked writes nothing is stuck",
                overdue(at(false, true, WindowCommand::BlockWrites, true)),
                Move::Wait,
            ),
        ]);
    }
}
