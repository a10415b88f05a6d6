//! Which lines of the checklist a spec leaves to the team: said in a condition, so that those who approve know.

use super::{Audience, Check, ContactRole, CreditMigrationSpec, Task};

impl CreditMigrationSpec {
    /// Lines of the checklist that are not configured, each with the field that would.
    pub fn not_covered(&self) -> Vec<String> {
        let mut open = vec![];
        let mut demand = |there: bool, what: &str| {
            if !there {
                open.push(what.to_owned());
            }
        };
        demand(self.code.is_some(), "tag and branch of the code (code)");
        demand(self.migration.verify_down.is_some(), "proof of the way back (migration.verifyDown)");
        demand(self.application.version_probe.is_some(), "both versions exist (application.versionProbe)");
        let told = |a: Audience| self.notifications.channels.iter().any(|c| c.audiences.contains(&a));
        for audience in [Audience::Team, Audience::Support, Audience::Users, Audience::Social, Audience::StatusPage] {
            demand(told(audience), &format!("notice to {audience:?} (notifications.channels)"));
        }
        let roles = [
            ContactRole::Dba,
            ContactRole::BackendLead,
            ContactRole::DevOps,
            ContactRole::ProductManager,
            ContactRole::Cto,
        ];
        for role in roles {
            let there = self.notifications.contacts.iter().any(|c| c.role == role);
            demand(there, &format!("contact {role:?} (notifications.contacts)"));
        }
        let triggers = &self.rollback.triggers;
        demand(triggers.payment_processing.is_some(), "trigger paymentProcessing (rollback.triggers)");
        demand(triggers.core_function.is_some(), "trigger coreFunction (rollback.triggers)");
        demand(triggers.error_rate.is_some(), "trigger errorRate (rollback.triggers)");
        let any = |task: Task, is: fn(&Check) -> bool| self.checks_of(task).iter().any(is);
        demand(
            self.validation.checks.iter().any(|c| c.sequence.is_some() || c.job.is_some()),
            "functional test (validation.checks: sequence or job)",
        );
        demand(
            any(Task::Validate, |c| c.http.as_ref().is_some_and(|h| h.percentile.is_some()) || c.prometheus.is_some()),
            "response times (validation.checks: http.percentile or prometheus)",
        );
        demand(any(Task::Validate, |c| c.statements.is_some()), "query times (validation.checks: statements)");
        demand(any(Task::Validate, |c| c.balances.is_some()), "balances (validation.checks: balances)");
        demand(any(Task::Monitor, |c| c.logs.is_some()), "error lines (monitoring.checks: logs)");
        demand(any(Task::DayCheck, |_| true), "checks after a day (followUps.day.checks)");
        demand(any(Task::WeekReview, |_| true), "checks after a week (followUps.week.checks)");
        open
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_not_configured_is_named_with_its_field() {
        let bare = crate::machine::fixture::spec().not_covered();
        assert_eq!(bare.len(), 22, "{bare:#?}");
        assert!(bare.iter().all(|line| line.ends_with(')') && line.contains(" (")), "{bare:#?}");
        assert!(bare.contains(&"tag and branch of the code (code)".to_owned()));
    }

    #[test]
    fn nothing_is_left_when_all_is_there() {
        let mut spec = serde_json::to_value(crate::machine::fixture::spec()).unwrap();
        let step = json!({"name": "a", "url": "http://shop"});
        let source = json!({"sequence": {"steps": [step]}});
        let audiences = ["Team", "Support", "Users", "Social", "StatusPage"];
        let roles = ["DBA", "BackendLead", "DevOps", "ProductManager", "CTO"];
        let contacts: Vec<_> =
            roles.iter().map(|r| json!({"role": r, "name": "a", "phone": "1", "duty": "b"})).collect();
        let any = json!([{"name": "a", "sql": {"query": "SELECT 0"}, "max": "0"}]);
        for (path, value) in [
            ("code", json!({"repository": "ssh://git/x", "commit": "0", "secretRef": {"name": "git"}})),
            (
                "notifications",
                json!({
                    "channels": [{"name": "chat", "audiences": audiences, "slack": {"urlSecretRef": {"name": "a", "key": "b"}}}],
                    "contacts": contacts,
                }),
            ),
            (
                "rollback",
                json!({"triggers": {
                    "paymentProcessing": source, "coreFunction": source,
                    "errorRate": {"prometheus": {"url": "http://p", "query": "a", "samplesQuery": "b"}},
                }}),
            ),
            (
                "validation",
                json!({"duration": "1m", "checks": [
                    {"name": "functions", "sequence": {"steps": [step]}},
                    {"name": "p95", "http": {"url": "http://shop", "percentile": 95}, "max": "100"},
                    {"name": "queries", "statements": {}, "max": "50"},
                    {"name": "balances", "balances": {}, "max": "0"},
                ]}),
            ),
            (
                "monitoring",
                json!({"duration": "1m", "checks": [
                    {"name": "errors", "logs": {"workload": {"kind": "Deployment", "name": "shop"}}, "max": "0"},
                ]}),
            ),
            ("followUps", json!({"day": {"checks": any}, "week": {"checks": any}})),
        ] {
            spec[path] = value;
        }
        spec["migration"]["verifyDown"] = json!("SELECT true");
        let spec: CreditMigrationSpec = serde_json::from_value(spec).unwrap();
        assert_eq!(spec.not_covered(), Vec::<String>::new());
    }
}
