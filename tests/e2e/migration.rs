//! One `CreditMigration` of a test.

use std::sync::Arc;

use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use super::{
    cluster::{self, eventually},
    harness::{APPROVERS, AUTHOR, World},
};
use credit_migration::api::{
    CreditMigration, CreditMigrationStatus, DecisionKind, MigrationDecision, MigrationRun, MigrationRunStatus, Phase,
    Step, StepState, Task, WindowProgress,
};

/// One migration.
#[derive(Clone)]
pub struct Migration {
    /// World of the test.
    pub world: Arc<World>,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

fn ended(phase: Phase) -> bool {
    matches!(phase, Phase::Completed | Phase::RolledBack | Phase::RollbackFailed | Phase::Failed | Phase::Cancelled)
}

impl Migration {
    pub(super) async fn create(world: Arc<World>, name: &str, spec: Value) -> kube::Result<Self> {
        let object = json!({
            "apiVersion": "creditmigration.io/v1alpha1", "kind": "CreditMigration", "metadata": {"name": name},
                "spec": spec,
        });
        let kind = kube::discovery::ApiResource::erase::<CreditMigration>(&());
        // Not through the types: a test may need a value that they cannot express.
        let object: kube::api::DynamicObject = serde_json::from_value(object).unwrap();
        let author = cluster::client(Some(AUTHOR)).await;
        let api: Api<kube::api::DynamicObject> = Api::namespaced_with(author, &world.namespace, &kind);
        let made = api.create(&PostParams::default(), &object).await?;
        Ok(Self { world, name: name.into(), uid: made.uid().unwrap() })
    }

    fn api(&self) -> Api<CreditMigration> {
        self.world.api()
    }

    /// Its current object.
    pub async fn get(&self) -> CreditMigration {
        self.api().get(&self.name).await.unwrap()
    }

    /// Its status.
    pub async fn status(&self) -> CreditMigrationStatus {
        self.get().await.status.unwrap_or_default()
    }

    /// Waits for a state that stays.
    pub async fn until(
        &self,
        what: &str,
        mut good: impl FnMut(&CreditMigrationStatus) -> bool,
    ) -> CreditMigrationStatus {
        eventually(&format!("{what} of {}", self.name), async || {
            let status = self.api().get(&self.name).await.map_err(|e| e.to_string())?.status.unwrap_or_default();
            if good(&status) {
                return Ok(status);
            }
            Err(format!("{:?} {:?} {}", status.phase, status.step, ready(&status).1))
        })
        .await
    }

    /// Waits for a phase that lasts; another end is an error at once.
    pub async fn phase(&self, phase: Phase) -> CreditMigrationStatus {
        self.until(&format!("{phase:?}"), |status| {
            let now = status.phase.unwrap_or(Phase::Preparing);
            // A failed migration may restart and a failed rollback may be retried: use `until` for these.
            assert!(now == phase || !ended(now), "{} is {now:?}, wanted {phase:?}: {:?}", self.name, ready(status));
            now == phase
        })
        .await
    }

    /// Waits until a step has started. It may have ended since.
    pub async fn step(&self, step: Step) -> CreditMigrationStatus {
        self.until(&format!("step {step:?}"), |status| {
            let now = status.phase.unwrap_or(Phase::Preparing);
            let started = status.steps.iter().any(|x| x.name == step);
            assert!(started || !ended(now), "{} is {now:?}, wanted step {step:?}: {:?}", self.name, ready(status));
            started
        })
        .await
    }

    /// Waits until the runner has acknowledged the switch of the application.
    pub async fn switched(&self) -> CreditMigrationStatus {
        self.until("the acknowledged switch", |status| status.window.as_ref().is_some_and(|w| w.switched)).await
    }

    /// Waits until `Ready` has this reason, which stays; returns its message.
    pub async fn reason(&self, reason: &str) -> String {
        let status = self.until(reason, |status| ready(status).0 == reason).await;
        ready(&status).1
    }

    /// Waits for an event with this reason, and `part` in its note; returns the note. It comes a moment after the
    /// status.
    pub async fn event(&self, reason: &str, part: &str) -> String {
        eventually(&format!("event {reason} of {}", self.name), async || {
            let events = self.world.events(&self.name).await;
            let found = events.iter().find(|(r, note)| r == reason && note.contains(part));
            found.map(|(_, note)| note.clone()).ok_or_else(|| format!("{events:?}"))
        })
        .await
    }

    /// Creates a decision of a user.
    pub async fn decide(
        &self,
        by: &str,
        decision: DecisionKind,
        digest: Option<&str>,
    ) -> kube::Result<MigrationDecision> {
        let object = json!({
            "metadata": {"generateName": format!("{}-", self.name)},
            "spec": {"migration": self.name, "migrationUID": self.uid, "decision": decision, "by": by,
                "digest": digest, "reason": "e2e"},
        });
        let api: Api<MigrationDecision> = Api::namespaced(cluster::client(Some(by)).await, &self.world.namespace);
        let object = serde_json::from_value(object).unwrap();
        api.create(&PostParams::default(), &object).await
    }

    /// Waits for the step Approve. Then two approvers approve the plan and say that they are present.
    pub async fn approve(&self) {
        let status = self.phase(Phase::AwaitingApproval).await;
        let digest = status.plan.and_then(|p| p.digest).unwrap();
        for approver in APPROVERS {
            for decision in [DecisionKind::Approve, DecisionKind::Ready] {
                self.decide(approver, decision, Some(&digest)).await.unwrap();
            }
        }
    }

