//! Forged and stale words: whatever is tried, the window does not open; with the right words it does.
//!
//! That policies and roles refuse each single request is also tried in `tests/chart/policies`. Here the operator is there too, and
//! what counts is what it does. `alone/policy.rs` has the case of a missing policy.

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

/// May create decisions, and neither approve nor roll back.
const STRANGER: &str = "mallory@shop.example";
/// The words that a migration waits for, each on a digest.
const WORDS: [DecisionKind; 3] = [DecisionKind::Approve, DecisionKind::Ready, DecisionKind::Keep];

fn idle() -> Setup {
    Setup { replicas: 0, ..Setup::default() }
}

/// May open at any time: only people hold it up.
pub fn at_once() -> serde_json::Value {
    json!({"schedule": {"leadTime": "0s"}})
}

/// A decision by whoever the client is, in the name `by`, on the object with this UID.
pub async fn say(
    m: &Migration,
    client: &Client,
    by: &str,
    uid: &str,
    decision: DecisionKind,
    digest: &str,
) -> Result<(), String> {
    let object = json!({
        "metadata": {"generateName": format!("{}-", m.name)},
        "spec": {"migration": m.name, "migrationUID": uid, "decision": decision, "by": by, "digest": digest, "reason": "forging"},
    });
    let api: Api<MigrationDecision> = Api::namespaced(client.clone(), &m.world.namespace);
    let object = serde_json::from_value(object).unwrap();
    api.create(&PostParams::default(), &object).await.map(drop).map_err(|e| e.to_string())
}

/// All that two people have to say on the present plan, in their own names.
pub async fn agree(m: &Migration) -> Result<(), String> {
    let digest = m.digest().await;
    for decision in [DecisionKind::Approve, DecisionKind::Ready] {
        for person in APPROVERS {
            m.decide(person, decision, Some(&digest)).await.map_err(|e| e.to_string())?;
        }
    }
    Ok(())
}

/// Waits until the approvals of exactly these people count. It is a word of the last of them that shows that the operator has
/// looked since the forged ones.
async fn counts(m: &Migration, people: &[&str]) -> CreditMigrationStatus {
    let wanted = format!("{}/2", people.len());
    let status = m.until(&format!("approvals {wanted}"), |s| s.approvals.as_deref() == Some(&wanted)).await;
    assert_eq!(status.approved_by, people);
    status
}

/// No window was opened, nor is one about to be.
pub async fn assert_shut(m: &Migration, before: &Fingerprint) {
    let status = m.status().await;
    assert_eq!(status.phase, Some(Phase::AwaitingApproval), "{:?}", ready(&status));
    assert!(status.window.is_none(), "{:?}", status.window);
    let run = m.world.api::<MigrationRun>().get_opt(&m.run_name(Task::Window)).await.unwrap();
    assert!(run.is_none(), "{run:?}");
    m.assert_old("").await;
    assert_eq!(m.world.db.fingerprint().await, *before);
}

/// With what was lacking the window opens: nothing else had kept it shut.
async fn assert_opens(m: &Migration) {
    m.until("the window", |s| s.phase != Some(Phase::AwaitingApproval)).await;
    m.until("the blocked writes", |s| s.window.as_ref().is_some_and(|w| w.blocked_at.is_some())).await;
}

/// Somebody who may create decisions and nothing else, and a ServiceAccount that may approve.
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
            json!([{"kind": "ServiceAccount", "name": "robot", "namespace": world.namespace}, {"kind": "User", "name": AUTHOR, "apiGroup": group}]),
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
async fn in_anothers_name() {
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
            ("somebody without the right", cluster::client(Some(STRANGER)).await, STRANGER, not_theirs.as_str()),
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
            ("... in a person's name", cluster::client_with(&token, None).await, alice, "only a person decides"),
            (
                "... that impersonates a person",
                cluster::client_with(&token, Some(alice)).await,
                alice,
                "cannot impersonate",
            ),
        ] {
            for decision in WORDS {
                let said = say(&m, &client, by, &m.uid, decision, &digest).await;
                let refused = said.expect_err(&format!("{what}: {decision:?} was accepted"));
                assert!(refused.contains(why), "{what}, {decision:?}: {refused}");
            }
        }
        let decisions = world.api::<MigrationDecision>().list(&Default::default()).await.unwrap().items;
        assert_eq!(decisions.iter().map(ResourceExt::name_any).collect::<Vec<_>>(), Vec::<String>::new());

        // In their own names, and yet not two people: the author, and one of them twice.
        for decision in WORDS {
            for person in [AUTHOR, alice, alice] {
                m.decide(person, decision, Some(&digest)).await.unwrap();
            }
        }
        counts(&m, &[alice]).await;
        assert_shut(&m, &before).await;

        for decision in [DecisionKind::Ready, DecisionKind::Approve] {
            m.decide(bob, decision, Some(&digest)).await.unwrap();
        }
        assert_opens(&m).await;
    })
    .await;
}

