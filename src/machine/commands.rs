//! The commands that messages name. Each says its namespace: messages go out in notices, and the context of who reads them may
//! be one in which another migration has the same name.
//!
//! What is no part of a command stands before it, or behind a `;`: it is copied as it stands.

use std::fmt::Display;

use super::Observed;

/// `kubectl creditmigration -n NAMESPACE REST`; `rest` is the verb, the name and options.
pub fn plugin(namespace: &str, rest: impl Display) -> String {
    format!("kubectl creditmigration -n {namespace} {rest}")
}

/// `kubectl -n NAMESPACE REST`.
pub fn kubectl(namespace: &str, rest: impl Display) -> String {
    format!("kubectl -n {namespace} {rest}")
}

impl Observed {
    /// `kubectl creditmigration -n NAMESPACE VERB NAME OPTIONS`, about this migration.
    pub(super) fn plugin(&self, verb: &str, options: &str) -> String {
        let gap = if options.is_empty() { "" } else { " " };
        plugin(&self.namespace, format_args!("{verb} {}{gap}{options}", self.name))
    }

    /// The command that brings the old version back.
    pub(super) fn go_back(&self) -> String {
        self.plugin("rollback", "--confirm --reason WHY")
    }

    /// `kubectl -n NAMESPACE ARGUMENTS`, about other objects of the migration's namespace.
    pub(super) fn kubectl(&self, arguments: &str) -> String {
        kubectl(&self.namespace, arguments)
    }
}
