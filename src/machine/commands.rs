//! The commands that messages about this migration name: see [`crate::shared::command`].

use super::Observed;
use crate::shared::command::{kubectl, plugin};

impl Observed {
    /// `kubectl creditmigration -n NAMESPACE VERB NAME OPTIONS`, about this migration.
    pub(super) fn plugin(&self, verb: &str, options: &str) -> String {
        let gap = if options.is_empty() { "" } else { " " };
        plugin(&self.namespace, format_args!("{verb} {}{gap}{options}", self.name))
    }

    /// The command that brings the old version back.
    pub(super) fn rollback_command(&self) -> String {
        self.plugin("rollback", "--confirm --reason WHY")
    }

    /// `kubectl -n NAMESPACE ARGUMENTS`, about other objects of the migration's namespace.
    pub(super) fn kubectl(&self, arguments: &str) -> String {
        kubectl(&self.namespace, arguments)
    }
}