#[tokio::test]
async fn words_on_another_plan() {
    e2e("stale-words", idle(), |world| async move {
        let m = world.migrate("simplify", at_once()).await;
        m.phase(Phase::AwaitingApproval).await;
        let (before, first) = (world.db.fingerprint().await, m.digest().await);
        let [alice, bob] = APPROVERS;
        for decision in WORDS {
            m.decide(alice, decision, Some(&first)).await.unwrap();
        }
        counts(&m, &[alice]).await;

        // The author changes the plan after the approval: it is void.
        m.edit(json!({"window": {"maxDuration": "70s"}})).await.unwrap();
        let status = m
            .until("a new plan", |s| {
                s.phase == Some(Phase::AwaitingApproval)
                    && s.plan.as_ref().and_then(|p| p.digest.as_ref()).is_some_and(|d| *d != first)
            })
            .await;
        assert_eq!((status.approvals.as_deref(), status.approved_by.len()), (Some("0/2"), 0));
        let second = m.digest().await;
        // Replayed, also by the one who was still to approve; and of a plan that never was.
        for digest in [first.as_str(), "sha256:0", "sha256:"] {
            for decision in WORDS {
                for person in APPROVERS {
                    m.decide(person, decision, Some(digest)).await.unwrap();
                }
            }
        }
        // Neither does a part of the digest count, or more than it.
        for digest in [&second[..second.len() - 1], &format!("{second}0")] {
            m.decide(alice, DecisionKind::Approve, Some(digest)).await.unwrap();
        }
        m.decide(bob, DecisionKind::Approve, Some(&second)).await.unwrap();
        counts(&m, &[bob]).await;
        assert_shut(&m, &before).await;

        agree(&m).await.unwrap();
        assert_opens(&m).await;
    })
    .await;
}

#[tokio::test]
async fn words_on_a_predecessor_of_the_same_name() {
    e2e("recreated", idle(), |world| async move {
        let before = world.db.fingerprint().await;
        let old = world.migrate("simplify", at_once()).await;
        old.phase(Phase::AwaitingApproval).await;
        let old_digest = old.digest().await;
        let [alice, bob] = APPROVERS;
        for decision in WORDS {
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
            for decision in WORDS {
                say(&m, &client, bob, uid, decision, digest).await.unwrap();
            }
        }
        m.decide(alice, DecisionKind::Approve, Some(&digest)).await.unwrap();
        counts(&m, &[alice]).await;
        assert_shut(&m, &before).await;

        agree(&m).await.unwrap();
        assert_opens(&m).await;
    })
    .await;
}

#[tokio::test]
async fn presence_that_nobody_said() {
    e2e("forged-ready", idle(), |world| async move {
        strangers(&world).await;
        let m = world.migrate("simplify", at_once()).await;
        m.phase(Phase::AwaitingApproval).await;
        let (before, digest) = (world.db.fingerprint().await, m.digest().await);
        let [alice, bob] = APPROVERS;
        for person in APPROVERS {
            m.decide(person, DecisionKind::Approve, Some(&digest)).await.unwrap();
        }
        // Approved; from here on only people are missing.
        m.reason("PresencePending").await;
        let stranger = cluster::client(Some(STRANGER)).await;
        for (client, by) in [(&stranger, STRANGER), (&stranger, bob), (&world.client, bob)] {
            say(&m, client, by, &m.uid, DecisionKind::Ready, &digest).await.unwrap_err();
        }
        m.decide(bob, DecisionKind::Ready, Some("sha256:0")).await.unwrap();
        for _ in 0..2 {
            m.decide(alice, DecisionKind::Ready, Some(&digest)).await.unwrap();
        }
        let one = |s: &CreditMigrationStatus| s.schedule.as_ref().is_some_and(|x| x.presence.as_deref() == Some("1/2"));
        let status = m.until("one person", one).await;
        assert_eq!(status.schedule.unwrap().present, [alice]);
        assert_shut(&m, &before).await;

        m.decide(bob, DecisionKind::Ready, Some(&digest)).await.unwrap();
        assert_opens(&m).await;
    })
    .await;
}

#[tokio::test]
async fn a_keep_that_nobody_said() {
    e2e("forged-keep", Setup::default(), |world| async move {
        strangers(&world).await;
        let soon = json!({"after": "0s", "duration": "1s"});
        let mut spec = at_once();
        spec["followUps"] = json!({"day": soon, "week": soon});
        let m = world.migrate("simplify", spec).await;
        m.phase(Phase::AwaitingApproval).await;
        let digest = m.digest().await;
        // Said before there was anything to keep.
        for person in APPROVERS {
            m.decide(person, DecisionKind::Keep, Some(&digest)).await.unwrap();
        }
        agree(&m).await.unwrap();
        m.reason("DecisionDue").await;
        let [alice, bob] = APPROVERS;
        let stranger = cluster::client(Some(STRANGER)).await;
        for (client, by) in [(&stranger, STRANGER), (&stranger, bob), (&world.client, bob)] {
            say(&m, client, by, &m.uid, DecisionKind::Keep, &digest).await.unwrap_err();
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
