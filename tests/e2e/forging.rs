//! Forged and stale decisions do not start the window; the right ones do.
//!
//! `tests/chart/policies` tests that policies and roles reject each request. These tests check what the operator does.
//! `alone/policy.rs` has the case of a missing policy.

use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::ServiceAccount,
    rbac::v1::{Role, RoleBinding},
};
use kube::{Api, Client, ResourceExt, api::PostParams};
use serde_json::json;

use credit_migration::api::{CreditMigrationStatus, DecisionKind, MigrationDecision, MigrationRun, Phase, Task};

use super::{
    cluster,
    database::Fingerprint,
    harness::{APPROVERS, AUTHOR, Setup, World, e2e},
    migration::{Migration, ready},
};

/// May create decisions, but neither approve nor roll back.
const STRANGER: &str = "mallory@shop.example";
/// The decisions that a migration waits for, each on a digest.
const DECISIONS: [DecisionKind; 3] = [DecisionKind::Approve, DecisionKind::Ready, DecisionKind::Keep];

fn idle() -> Setup {
    Setup { replicas: 0, ..Setup::default() }
}

/// The window may start at any time: only decisions are missing.
pub fn at_once() -> serde_json::Value {
    json!({"schedule": {"leadTime": "0s"}})
}

/// Creates a decision as the client's user, in the name `by`, on the object with this UID.
pub async fn decide_as(
    m: &Migration,
    client: &Client,
    by: &str,
    uid: &str,
    decision: DecisionKind,
    digest: &str,
) -> Result<(), String> {
    let object = json!({
        "metadata": {"generateName": format!("{}-", m.name)},
        "spec": {"migration": m.name, "migrationUID": uid, "decision": decision, "by": by, "digest": digest,
            "reason": "forging"},
    });
    let api: Api<MigrationDecision> = Api::namespaced(client.clone(), &m.world.namespace);
    let object = serde_json::from_value(object).unwrap();
    api.create(&PostParams::default(), &object).await.map(drop).map_err(|e| e.to_string())
}

/// All decisions of both approvers on the current plan, in their own names.
pub async fn agree(m: &Migration) -> Result<(), String> {
    let digest = m.digest().await;
    for decision in [DecisionKind::Approve, DecisionKind::Ready] {
        for approver in APPROVERS {
            m.decide(approver, decision, Some(&digest)).await.map_err(|e| e.to_string())?;
        }
    }
    Ok(())
}

/// Waits until the approvals of exactly these users count. The last one's approval was created after the forged
/// decisions, so the operator has read those, too.
async fn counts(m: &Migration, users: &[&str]) -> CreditMigrationStatus {
    let wanted = format!("{}/2", users.len());
    let status = m.until(&format!("approvals {wanted}"), |s| s.approvals.as_deref() == Some(&wanted)).await;
    assert_eq!(status.approved_by, users);
    status
}

/// No window was started, nor is one being prepared.
pub async fn assert_not_started(m: &Migration, before: &Fingerprint) {
    let status = m.status().await;
    assert_eq!(status.phase, Some(Phase::AwaitingApproval), "{:?}", ready(&status));
    assert!(status.window.is_none(), "{:?}", status.window);
    let run = m.world.api::<MigrationRun>().get_opt(&m.run_name(Task::Window)).await.unwrap();
    assert!(run.is_none(), "{run:?}");
    m.assert_old("").await;
    assert_eq!(m.world.db.fingerprint().await, *before);
}

/// With the missing decisions the window starts: nothing else had prevented it.
async fn assert_starts(m: &Migration) {
    m.until("the window", |s| s.phase != Some(Phase::AwaitingApproval)).await;
    m.until("the blocked writes", |s| s.window.as_ref().is_some_and(|w| w.blocked_at.is_some())).await;
}

/// Creates a user who may create decisions and nothing else, and a ServiceAccount that may approve.
async fn strangers(world: &World) {
    let api = json!(["creditmigration.io"]);
    let rules = json!([{"apiGroups": api, "resources": ["migrationdecisions"], "verbs": ["create"]}]);
    world.create_object::<Role>(json!({"metadata": {"name": "stranger"}, "rules": rules})).await;
    world.create_object::<ServiceAccount>(json!({"metadata": {"name": "robot"}})).await;
    let group = "rbac.authorization.k8s.io";
    for (name, role, subjects) in [
        (
            "stranger",
            json!({"kind": "Role", "name": "stranger"}),
            json!([{"kind": "User", "name": STRANGER, "apiGroup": group}]),
        ),
        (
            "more-approvers",
            json!({"kind": "ClusterRole", "name": "credit-migration-approver"}),
            json!([{"kind": "ServiceAccount", "name": "robot", "namespace": world.namespace}, {"kind": "User",
                "name": AUTHOR, "apiGroup": group}]),
        ),
    ] {
        let mut role = role;
        role["apiGroup"] = json!(group);
        world
            .create_object::<RoleBinding>(json!({"metadata": {"name": name}, "roleRef": role, "subjects": subjects}))
            .await;
    }
}

