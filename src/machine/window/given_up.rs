//! A rollback whose switch never started is given up: writes are unblocked on the new schema.
//!
//! ```text
//!  deadline passed, flag still at `to`, every pod of the new version
//!    --> `unblocking` is persisted              no leader orders the switch from here on
//!    --> the flag is written as it is           a late write of `from`, ordered before, is a conflict from here on
//!    --> that is observed: order UnblockWrites
//! ```
//! In every other state both versions may serve, and writes stay blocked.

use crate::{
    api::{Direction, Phase, Task, WindowProgress},
    machine::{
        Effect, ObservedFlag, Transition,
        faults::{Fault, fault},
    },
};

/// Where the flag is while a rollback is to switch it to `from`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FlagPosition {
    /// At `to`; this rollback has not changed it.
    To,
    /// At `to`, and written once more for giving up in this very window.
    ToConfirmed,
    /// This rollback has set it to `from`, whatever it is now.
    SwitchedBack,
    /// At `from` by another writer, at another value, or not readable.
    Unknown,
}

/// What a rollback with blocked writes does about the switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SwitchMove {
    /// Switch the application back.
    SwitchBack,
    /// Give up: the switch is not ordered any more.
    GiveUp,
    /// Write the flag as it is, so that a late write of `from` is a conflict.
    ConfirmFlag,
    /// Unblock writes on the new schema.
    UnblockWrites,
    /// Neither: an operator changed the flag meanwhile.
    Wait,
}

/// What is known of the switch of a rollback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SwitchView {
    /// The deadline of the window has passed.
    pub(crate) overdue: bool,
    /// That it is given up is persisted.
    pub(crate) given_up: bool,
    /// Where the flag is.
    pub(crate) flag: FlagPosition,
    /// Every pod is of the new version: the forward path had replaced all others, and nothing was restarted since.
    pub(crate) new_version_only: bool,
}

/// What follows from it.
pub(crate) fn next_switch_move(view: &SwitchView) -> SwitchMove {
    match (view.given_up, view.flag) {
        (false, FlagPosition::To | FlagPosition::ToConfirmed) if view.overdue && view.new_version_only => {
            SwitchMove::GiveUp
        }
        // A write that was under way when it was given up may still have come first.
        (false, _) | (true, FlagPosition::SwitchedBack) => SwitchMove::SwitchBack,
        (true, FlagPosition::To) => SwitchMove::ConfirmFlag,
        (true, FlagPosition::ToConfirmed) => SwitchMove::UnblockWrites,
        (true, FlagPosition::Unknown) => SwitchMove::Wait,
    }
}

impl Transition<'_> {
    /// What the rollback does next about its switch.
    pub(crate) fn switch_move(&self, progress: &WindowProgress) -> SwitchMove {
        let mut view = SwitchView {
            overdue: self.deadline().is_some_and(|deadline| self.now >= deadline),
            given_up: self.is_given_up(),
            flag: self.flag_position(),
            new_version_only: self.new_version_only(progress),
        };
        if fault(Fault::RollbackNotGivenUp) {
            view.overdue = false;
        }
        if fault(Fault::FlagNotConfirmed) && view.given_up && view.flag == FlagPosition::To {
            view.flag = FlagPosition::ToConfirmed;
        }
        next_switch_move(&view)
    }

    /// The rollback after the window is given up: writes are, or are about to be, unblocked on the new schema.
    pub(crate) fn is_given_up(&self) -> bool {
        self.phase() == Phase::RollingBack && self.window_task() == Some(Task::RollbackWindow) && self.is_unblocking()
    }

    /// The effect of a rollback that is given up: the flag is written once more, unless it is already.
    pub(crate) fn confirm_flag(&self) -> Option<Effect> {
        if self.switch_move(&self.rollback_progress()) != SwitchMove::ConfirmFlag {
            return None;
        }
        let value = self.spec.application.flag.to.clone();
        Some(Effect::SetFlag { value, marker: self.confirmation_marker() })
    }

    /// Of each window another one: a marker that is there already would change nothing, and refuse no late write.
    fn confirmation_marker(&self) -> String {
        let deadline = self.deadline().map_or(0, |deadline| deadline.as_second());
        format!("{}.given-up.{deadline}", self.observed.uid)
    }

    fn flag_position(&self) -> FlagPosition {
        let ObservedFlag::Value { value, set_for, .. } = &self.observed.flag else { return FlagPosition::Unknown };
        let set_for = set_for.as_deref().unwrap_or_default();
        if set_for == self.marker(Direction::Rollback) {
            FlagPosition::SwitchedBack
        } else if *value != self.spec.application.flag.to {
            FlagPosition::Unknown
        } else if set_for == self.confirmation_marker() {
            FlagPosition::ToConfirmed
        } else {
            FlagPosition::To
        }
    }

    fn new_version_only(&self, progress: &WindowProgress) -> bool {
        let restarted = self.marker(Direction::Rollback);
        let wanted = &self.spec.application.workloads;
        self.forward_window_succeeded()
            && progress.observed_version.as_ref().is_none_or(|answer| *answer == self.spec.application.flag.to)
            && self
                .observed
                .workloads
                .iter()
                .filter(|w| wanted.contains(&w.reference))
                .all(|w| w.restarted_for.as_ref().is_none_or(|marker| !marker.starts_with(&restarted)))
    }
}

#[cfg(test)]
mod tests {
    use super::{FlagPosition::*, SwitchMove::*, *};

    #[rstest::rstest]
    #[case::in_time_it_switches(false, false, To, true, SwitchBack)]
    #[case::overdue_and_nothing_was_switched(true, false, To, true, GiveUp)]
    #[case::so_it_is_after_an_earlier_window_was_given_up(true, false, ToConfirmed, true, GiveUp)]
    #[case::pods_of_the_old_version_may_serve(true, false, To, false, SwitchBack)]
    #[case::the_flag_was_switched(true, false, SwitchedBack, true, SwitchBack)]
    #[case::the_flag_is_unknown(true, false, Unknown, true, SwitchBack)]
    #[case::given_up_the_flag_is_confirmed(true, true, To, true, ConfirmFlag)]
    #[case::confirmed_writes_are_unblocked(true, true, ToConfirmed, true, UnblockWrites)]
    #[case::a_late_write_came_first(true, true, SwitchedBack, true, SwitchBack)]
    #[case::an_operator_changed_the_flag(true, true, Unknown, true, Wait)]
    #[case::it_stays_given_up_by_another_clock(false, true, To, true, ConfirmFlag)]
    fn a_rollback_is_given_up_only_if_nothing_was_switched(
        #[case] overdue: bool,
        #[case] given_up: bool,
        #[case] flag: FlagPosition,
        #[case] new_version_only: bool,
        #[case] expected: SwitchMove,
    ) {
        assert_eq!(next_switch_move(&SwitchView { overdue, given_up, flag, new_version_only }), expected);
    }
}
