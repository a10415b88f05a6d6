//! Gates: small policies over what was seen. The first violation decides, and its message is what the user reads.

use crate::{
    api::{Phase, Plan, ReadyReason},
    machine::{ObservedFlag, SqlSource, Transition},
};

/// What stands in the way: CamelCase reason and message with the next command.
pub(crate) type Violation = (ReadyReason, String);

impl Transition<'_> {
    /// What is run, as far as it can be read: `None` while SQL is missing.
    pub(crate) fn observed_plan(&self) -> Option<Plan> {
        let (SqlSource::Present(up), SqlSource::Present(down)) = (&self.observed.up, &self.observed.down) else {
            return None;
        };
        Some(Plan {
            digest: None,
            generation: self.observed.generation,
            up_sha256: up.clone(),
            down_sha256: down.clone(),
        })
    }

    /// Spec or SQL differ from what the present evidence was made for.
    pub(crate) fn inputs_changed(&self) -> bool {
        let (Some(seen), Some(had)) = (self.observed_plan(), &self.status.plan) else {
            // Evidence without its SQL is void as well; without evidence there is nothing to void.
            return self.status.plan.is_some() && self.observed_plan().is_none();
        };
        (seen.generation, &seen.up_sha256, &seen.down_sha256) != (had.generation, &had.up_sha256, &had.down_sha256)
    }

    /// How the down SQL differs from what was approved, while a way back would need it.
    pub(crate) fn down_drift(&self) -> Option<String> {
        if !matches!(self.phase(), Phase::Validating | Phase::Monitoring | Phase::Observing) {
            return None;
        }
        let approved = &self.status.plan.as_ref()?.down_sha256;
        let seen = match &self.observed.down {
            SqlSource::Present(seen) if seen == approved => return None,
            SqlSource::Present(seen) => seen.as_str(),
            SqlSource::Missing => "missing",
        };
        let r = &self.spec.migration.down.config_map_key_ref;
        Some(format!(
            "key {} of ConfigMap {} (spec.migration.down) is {seen}, approved was {approved}: a way back runs the approved one, which the database keeps; put it back, next: {}",
            r.key,
            r.name,
            self.observed.kubectl(&format!("edit configmap {}", r.name))
        ))
    }

    /// Objects of the cluster that everything rests on. In order; the first violation decides.
    pub(crate) fn cluster_violation(&self) -> Option<Violation> {
        self.sql_violation()
            .or_else(|| self.flag_violation())
            .or_else(|| self.rollback_violation())
            .or_else(|| self.schedule_violation())
            .or_else(|| self.workload_violation())
            .or_else(|| self.policy_violation())
    }

    fn sql_violation(&self) -> Option<Violation> {
        let m = &self.spec.migration;
        for (sql, source, what) in [(&self.observed.up, &m.up, "up"), (&self.observed.down, &m.down, "down")] {
            if *sql == SqlSource::Missing {
                let r = &source.config_map_key_ref;
                return Some((
                    ReadyReason::SqlMissing,
                    format!(
                        "ConfigMap {} has no key {} (spec.migration.{what}); next: {}",
                        r.name,
                        r.key,
                        self.observed.kubectl(&format!("create configmap {} --from-file={}", r.name, r.key))
                    ),
                ));
            }
        }
        None
    }

    fn flag_violation(&self) -> Option<Violation> {
        let flag = &self.spec.application.flag;
        let r = &flag.config_map_key_ref;
        match &self.observed.flag {
            ObservedFlag::ConfigMapMissing => Some((
                ReadyReason::FlagConfigMapMissing,
                format!(
                    "ConfigMap {} is missing (spec.application.flag); next: {}",
                    r.name,
                    self.observed
                        .kubectl(&format!("create configmap {} --from-literal={}={}", r.name, r.key, flag.from))
                ),
            )),
            ObservedFlag::KeyMissing => Some((
                ReadyReason::FlagKeyMissing,
                format!(
                    "ConfigMap {} has no key {}; next: {}",
                    r.name,
                    r.key,
                    self.set_key(&r.name, &r.key, &flag.from)
                ),
            )),
            ObservedFlag::Value { immutable: true, .. } => Some((
                ReadyReason::FlagConfigMapImmutable,
                format!(
                    "ConfigMap {} is immutable, the flag cannot be switched; next: delete it and create it again without immutable: true",
                    r.name
                ),
            )),
            ObservedFlag::Value { value, .. } if *value != flag.from => Some((
                ReadyReason::FlagNotAtFrom,
                format!(
                    "key {} of ConfigMap {} is {value:?}, expected {:?} (spec.application.flag.from); next: see which version runs. If it is the new one this migration is done already; else correct the spec, or the key",
                    r.key, r.name, flag.from
                ),
            )),
            ObservedFlag::Value { .. } => None,
        }
    }

    /// The checklist's `ENABLE_ROLLBACK=true`: whoever deployed the application says that it can go back.
    fn rollback_violation(&self) -> Option<Violation> {
        let flag = &self.spec.application.flag;
        let (map, key) = (&flag.config_map_key_ref.name, &flag.rollback_key);
        let seen = match self.observed.rollback_enabled.as_deref() {
            Some("true") => return None,
            Some(value) => format!("is {value:?}"),
            None => "is missing".to_owned(),
        };
        Some((
            ReadyReason::RollbackNotEnabled,
            format!(
                "key {key} of ConfigMap {map} {seen}, expected \"true\" (spec.application.flag.rollbackKey); next: {}",
                self.set_key(map, key, "true")
            ),
        ))
    }

    /// The command that sets a key of a ConfigMap.
    fn set_key(&self, map: &str, key: &str, value: &str) -> String {
        self.observed
            .kubectl(&format!("patch configmap {map} --type=merge -p '{{\"data\":{{\"{key}\":\"{value}\"}}}}'"))
    }

    fn workload_violation(&self) -> Option<Violation> {
        let r = &self.spec.application.flag.config_map_key_ref;
        for wanted in &self.spec.application.workloads {
            let seen = self.observed.workloads.iter().find(|w| w.reference == *wanted);
            let Some(seen) = seen.filter(|w| w.exists) else {
                return Some((
                    ReadyReason::WorkloadMissing,
                    format!(
                        "{:?} {} is missing (spec.application.workloads); next: {}",
                        wanted.kind,
                        wanted.name,
                        self.observed.kubectl("get deployments")
                    ),
                ));
            };
            if !seen.reads_flag {
                return Some((
                    ReadyReason::WorkloadDoesNotReadFlag,
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
        let problem = self.observed.policy_problem.as_ref()?;
        Some((
            ReadyReason::DecisionPolicyMissing,
            format!(
                "{problem}; without it neither names nor reports are proven; next: helm upgrade the operator with admissionPolicies.install=true"
            ),
        ))
    }
}