/// A token of the ServiceAccount `robot`.
async fn robot(world: &World) -> String {
    let request = TokenRequest {
        spec: Some(TokenRequestSpec { expiration_seconds: Some(600), ..TokenRequestSpec::default() }),
        ..TokenRequest::default()
    };
    let made = world.api::<ServiceAccount>().create_token_request("robot", &PostParams::default(), &request).await;
    made.unwrap().status.unwrap().token.unwrap()
}

#[tokio::test]
async fn in_another_name() {
    e2e("forged-names", idle(), |world| async move {
        strangers(&world).await;
        let m = world.migrate("simplify", at_once()).await;
        m.phase(Phase::AwaitingApproval).await;
        let (before, digest) = (world.db.fingerprint().await, m.digest().await);
        let [alice, bob] = APPROVERS;
        let token = robot(&world).await;
        let account = format!("system:serviceaccount:{}:robot", world.namespace);
        let not_theirs = format!("{STRANGER} may not approve");
        let administrator = world.client.clone();
        for (what, client, by, why) in [
            ("an approver in another's name", cluster::client(Some(bob)).await, alice, "spec.by must be your own name"),
            ("an administrator in another's name", administrator, alice, "spec.by must be your own name"),
            ("a user without the right", cluster::client(Some(STRANGER)).await, STRANGER, not_theirs.as_str()),
            (
                "... in an approver's name",
                cluster::client(Some(STRANGER)).await,
                alice,
                "spec.by must be your own name",
            ),
            (
                "a ServiceAccount with the right",
                cluster::client_with(&token, None).await,
                &account,
                "only a person decides",
            ),
            ("... in a user's name", cluster::client_with(&token, None).await, alice, "only a person decides"),
            (
                "... that impersonates a user",
                cluster::client_with(&token, Some(alice)).await,
                alice,
                "cannot impersonate",
            ),
        ] {
            for decision in DECISIONS {
                let said = decide_as(&m, &client, by, &m.uid, decision, &digest).await;
                let refused = said.expect_err(&format!("{what}: {decision:?} was accepted"));
                assert!(refused.contains(why), "{what}, {decision:?}: {refused}");
            }
        }
        let decisions = world.api::<MigrationDecision>().list(&Default::default()).await.unwrap().items;
        assert_eq!(decisions.iter().map(ResourceExt::name_any).collect::<Vec<_>>(), Vec::<String>::new());

        // In their own names, but not two approvers: the author, and one approver twice.
        for decision in DECISIONS {
            for user in [AUTHOR, alice, alice] {
                m.decide(user, decision, Some(&digest)).await.unwrap();
            }
        }
        counts(&m, &[alice]).await;
        assert_not_started(&m, &before).await;

        for decision in [DecisionKind::Ready, DecisionKind::Approve] {
            m.decide(bob, decision, Some(&digest)).await.unwrap();
        }
        assert_starts(&m).await;
    })
    .await;
}

#[tokio::test]
async fn decisions_on_another_plan() {
    e2e("stale-decisions", idle(), |world| async move {
        let m = world.migrate("simplify", at_once()).await;
        m.phase(Phase::AwaitingApproval).await;
        let (before, first) = (world.db.fingerprint().await, m.digest().await);
        let [alice, bob] = APPROVERS;
        for decision in DECISIONS {
            m.decide(alice, decision, Some(&first)).await.unwrap();
        }
        counts(&m, &[alice]).await;

        // The author changes the plan after the approval, which is void then.
        m.edit(json!({"window": {"maxDuration": "70s"}})).await.unwrap();
        let status = m
            .until("a new plan", |s| {
                s.phase == Some(Phase::AwaitingApproval)
                    && s.plan.as_ref().and_then(|p| p.digest.as_ref()).is_some_and(|d| *d != first)
            })
            .await;
        assert_eq!((status.approvals.as_deref(), status.approved_by.len()), (Some("0/2"), 0));
        let second = m.digest().await;
        // Replayed decisions of both approvers, and decisions on a plan that never existed.
        for digest in [first.as_str(), "sha256:0", "sha256:"] {
            for decision in DECISIONS {
                for approver in APPROVERS {
                    m.decide(approver, decision, Some(digest)).await.unwrap();
                }
            }
        }
        // A shorter or longer digest does not count either.
        for digest in [&second[..second.len() - 1], &format!("{second}0")] {
            m.decide(alice, DecisionKind::Approve, Some(digest)).await.unwrap();
        }
        m.decide(bob, DecisionKind::Approve, Some(&second)).await.unwrap();
        counts(&m, &[bob]).await;
        assert_not_started(&m, &before).await;

        agree(&m).await.unwrap();
        assert_starts(&m).await;
    })
    .await;
}

