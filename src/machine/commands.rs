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

    /// The command that sets a key of a ConfigMap.
    pub(super) fn set_key_command(&self, map: &str, key: &str, value: &str) -> String {
        let patch = format!("{{\"data\":{{\"{key}\":\"{value}\"}}}}");
        self.kubectl(&format!("patch configmap {map} --type=merge -p '{patch}'"))
    }

    /// The command that shows a Job with its Events.
    pub(super) fn describe_job(&self, name: &str) -> String {
        self.kubectl(&format!("describe job/{name}"))
    }

    /// The commands that show a Job and its pods.
    pub(super) fn describe_job_and_pods(&self, name: &str) -> String {
        format!("{}; {}", self.describe_job(name), self.kubectl(&format!("describe pods -l job-name={name}")))
    }
}
