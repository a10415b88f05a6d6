//! The binding of the policy that authenticates decisions is deleted: any approver can approve in any name, and no
//! window starts, neither in the meantime nor, by those decisions, later.

use std::panic::AssertUnwindSafe;

use credit_migration::api::{DecisionKind, Phase};
use futures::FutureExt;
use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicyBinding;
use kube::{
    Api,
    api::{DeleteParams, ObjectMeta, PostParams},
};

use crate::{
    cluster::{self, eventually},
    forging::{agree, assert_not_started, at_once, decide_as},
    harness::{APPROVERS, Setup, e2e},
    migration::{Migration, ready},
};

const POLICY: &str = "migrationdecisions.creditmigration.io";
/// May approve, and does so in both names.
const FORGER: &str = APPROVERS[1];

/// Both decisions in both names by one user.
///
/// # Errors
/// While the API server rejects a decision in another name.
async fn forge(m: &Migration, digest: &str) -> Result<(), String> {
    let client = cluster::client(Some(FORGER)).await;
    for decision in [DecisionKind::Approve, DecisionKind::Ready] {
        for name in APPROVERS {
            decide_as(m, &client, name, &m.uid, decision, digest).await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn deleted_while_approvals_are_pending() {
    e2e("missing-policy", Setup { exclusive: true, replicas: 0, ..Setup::default() }, |world| async move {
        let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(world.client.clone());
        let m = world.migrate("simplify", at_once()).await;
        m.phase(Phase::AwaitingApproval).await;
        let (before, digest) = (world.db.fingerprint().await, m.digest().await);
        let mut binding = bindings.get(POLICY).await.unwrap();
        let ObjectMeta { name, labels, annotations, .. } = binding.metadata;
        binding.metadata = ObjectMeta { name, labels, annotations, ..ObjectMeta::default() };

        bindings.delete(POLICY, &DeleteParams::default()).await.unwrap();
        let meanwhile = async {
            eventually("an accepted forged decision", || forge(&m, &digest)).await;
            let message = m.reason("DecisionPolicyMissing").await;
            assert!(message.contains(POLICY) && message.contains("next: helm upgrade"), "{message}");
            assert_not_started(&m, &before).await;
            // In their own names: these cannot be distinguished from the forged ones.
            agree(&m).await.unwrap();
            m.reason("DecisionPolicyMissing").await;
            assert_not_started(&m, &before).await;
        };
        let meanwhile = AssertUnwindSafe(meanwhile).catch_unwind().await;
        // First of all restore the binding, which the other tests need.
        bindings.create(&PostParams::default(), &binding).await.unwrap();
        eventually("a rejected forged decision", async || {
            let client = cluster::client(Some(FORGER)).await;
            match decide_as(&m, &client, APPROVERS[0], &m.uid, DecisionKind::Approve, "sha256:0").await {
                Err(refused) if refused.contains("your own name") => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        if let Err(panic) = meanwhile {
            std::panic::resume_unwind(panic);
        }

        // The operator finds the policy again; decisions from the time without it do not count.
        let status = m
            .until("the policy to be found", |s| {
                s.approvals.as_deref() == Some("0/2") && ready(s).0 == "ApprovalPending"
            })
            .await;
        assert!(status.approved_by.is_empty(), "{:?}", status.approved_by);
        assert_not_started(&m, &before).await;

        // Later decisions do. Times of decisions are whole seconds.
        eventually("authenticated approvals", async || {
            let status = m.status().await;
            if status.phase != Some(Phase::AwaitingApproval) {
                return Ok(());
            }
            agree(&m).await?;
            Err(format!("{:?}", ready(&status)))
        })
        .await;
        m.until("the blocked writes", |s| s.window.as_ref().is_some_and(|w| w.blocked_at.is_some())).await;
    })
    .await;
}