    /// Two approvers approve the plan, and are not present. Returns its digest.
    pub async fn approve_absent(&self) -> String {
        let digest = self.digest().await;
        for approver in APPROVERS {
            self.decide(approver, DecisionKind::Approve, Some(&digest)).await.unwrap();
        }
        digest
    }

    /// Waits for the step Decide, and keeps the new version.
    pub async fn completed(&self) -> CreditMigrationStatus {
        let status = self.step(Step::Decide).await;
        let digest = status.plan.and_then(|p| p.digest).unwrap();
        self.decide(APPROVERS[0], DecisionKind::Keep, Some(&digest)).await.unwrap();
        self.phase(Phase::Completed).await
    }

    /// Digest of the current plan.
    pub async fn digest(&self) -> String {
        self.status().await.plan.and_then(|p| p.digest).unwrap()
    }

    /// Edits the spec as the author.
    pub async fn edit(&self, patch: Value) -> kube::Result<CreditMigration> {
        let api: Api<CreditMigration> = Api::namespaced(cluster::client(Some(AUTHOR)).await, &self.world.namespace);
        api.patch(&self.name, &PatchParams::default(), &Patch::Merge(json!({"spec": patch}))).await
    }

    /// Deletes it, as `kubectl delete --wait=false` does.
    ///
    /// # Errors
    /// While a decision has to come first.
    pub async fn try_delete(&self) -> kube::Result<()> {
        self.api().delete(&self.name, &DeleteParams::default()).await.map(drop)
    }

    /// Deletes it in a phase in which no decision has to come first.
    pub async fn delete(&self) {
        self.try_delete().await.unwrap();
    }

    /// Deletes it as a deleted namespace does, in any phase.
    pub async fn delete_with_namespace(&self) {
        let controller = cluster::client(Some(cluster::NAMESPACE_CONTROLLER)).await;
        let api: Api<CreditMigration> = Api::namespaced(controller, &self.world.namespace);
        api.delete(&self.name, &DeleteParams::default()).await.unwrap();
    }

    /// Waits until it is gone.
    pub async fn gone(&self) {
        eventually(&format!("{} to go", self.name), async || match self.api().get_opt(&self.name).await {
            Ok(None) => Ok(()),
            Ok(Some(m)) => Err(format!("{:?}", m.status.map(|s| (s.phase, s.step, ready(&s))))),
            Err(e) => Err(e.to_string()),
        })
        .await;
    }

    /// Name of a task's first run, and of its Job.
    pub fn run_name(&self, task: Task) -> String {
        format!("{}-{}-1", self.name, task.slug())
    }

    /// Status of a task's first run.
    pub async fn run(&self, task: Task) -> MigrationRunStatus {
        let run = self.world.api::<MigrationRun>().get_opt(&self.run_name(task)).await.ok().flatten();
        run.and_then(|r| r.status).unwrap_or_default()
    }

    /// Waits for a state of a window run.
    pub async fn window(
        &self,
        task: Task,
        what: &str,
        mut good: impl FnMut(&WindowProgress) -> bool,
    ) -> WindowProgress {
        eventually(&format!("{what} of {}", self.run_name(task)), async || {
            let progress = self.run(task).await.window.unwrap_or_default();
            if good(&progress) { Ok(progress) } else { Err(format!("{:?}", progress.state)) }
        })
        .await
    }

    /// Waits until the triggers are removed from the database.
    pub async fn cleaned(&self) {
        self.until("clean-up", |status| {
            let step = |name| status.steps.iter().find(|x| x.name == name);
            let (Some(cleanup), Some(baseline)) = (step(Step::Cleanup), step(Step::Baseline)) else { return false };
            // A cleanup from before the current plan does not count.
            cleanup.state == StepState::Succeeded && cleanup.finished_at.is_some_and(|t| t >= baseline.started_at)
        })
        .await;
        assert_eq!(self.world.db.triggers().await, 0, "triggers are left");
    }

    /// The new version runs on the new schema, and writes are unblocked.
    pub async fn assert_new(&self) {
        let (world, db) = (&self.world, &self.world.db);
        assert_eq!((db.schema().await.as_str(), world.flag().await.as_str()), ("v2", "v2"));
        assert_eq!(world.running().await, "v2");
        assert_eq!(db.ledger().await, "up");
        assert_eq!(db.unexplained().await, 0);
        db.writable().await.unwrap();
    }

    /// The old version runs on the old schema, and writes are unblocked.
    pub async fn assert_old(&self, ledger: &str) {
        let (world, db) = (&self.world, &self.world.db);
        assert_eq!((db.schema().await.as_str(), world.flag().await.as_str()), ("v1", "v1"));
        assert_eq!(db.ledger().await, ledger);
        assert_eq!(db.unexplained().await, 0);
        db.writable().await.unwrap();
        assert!(!db.writes_blocked().await, "writes are blocked");
    }
}

/// Reason and message of `Ready`.
pub fn ready(status: &CreditMigrationStatus) -> (String, String) {
    let ready = status.conditions.iter().find(|c| c.type_ == "Ready");
    ready.map(|c| (c.reason.clone(), c.message.clone())).unwrap_or_default()
}

/// Status of a condition.
pub fn condition(status: &CreditMigrationStatus, kind: &str) -> String {
    status.conditions.iter().find(|c| c.type_ == kind).map(|c| format!("{} {}", c.status, c.reason)).unwrap_or_default()
}
