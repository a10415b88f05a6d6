//! Gates: small policies over what was seen. The first violation decides, and its message is what the user reads.

use serde_json::json;

use super::{
    Flag, Machine, ObservedDecision, Sql,
    defects::{Defect, defect},
};
use crate::api::{CreditMigrationSpec, CreditMigrationStatus, DecisionKind, Phase, Plan, Time, sha256};

/// What stands in the way: CamelCase reason and message with the next command.
pub(super) type Violation = (&'static str, String);

/// SHA-256 over all that people approve: UID, spec, SQL, image, backup and rehearsal. `None` until the rehearsal passed.
pub fn plan_digest(uid: &str, spec: &CreditMigrationSpec, status: &CreditMigrationStatus) -> Option<String> {
    let plan = status.plan.as_ref()?;
    let backup = status.backup.as_ref()?;
    let verification = status.verification.as_ref()?;
    let rehearsal = status.rehearsal.as_ref()?;
    let text = json!({
        "uid": uid,
        "spec": spec,
        "up": plan.up_sha256,
        "down": plan.down_sha256,
        "image": status.runner_image,
        "backup": backup.sha256,
        "object": backup.object,
        "verified": verification.sha256,
        "code": status.code_backup.as_ref().map(|c| (&c.commit, &c.tag, &c.branch)),
        "keyUsers": status.key_users.as_ref().map(|k| (&k.object, &k.sha256)),
        "rehearsal": rehearsal,
    })
    .to_string();
    Some(sha256(text.as_bytes()))
}

impl Machine<'_> {
    /// What is run, as far as it can be read: `None` while SQL is missing.
    pub(super) fn observed_plan(&self) -> Option<Plan> {
        let (Sql::Present(up), Sql::Present(down)) = (&self.o.up, &self.o.down) else { return None };
        Some(Plan { digest: None, generation: self.o.generation, up_sha256: up.clone(), down_sha256: down.clone() })
    }

    /// Spec or SQL differ from what the present evidence was made for.
    pub(super) fn inputs_changed(&self) -> bool {
        let (Some(seen), Some(had)) = (self.observed_plan(), &self.s.plan) else {
            // Evidence without its SQL is void as well; without evidence there is nothing to void.
            return self.s.plan.is_some() && self.observed_plan().is_none();
        };
        (seen.generation, &seen.up_sha256, &seen.down_sha256) != (had.generation, &had.up_sha256, &had.down_sha256)
    }

    /// How the down SQL differs from what was approved, while a way back would need it.
    pub(super) fn down_drift(&self) -> Option<String> {
        if !matches!(self.phase(), Phase::Validating | Phase::Monitoring | Phase::Observing) {
            return None;
        }
        let approved = &self.s.plan.as_ref()?.down_sha256;
        let seen = match &self.o.down {
            Sql::Present(seen) if seen == approved => return None,
            Sql::Present(seen) => seen.as_str(),
            Sql::Missing => "missing",
        };
        let r = &self.spec.migration.down.config_map_key_ref;
        Some(format!(
            "key {} of ConfigMap {} (spec.migration.down) is {seen}, approved was {approved}: a way back runs the approved one, which the database keeps; put it back, next: {}",
            r.key,
            r.name,
            self.o.kubectl(&format!("edit configmap {}", r.name))
        ))
    }

    /// Objects of the cluster that everything rests on. In order; the first violation decides.
    pub(super) fn cluster_violation(&self) -> Option<Violation> {
        self.sql_violation()
            .or_else(|| self.flag_violation())
            .or_else(|| self.rollback_violation())
            .or_else(|| self.schedule_violation())
            .or_else(|| self.workload_violation())
            .or_else(|| self.policy_violation())
    }

    fn sql_violation(&self) -> Option<Violation> {
        let m = &self.spec.migration;
        for (sql, source, what) in [(&self.o.up, &m.up, "up"), (&self.o.down, &m.down, "down")] {
            if *sql == Sql::Missing {
                let r = &source.config_map_key_ref;
                return Some((
                    "SqlMissing",
                    format!(
                        "ConfigMap {} has no key {} (spec.migration.{what}); next: {}",
                        r.name,
                        r.key,
                        self.o.kubectl(&format!("create configmap {} --from-file={}", r.name, r.key))
                    ),
                ));
            }
        }
        None
    }

    fn flag_violation(&self) -> Option<Violation> {
        let flag = &self.spec.application.flag;
        let r = &flag.config_map_key_ref;
        match &self.o.flag {
            Flag::ConfigMapMissing => Some((
                "FlagConfigMapMissing",
                format!(
                    "ConfigMap {} is missing (spec.application.flag); next: {}",
                    r.name,
                    self.o.kubectl(&format!("create configmap {} --from-literal={}={}", r.name, r.key, flag.from))
                ),
            )),
            Flag::KeyMissing => Some((
                "FlagKeyMissing",
                format!(
                    "ConfigMap {} has no key {}; next: {}",
                    r.name,
                    r.key,
                    self.set_key(&r.name, &r.key, &flag.from)
                ),
            )),
            Flag::Value { immutable: true, .. } => Some((
                "FlagConfigMapImmutable",
                format!(
                    "ConfigMap {} is immutable, the flag cannot be switched; next: delete it and create it again without immutable: true",
                    r.name
                ),
            )),
            Flag::Value { value, .. } if *value != flag.from => Some((
                "FlagNotAtFrom",
                format!(
                    "key {} of ConfigMap {} is {value:?}, expected {:?} (spec.application.flag.from); next: see which version runs. If it is the new one this migration is done already; else correct the spec, or the key",
                    r.key, r.name, flag.from
                ),
            )),
            Flag::Value { .. } => None,
        }
    }

    /// The checklist's `ENABLE_ROLLBACK=true`: whoever deployed the application says that it can go back.
    fn rollback_violation(&self) -> Option<Violation> {
        let flag = &self.spec.application.flag;
        let (map, key) = (&flag.config_map_key_ref.name, &flag.rollback_key);
        let seen = match self.o.rollback_enabled.as_deref() {
            Some("true") => return None,
            Some(value) => format!("is {value:?}"),
            None => "is missing".to_owned(),
        };
        Some((
            "RollbackNotEnabled",
            format!(
                "key {key} of ConfigMap {map} {seen}, expected \"true\" (spec.application.flag.rollbackKey); next: {}",
                self.set_key(map, key, "true")
            ),
        ))
    }

    /// The command that sets a key of a ConfigMap.
    fn set_key(&self, map: &str, key: &str, value: &str) -> String {
        self.o.kubectl(&format!("patch configmap {map} --type=merge -p '{{\"data\":{{\"{key}\":\"{value}\"}}}}'"))
    }

    fn workload_violation(&self) -> Option<Violation> {
        let r = &self.spec.application.flag.config_map_key_ref;
        for wanted in &self.spec.application.workloads {
            let seen = self.o.workloads.iter().find(|w| w.reference == *wanted);
            let Some(seen) = seen.filter(|w| w.exists) else {
                return Some((
                    "WorkloadMissing",
                    format!(
                        "{:?} {} is missing (spec.application.workloads); next: {}",
                        wanted.kind,
                        wanted.name,
                        self.o.kubectl("get deployments")
                    ),
                ));
            };
            if !seen.reads_flag {
                return Some((
                    "WorkloadDoesNotReadFlag",
                    format!(
                        "no container of {:?} {} reads key {} of ConfigMap {} into its environment; next: add env.valueFrom.configMapKeyRef or envFrom.configMapRef",
                        wanted.kind, wanted.name, r.key, r.name
                    ),
                ));
            }
        }
        None
    }

    fn policy_violation(&self) -> Option<Violation> {
        let problem = self.o.policy_problem.as_ref()?;
        Some((
            "DecisionPolicyMissing",
            format!(
                "{problem}; without it neither names nor reports are proven; next: helm upgrade the operator with admissionPolicies.install=true"
            ),
        ))
    }

    /// Decisions of a kind that are younger than `after` (all when `None`).
    pub(super) fn decisions(&self, kind: DecisionKind, after: Option<Time>) -> impl Iterator<Item = &ObservedDecision> {
        self.o.decisions.iter().filter(move |d| d.decision == kind && after.is_none_or(|t| d.at > t))
    }

    /// Somebody's word to stop or go back. It counts without the admission policy too: a forged stop is the lesser harm.
    pub(super) fn stop_word(&self, kinds: &[DecisionKind], after: Option<Time>) -> Option<ObservedDecision> {
        kinds.iter().find_map(|k| self.decisions(*k, after).next()).cloned()
    }

    /// Distinct people, not the author, who approved this digest after that time.
    fn approvers(&self, digest: &str, after: Option<Time>) -> Vec<String> {
        let mut people: Vec<String> = self
            .decisions(DecisionKind::Approve, after)
            .filter(|d| d.digest.as_deref() == Some(digest) && d.by != self.spec.requested_by)
            .map(|d| d.by.clone())
            .collect();
        people.sort();
        people.dedup_by(|a, b| a == b && !defect(Defect::OnePersonTwice));
        people
    }

    /// Who must approve again, and why; nothing if nobody must. Times of decisions are whole seconds, cut off: one of the
    /// second in which the last window ended may be from before its end, and does not count.
    pub(super) fn void_approvals(&self, digest: &str) -> String {
        let Some(after) = self.s.approvals_after else { return String::new() };
        let counted = self.approvers(digest, Some(after));
        let mut void = self.approvers(digest, None);
        void.retain(|by| !counted.contains(by));
        if void.is_empty() {
            return String::new();
        }
        format!(
            "; approvals given until {after:.0}, when the last window ended, no longer count ({}): approve again",
            void.join(", ")
        )
    }

    /// Distinct people, not the author, who approved this digest; and one who rejected it.
    pub(super) fn approvals(&self, digest: &str) -> (Vec<String>, Option<ObservedDecision>) {
        let people = self.approvers(digest, self.s.approvals_after);
        // A "no" to this plan stays one, however many windows were tried since.
        let reject = self
            .decisions(DecisionKind::Reject, None)
            .find(|d| d.digest.as_deref().is_none_or(|x| x == digest))
            .cloned();
        (people, reject)
    }
}
