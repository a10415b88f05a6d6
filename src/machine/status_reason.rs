//! The reason that a status shows: one list of what the machine says itself, and of why tasks fail.

use std::fmt;

use crate::api::{ReadyReason, Reason};

/// Reason of the condition `Ready`, of a step, and of a rollback's cause.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StatusReason {
    /// The machine's own.
    Machine(ReadyReason),
    /// Of a task that failed.
    Task(Reason),
    /// Persisted by another version of the operator, and unknown to this one.
    Unknown(String),
}

impl StatusReason {
    /// Reads the name that a status has.
    pub(crate) fn read(name: &str) -> Self {
        let machine = ReadyReason::ALL.iter().find(|reason| reason.as_str() == name);
        let task = Reason::ALL.iter().find(|reason| reason.as_str() == name);
        match (machine, task) {
            (Some(reason), _) => StatusReason::Machine(*reason),
            (None, Some(reason)) => StatusReason::Task(*reason),
            (None, None) => StatusReason::Unknown(name.to_owned()),
        }
    }

    /// It says that something is under way, or was tried and failed: what keeps it from going on is worth more.
    pub(crate) fn is_under_way(&self) -> bool {
        match self {
            StatusReason::Machine(reason) => matches!(
                reason,
                ReadyReason::Progressing
                    | ReadyReason::PreparingWindow
                    | ReadyReason::BlockingWrites
                    | ReadyReason::WritesBlocked
                    | ReadyReason::RollingBack
                    | ReadyReason::BlockingWritesForRollback
                    | ReadyReason::Observing
                    | ReadyReason::PodNotStarted
            ),
            StatusReason::Task(_) => true,
            StatusReason::Unknown(_) => false,
        }
    }

    /// Its name, as users see it.
    pub(crate) fn as_str(&self) -> &str {
        match self {
            StatusReason::Machine(reason) => reason.as_str(),
            StatusReason::Task(reason) => reason.as_str(),
            StatusReason::Unknown(name) => name,
        }
    }
}

impl fmt::Display for StatusReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl From<ReadyReason> for StatusReason {
    fn from(reason: ReadyReason) -> Self {
        StatusReason::Machine(reason)
    }
}

impl From<Reason> for StatusReason {
    fn from(reason: Reason) -> Self {
        StatusReason::Task(reason)
    }
}

impl From<StatusReason> for String {
    fn from(reason: StatusReason) -> Self {
        reason.as_str().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_read_back_by_its_name() {
        let machine = ReadyReason::ALL.iter().map(|reason| StatusReason::from(*reason));
        let task = Reason::ALL.iter().map(|reason| StatusReason::from(*reason));
        let unknown = StatusReason::Unknown("OfAnotherVersion".to_owned());
        for reason in machine.chain(task).chain([unknown]) {
            assert_eq!(StatusReason::read(reason.as_str()), reason);
        }
    }
}
