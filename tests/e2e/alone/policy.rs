//! The binding that holds names in decisions to their authors is deleted: anybody approves in anybody's name, and no window opens,
//! neither meanwhile nor, on those words, later.

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
    forging::{agree, assert_shut, at_once, say},
    harness::{APPROVERS, Setup, e2e},
    migration::{Migration, ready},
};

const POLICY: &str = "migrationdecisions.creditmigration.io";
/// May approve, and says so in both names.
const FORGER: &str = APPROVERS[1];

/// Both words in both names by one person. Errs while the API server still, or again, refuses that.
async fn forge(m: &Migration, digest: &str) -> Result<(), String> {
    let client = cluster::client(Some(FORGER)).await;
    for decision in [DecisionKind::Approve, DecisionKind::Ready] {
        for person in APPROVERS {
            say(m, &client, person, &m.uid, decision, digest).await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn deleted_while_people_are_asked() {
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
            eventually("a forged word to be taken", || forge(&m, &digest)).await;
            let message = m.reason("DecisionPolicyMissing").await;
            assert!(message.contains(POLICY) && message.contains("next: helm upgrade"), "{message}");
            assert_shut(&m, &before).await;
            // In their own names: nobody can tell them from the forged ones.
            agree(&m).await.unwrap();
            m.reason("DecisionPolicyMissing").await;
            assert_shut(&m, &before).await;
        };
        let meanwhile = AssertUnwindSafe(meanwhile).catch_unwind().await;
        // Before anything can fail: the other tests need it.
        bindings.create(&PostParams::default(), &binding).await.unwrap();
        eventually("forged words to be refused", async || {
            let client = cluster::client(Some(FORGER)).await;
            match say(&m, &client, APPROVERS[0], &m.uid, DecisionKind::Approve, "sha256:0").await {
                Err(refused) if refused.contains("your own name") => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        if let Err(panic) = meanwhile {
            std::panic::resume_unwind(panic);
        }

        // The operator sees it again, and what was said in its absence proves nothing.
        let status = m
            .until("the policy to be seen", |s| {
                s.approvals.as_deref() == Some("0/2") && ready(s).0 == "ApprovalPending"
            })
            .await;
        assert!(status.approved_by.is_empty(), "{:?}", status.approved_by);
        assert_shut(&m, &before).await;

        // Words that came after it do. Times of decisions are whole seconds.
        eventually("proven approvals", async || {
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