#[tokio::test]
async fn decisions_on_a_predecessor_of_the_same_name() {
    e2e("recreated", idle(), |world| async move {
        let before = world.db.fingerprint().await;
        let old = world.migrate("simplify", at_once()).await;
        old.phase(Phase::AwaitingApproval).await;
        let old_digest = old.digest().await;
        let [alice, bob] = APPROVERS;
        for decision in DECISIONS {
            old.decide(alice, decision, Some(&old_digest)).await.unwrap();
        }
        counts(&old, &[alice]).await;
        old.delete().await;
        old.gone().await;

        // The same spec under the same name: another object, hence another digest.
        let m = world.migrate("simplify", at_once()).await;
        let status = m.phase(Phase::AwaitingApproval).await;
        assert_eq!((status.approvals.as_deref(), status.approved_by.len()), (Some("0/2"), 0));
        let digest = m.digest().await;
        assert_ne!(digest, old_digest);
        let client = cluster::client(Some(bob)).await;
        for (uid, digest) in [(&old.uid, &old_digest), (&old.uid, &digest), (&m.uid, &old_digest)] {
            for decision in DECISIONS {
                decide_as(&m, &client, bob, uid, decision, digest).await.unwrap();
            }
        }
        m.decide(alice, DecisionKind::Approve, Some(&digest)).await.unwrap();
        counts(&m, &[alice]).await;
        assert_not_started(&m, &before).await;

        agree(&m).await.unwrap();
        assert_starts(&m).await;
    })
    .await;
}

#[tokio::test]
async fn forged_presence() {
    e2e("forged-ready", idle(), |world| async move {
        strangers(&world).await;
        let m = world.migrate("simplify", at_once()).await;
        m.phase(Phase::AwaitingApproval).await;
        let (before, digest) = (world.db.fingerprint().await, m.approve_absent().await);
        let [alice, bob] = APPROVERS;
        // Approved; only the presence is missing.
        m.reason("PresencePending").await;
        let stranger = cluster::client(Some(STRANGER)).await;
        for (client, by) in [(&stranger, STRANGER), (&stranger, bob), (&world.client, bob)] {
            decide_as(&m, client, by, &m.uid, DecisionKind::Ready, &digest).await.unwrap_err();
        }
        m.decide(bob, DecisionKind::Ready, Some("sha256:0")).await.unwrap();
        for _ in 0..2 {
            m.decide(alice, DecisionKind::Ready, Some(&digest)).await.unwrap();
        }
        let one = |s: &CreditMigrationStatus| s.schedule.as_ref().is_some_and(|x| x.presence.as_deref() == Some("1/2"));
        let status = m.until("one approver present", one).await;
        assert_eq!(status.schedule.unwrap().present, [alice]);
        assert_not_started(&m, &before).await;

        m.decide(bob, DecisionKind::Ready, Some(&digest)).await.unwrap();
        assert_starts(&m).await;
    })
    .await;
}

#[tokio::test]
async fn a_forged_keep() {
    e2e("forged-keep", Setup::default(), |world| async move {
        strangers(&world).await;
        let soon = json!({"after": "0s", "duration": "1s"});
        let mut spec = at_once();
        spec["followUps"] = json!({"day": soon, "week": soon});
        let m = world.migrate("simplify", spec).await;
        m.phase(Phase::AwaitingApproval).await;
        let digest = m.digest().await;
        // Created before there was anything to keep.
        for approver in APPROVERS {
            m.decide(approver, DecisionKind::Keep, Some(&digest)).await.unwrap();
        }
        agree(&m).await.unwrap();
        m.reason("DecisionDue").await;
        let [alice, bob] = APPROVERS;
        let stranger = cluster::client(Some(STRANGER)).await;
        for (client, by) in [(&stranger, STRANGER), (&stranger, bob), (&world.client, bob)] {
            decide_as(&m, client, by, &m.uid, DecisionKind::Keep, &digest).await.unwrap_err();
        }
        m.decide(bob, DecisionKind::Keep, Some("sha256:0")).await.unwrap();
        let status = m.status().await;
        assert_eq!(status.phase, Some(Phase::Observing), "{:?}", ready(&status));

        m.decide(alice, DecisionKind::Keep, Some(&digest)).await.unwrap();
        let status = m.phase(Phase::Completed).await;
        assert!(ready(&status).1.contains(alice), "{:?}", ready(&status));
        m.assert_new().await;
        m.cleaned().await;
    })
    .await;
}
