//! What Preflight and its parts find.

use crate::{
    api::{Finding, LeftOutObjects, Reason, TableUsers},
    runner::{Failure, clients::http_probe::SwitchReadiness},
};

/// Findings in the order in which they were made.
#[derive(Debug, Default)]
pub struct Findings(Vec<Finding>);

impl Findings {
    /// Adds what was found under a name.
    pub fn add(&mut self, name: impl Into<String>, result: Result<String, Failure>) {
        self.push(name, result);
    }

    /// Adds what a copy of the database would go without.
    pub fn add_left_out(&mut self, left_out: LeftOutObjects, result: Result<String, Failure>) {
        self.push(Finding::COPY, result).left_out = left_out;
    }

    /// Adds what else uses the tables.
    pub fn add_table_users(&mut self, users: Result<TableUsers, Failure>) {
        let (users, result) = match users {
            Ok(users) => (users.clone(), Ok(users.summary().unwrap_or_default())),
            Err(failure) => (TableUsers::default(), Err(failure)),
        };
        self.push(Finding::TABLE_USERS, result).users = users;
    }

    /// Adds what the application says of its versions.
    pub fn add_versions(&mut self, result: Result<SwitchReadiness, Failure>) {
        let holds_both_versions = result.as_ref().ok().and_then(|readiness| readiness.holds_both_versions);
        let result = result.map(|readiness| readiness.summary());
        self.push(Finding::VERSION_PROBE, result).holds_both_versions = holds_both_versions;
    }

    fn push(&mut self, name: impl Into<String>, result: Result<String, Failure>) -> &mut Finding {
        let (reason, message) = match result {
            Ok(message) => (None, message),
            Err(failure) => (Some(failure.reason), failure.message),
        };
        self.0.push(Finding {
            name: name.into(),
            reason,
            holds_both_versions: None,
            left_out: LeftOutObjects::default(),
            users: TableUsers::default(),
            message,
        });
        let last = self.0.len() - 1;
        &mut self.0[last]
    }

    /// All of them.
    pub fn list(&self) -> &[Finding] {
        &self.0
    }

    /// The task's result.
    pub(super) fn result(&self) -> Result<String, Failure> {
        let wrong: Vec<&Finding> = self.0.iter().filter(|finding| finding.reason.is_some()).collect();
        let Some((first, rest)) = wrong.split_first() else {
            // Not wrong, and yet people should know it before an hour of dump.
            let left_out: String =
                self.0.iter().map(|finding| finding.left_out.appended() + &finding.users.appended()).collect();
            return Ok(format!("{0} of {0} findings are good{left_out}", self.0.len()));
        };
        let more: Vec<&str> = rest.iter().map(|finding| finding.name.as_str()).collect();
        let more = if more.is_empty() { String::new() } else { format!("; also: {}", more.join(", ")) };
        let message =
            format!("{}: {} ({} of {} findings are wrong{more})", first.name, first.message, wrong.len(), self.0.len());
        Err(Failure::new(first.reason.unwrap_or(Reason::Internal), message))
    }
}
