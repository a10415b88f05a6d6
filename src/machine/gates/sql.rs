//! The SQL: is it there, is it what the evidence was made for, is it what was approved.

use super::Violation;
use crate::{
    api::{Phase, Plan, ReadyReason, SafeguardKind},
    machine::{
        ObservedSql, Transition,
        faults::{Fault, fault},
    },
    shared::message::Message,
};

/// Up and down SQL are in their ConfigMaps.
pub(super) fn check(transition: &Transition<'_>) -> Option<Violation> {
    let migration = &transition.spec.migration;
    let observed = transition.observed;
    for (sql, source, what) in [(&observed.up, &migration.up, "up"), (&observed.down, &migration.down, "down")] {
        let r = &source.config_map_key_ref;
        let create = observed.kubectl(&format!("create configmap {} --from-file={}", r.name, r.key));
        let message = match sql {
            ObservedSql::Present(_) => continue,
            ObservedSql::Missing => {
                Message::new(format!("ConfigMap {} has no key {} (spec.migration.{what})", r.name, r.key)).next(create)
            }
            ObservedSql::NotText => {
                Message::new(format!("key {} of ConfigMap {} (spec.migration.{what}) is not UTF-8 text", r.key, r.name))
                    .next(format!("iconv -f LATIN1 -t UTF-8 (or from the file's own encoding), then {create}"))
            }
        };
        return Some(Violation { reason: ReadyReason::SqlMissing, message });
    }
    None
}

/// The down SQL that is approved is in its ConfigMap, or in the database as far as that was measured.
pub(super) fn check_for_rollback(transition: &Transition<'_>) -> Option<Violation> {
    let approved = &transition.status.plan.as_ref()?.down_sha256;
    let mounted = matches!(&transition.observed.down, ObservedSql::Present(found) if found == approved);
    let missing = transition.status.safeguards.as_ref().map(|report| report.missing.as_slice()).unwrap_or_default();
    if mounted || fault(Fault::DownSqlAssumed) || missing.iter().all(|found| found.kind != SafeguardKind::StoredDownSql)
    {
        return None;
    }
    let r = &transition.spec.migration.down.config_map_key_ref;
    Some(Violation {
        reason: ReadyReason::DownSqlNotStored,
        message: Message::new(format!(
            "key {} of ConfigMap {} (spec.migration.down) is not the down SQL that was approved ({approved}), and the \
             database does not store that one either",
            r.key, r.name
        ))
        .next(transition.observed.kubectl(&format!("edit configmap {}", r.name))),
    })
}

impl Transition<'_> {
    /// What is run, as far as it can be read: `None` while SQL is missing.
    pub(crate) fn observed_plan(&self) -> Option<Plan> {
        let (ObservedSql::Present(up), ObservedSql::Present(down)) = (&self.observed.up, &self.observed.down) else {
            return None;
        };
        Some(Plan {
            generation: self.observed.generation,
            up_sha256: up.clone(),
            down_sha256: down.clone(),
            ..Plan::default()
        })
    }

    /// Spec or SQL differ from what the present evidence was made for.
    pub(crate) fn inputs_changed(&self) -> bool {
        let (Some(found), Some(had)) = (self.observed_plan(), &self.status.plan) else {
            // Evidence without its SQL is void as well; without evidence there is nothing to void.
            return self.status.plan.is_some() && self.observed_plan().is_none();
        };
        let generation = if fault(Fault::EditIgnored) { had.generation } else { found.generation };
        (generation, &found.up_sha256, &found.down_sha256) != (had.generation, &had.up_sha256, &had.down_sha256)
    }

    /// How the down SQL differs from what was approved, while a rollback would need it.
    pub(crate) fn down_drift(&self) -> Option<String> {
        if !matches!(self.phase(), Phase::Validating | Phase::Monitoring | Phase::Observing) {
            return None;
        }
        let approved = &self.status.plan.as_ref()?.down_sha256;
        let found = match &self.observed.down {
            ObservedSql::Present(found) if found == approved => return None,
            ObservedSql::Present(found) => found.as_str(),
            ObservedSql::Missing => "missing",
            ObservedSql::NotText => "not UTF-8 text",
        };
        let r = &self.spec.migration.down.config_map_key_ref;
        Some(format!(
            "key {} of ConfigMap {} (spec.migration.down) is {found}, approved was {approved}: a rollback runs the \
             approved one, which the database keeps; restore it, next: {}",
            r.key,
            r.name,
            self.observed.kubectl(&format!("edit configmap {}", r.name))
        ))
    }
}
