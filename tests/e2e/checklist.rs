//! The checklist's other lines with everything configured, against the real git server, mail server and web server. The
//! tests check what has arrived there.

use std::process::Command;

use credit_migration::api::{
    CheckOutcome, CheckResult, DecisionKind, Delivery, DeliveryState, NoticeState, NoticeStatus, Occasion, Phase, Step,
    StepState,
};
use k8s_openapi::api::{core::v1::ConfigMap, rbac::v1::RoleBinding};
use kube::Api;
use serde_json::{Value, json};

use super::{
    cluster::{eventually, state, state_file},
    harness::{APP, APPROVERS, Setup, World, e2e},
    latch::Latch,
    migration::condition,
};

/// Creates a repository with one commit; returns its hash.
fn repository(name: &str) -> String {
    let script = r#"export GIT_AUTHOR_NAME=carol GIT_AUTHOR_EMAIL=carol@example.com GIT_DIR=/srv/$1.git
        export GIT_COMMITTER_NAME=carol GIT_COMMITTER_EMAIL=carol@example.com
        git init --quiet --bare --initial-branch=main
        commit=$(git commit-tree "$(git mktree </dev/null)" -m "Credit system v1")
        git update-ref refs/heads/main "$commit"; echo "$commit""#;
    git(&["bash", "-euc", script, "-", name])
}

/// Runs a command in the git server's pod.
fn git(command: &[&str]) -> String {
    let output =
        Command::new("kubectl").args(["exec", "-n", "git", "deployment/git", "--"]).args(command).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Messages in the inbox below a path.
pub(super) async fn inbox(prefix: &str) -> Vec<Value> {
    let ca = reqwest::Certificate::from_pem(state_file("pki-services/ca.crt").as_bytes()).unwrap();
    let http = reqwest::Client::builder().add_root_certificate(ca).build().unwrap();
    http.get(format!("https://inbox.inbox{prefix}")).send().await.unwrap().json().await.unwrap()
}

impl World {
    /// Creates the Secrets of git and channels, as `tests/cluster/services connect` does.
    pub(super) async fn further_secrets(&self) {
        let ca = state_file("pki-services/ca.crt");
        let read = |name: &str| std::fs::read_to_string(state().join("git-keys").join(name)).unwrap();
        self.secret("code-repository", json!({"ssh-privatekey": read("client"), "known_hosts": read("known_hosts")}))
            .await;
        let env = state_file("inbox.env");
        let value = |key: &str| env.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix('=')).unwrap().to_owned();
        let url = |path: &str| format!("https://inbox.inbox/{}/{path}", self.namespace);
        self.secret(
            "notices",
            json!({"username": value("mail_username"), "password": value("mail_password"), "slack-url": url("slack"),
                   "events-url": url("events"), "events-authorization": "Bearer e2e",
                   "away-url": "https://nowhere.inbox/x", "ca.crt": ca}),
        )
        .await;
    }

    fn everything(&self, commit: &str) -> Value {
        let key = |key: &str| json!({"name": "notices", "key": key});
        let contact = |role: &str| {
            json!({"role": role, "name": format!("{role} Example"),
                   "phone": "+49 30 0000001", "duty": "to be called"})
        };
        let contacts = ["DBA", "BackendLead", "DevOps", "ProductManager", "CTO"].map(contact);
        let url = |path: &str| format!("http://{APP}{path}");
        let mail = |to: &str| {
            json!({
            "host": "inbox.inbox", "from": "migration@example.com",
            "to": [format!("{to}@{}.example.com", self.namespace)],
            "secretRef": {"name": "notices"}, "caSecretRef": key("ca.crt")})
        };
        let auth = json!({"Authorization": "Bearer {{ token }}"});
        json!({
            "code": {"repository": format!("ssh://git@git.git/srv/{}.git", self.namespace), "commit": commit,
                "secretRef": {"name": "code-repository"}},
            "schedule": {"leadTime": "3s"},
            "notifications": {
                "channels": [
                    {"name": "mail", "audiences": ["Team", "Support"], "email": mail("list")},
                    {"name": "customers", "audiences": ["Users"], "email": mail("customers")},
                    {"name": "slack", "audiences": ["Team"],
                     "slack": {"urlSecretRef": key("slack-url"), "caSecretRef": key("ca.crt")}},
                    {"name": "status-page", "audiences": ["StatusPage"], "webhook": {
                        "urlSecretRef": key("events-url"), "caSecretRef": key("ca.crt"),
                        "authorizationSecretRef": key("events-authorization")}},
                    {"name": "away", "audiences": ["Social"], "webhook": {"urlSecretRef": key("away-url")}},
                ],
                "contacts": contacts,
            },
            "validation": {"duration": "1s", "checks": [
                {"name": "functional", "interval": "2s", "sequence": {"steps": [
                    {"name": "log in", "url": url("/login"), "method": "POST",
                        "body": "{\"email\": \"user9@example.com\"}",
                     "capture": [{"name": "token", "jsonPath": "$.token"}]},
                    {"name": "credits are shown", "url": url("/credits"), "headers": auth,
                        "capture": [{"name": "before", "jsonPath": "$.balance"}]},
                    {"name": "a credit is taken", "url": url("/credits/deduct"), "method": "POST", "headers": auth,
                     "body": "{\"amount\": 1, \"reason\": \"probe\"}",
                     "expect": [{"jsonPath": "$.balance", "equals": "{{ before - 1 }}"}]},
                ]}},
                {"name": "response-time", "interval": "1s", "http": {"url": url("/healthz"), "percentile": 95},
                    "max": "5000", "minimumSamples": 3},
                {"name": "balances", "interval": "1s", "balances": {}, "max": "0"},
                {"name": "total", "interval": "1s", "balances": {"compare": "Total"}, "max": "1"},
                {"name": "connection", "interval": "1s", "connection": {}, "max": "1"},
                {"name": "error-lines", "interval": "1s", "max": "0",
                 "logs": {"workload": {"kind": "Deployment", "name": APP}}},
                {"name": "own-image", "interval": "10s",
                 "job": {"image": "localhost/credit-migration-operator:dev", "command": ["git", "--version"]}},
                {"name": "own-image-fails", "interval": "10s", "onBreach": "Warn",
                 "job": {"image": "localhost/credit-migration-operator:dev", "command": ["git", "--no-such-option"]}},
            ]},
            "followUps": {"day": {"after": "1s", "duration": "2s", "checks": [
                {"name": "complaints", "interval": "1s",
                    "sql": {"query": "SELECT count(*) FROM user_credits WHERE balance < 0"}, "max": "0"},
                {"name": "conversion", "interval": "1s", "sql": {"query": "SELECT 0"}, "min": "1"},
            ]}},
        })
    }
}

#[tokio::test]
async fn everything_configured() {
    e2e("everything", Setup::default(), |world| async move {
        world.further_secrets().await;
        let commit = repository(&world.namespace);
        let mut spec = world.everything(&commit);
        spec["validation"]["checks"].as_array_mut().unwrap().push(Latch::Validate.check());
        let m = world.migrate("simplify", spec).await;
        m.phase(Phase::AwaitingApproval).await;
        let closed = world.db.close(Latch::Validate).await;

        // One channel is down: the status says so, and nothing waits for it.
        m.approve().await;
        let status = m.step(Step::Validate).await;
        let step = |s: &credit_migration::api::CreditMigrationStatus, name| {
            s.steps.iter().find(|x| x.name == name).cloned().unwrap()
        };
        assert_eq!(step(&status, Step::NotifyTeam).state, StepState::Succeeded);
        let evidence = step(&status, Step::Schedule).message.unwrap();
        assert!(
            evidence.starts_with(&format!("present: {}; maintenance notice taken by ", APPROVERS.join(", "))),
            "{evidence}"
        );
        let maintenance = status.notices.iter().find(|n| n.notice.occasion == Occasion::MaintenanceStarts).unwrap();
        assert!(maintenance.state != NoticeState::Delivered && maintenance.failures > 0, "{maintenance:?}");
        let away = maintenance.deliveries.iter().find(|d| d.channel == "away").unwrap();
        assert_eq!(away.state, DeliveryState::Failed);
        assert!(!away.message.contains("https://"), "an address in the status: {away:?}");

        // Tag and branch on the git server.
        assert_eq!(step(&status, Step::CodeBackup).state, StepState::Succeeded);
        let of = |name: &str| git(&["git", "-C", &format!("/srv/{}.git", world.namespace), "rev-parse", name]);
        assert_eq!(of("pre-credit-migration-v1^{commit}"), commit);
        assert_eq!(of("refs/heads/backup/pre-credit-migration"), commit);
        let kind =
            git(&["git", "-C", &format!("/srv/{}.git", world.namespace), "cat-file", "-t", "pre-credit-migration-v1"]);
        assert_eq!(kind, "tag", "annotated");

        // Each kind of check has measured in the cluster.
        let status = m
            .until("all measured", |s| {
                let as_expected = |c: &CheckResult| match c.name.as_str() {
                    "own-image-fails" => c.outcome == CheckOutcome::Fail,
                    "latch" => c.outcome == CheckOutcome::NoData,
                    _ => c.outcome == CheckOutcome::Pass,
                };
                s.phase == Some(Phase::Validating) && s.checks.len() == 11 && s.checks.iter().all(as_expected)
            })
            .await;
        let failed = status.checks.iter().find(|c| c.name == "own-image-fails").unwrap();
        assert!(failed.message.contains("failed") && failed.message.contains(" logs job/"), "{}", failed.message);
        let logs: Api<RoleBinding> = world.api();
        assert!(logs.get_opt("simplify-runner-logs").await.unwrap().is_some(), "the right to read logs");
        assert!(
            condition(&status, "ChecklistCovered").starts_with("False"),
            "{}",
            condition(&status, "ChecklistCovered")
        );

        drop(closed);

        let status = m.completed().await;
        let day = status.day_report.unwrap();
        assert_eq!((day.passed, day.checks), (1, 2), "{day:?}");
        m.event("CheckBreached", "conversion").await;

        // What the recipients have got.
        let occasions = [
            Occasion::Planned,
            Occasion::ApprovalDue,
            Occasion::MaintenanceStarts,
            Occasion::Finished,
            Occasion::DayReport,
            Occasion::WeekReport,
            Occasion::DecisionDue,
        ];
        m.until("the delivered notices", |s| {
            let took = |n: &NoticeStatus, channel| {
                n.deliveries.iter().any(|d| d.channel == channel && d.state == DeliveryState::Delivered)
            };
            occasions.iter().all(|occasion| {
                s.notices.iter().any(|n| n.notice.occasion == *occasion && took(n, "mail") && took(n, "slack"))
            })
        })
        .await;
        let mails = inbox(&format!("/mail/list@{}.example.com", world.namespace)).await;
        let customers = eventually("the customers' mails", async || {
            let mails = inbox(&format!("/mail/customers@{}.example.com", world.namespace)).await;
            let of = |words: &str| mails.iter().any(|mail| mail["subject"].as_str().unwrap().contains(words));
            if of("Scheduled maintenance") && of("Maintenance is done") { Ok(mails) } else { Err(format!("{mails:?}")) }
        })
        .await;
        assert!(!json!(customers).to_string().contains("simplify"), "customers get no internals: {customers:?}");
        let text = json!(mails).to_string();
        assert!(!text.contains("postgresql://") && !text.contains("user9@example.com"), "{text}");
        let slack = inbox(&format!("/{}/slack", world.namespace)).await;
        assert!(mails.len() >= occasions.len() && slack.len() >= occasions.len(), "{} {}", mails.len(), slack.len());
        // The status page gets the second and the third.
        eventually("the status page's events", async || {
            let events = inbox(&format!("/{}/events", world.namespace)).await;
            if events.len() >= 2 { Ok(()) } else { Err(format!("{events:?}")) }
        })
        .await;
        m.cleaned().await;
    })
    .await;
}

#[tokio::test]
async fn an_alert_names_whom_to_call() {
    e2e("alert", Setup::default(), |world| async move {
        world.further_secrets().await;
        let commit = repository(&world.namespace);
        world.patch::<ConfigMap>(APP, json!({"data": {"V2_FAULTS": "login"}})).await;
        let login = json!({"url": format!("http://{APP}/login"), "method": "POST",
            "body": "{\"email\": \"user5@example.com\"}"});
        let mut spec = world.everything(&commit);
        spec["rollback"] = json!({"triggers": {"coreFunction": {"http": login}}});
        let m = world.migrate("simplify", spec).await;
        m.approve().await;
        m.phase(Phase::RolledBack).await;

        // The team gets it by both channels; the public gets no names and no internals.
        let recipient = format!("/mail/list@{}.example.com", world.namespace);
        let slack = format!("/{}/slack", world.namespace);
        let alert = async |inbox_of: &str, words: &str| {
            eventually(&format!("\"{words}\" in {inbox_of}"), async || {
                let all: Vec<String> = inbox(inbox_of).await.iter().map(Value::to_string).collect();
                all.iter().find(|text| text.contains(words)).cloned().ok_or_else(|| format!("{all:?}"))
            })
            .await
        };
        for text in [
            alert(&recipient, "a trigger fired").await,
            alert(&slack, "a trigger fired").await,
            alert(&recipient, "rolled back").await,
        ] {
            assert!(text.contains("core-function: "), "{text}");
            for role in ["DBA", "BackendLead", "DevOps", "ProductManager", "CTO"] {
                assert!(text.contains(&format!("{role} Example, +49 30 0000001 (to be called)")), "{text}");
            }
        }
        let events = json!(inbox(&format!("/{}/events", world.namespace)).await).to_string();
        let customers = json!(inbox(&format!("/mail/customers@{}.example.com", world.namespace)).await).to_string();
        for public in [events, customers] {
            assert!(!public.contains("Example") && !public.contains("core-function"), "{public}");
        }
        m.assert_old("up,down").await;
    })
    .await;
}

#[tokio::test]
async fn a_tag_on_another_commit_is_left_alone() {
    e2e("tag-elsewhere", Setup { replicas: 0, ..Setup::default() }, |world| async move {
        world.further_secrets().await;
        let commit = repository(&world.namespace);
        let folder = format!("/srv/{}.git", world.namespace);
        let script = r#"export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_DIR=$1
            export GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
            other=$(git commit-tree "$(git mktree </dev/null)" -m other)
            git tag -a -m old pre-credit-migration-v1 $other; echo $other"#;
        let other = git(&["bash", "-euc", script, "-", &folder]);
        let code = world.everything(&commit)["code"].take();
        let m = world.migrate("simplify", json!({ "code": code })).await;
        let message = m.reason("RefElsewhere").await;
        assert!(message.contains(&other[..8]) && message.contains("next: "), "{message}");
        assert_eq!(git(&["git", "-C", &folder, "rev-parse", "pre-credit-migration-v1^{commit}"]), other);
        m.assert_old("").await;
    })
    .await;
}

#[tokio::test]
async fn an_announced_maintenance_is_cancelled() {
    e2e("cancelled", Setup { replicas: 0, ..Setup::default() }, |world| async move {
        world.further_secrets().await;
        let mut spec = world.everything("");
        spec.as_object_mut().unwrap().remove("code");
        spec["schedule"] = json!({"leadTime": "1h"});
        let m = world.migrate("simplify", spec).await;
        m.phase(Phase::AwaitingApproval).await;
        let taken = async |occasion, channel| {
            m.until("a notice that was taken", |s| {
                let took = |n: &NoticeStatus| {
                    let taken = |d: &Delivery| d.channel == channel && d.state == DeliveryState::Delivered;
                    n.notice.occasion == occasion && n.deliveries.iter().any(taken)
                };
                s.notices.iter().any(took)
            })
            .await
        };
        taken(Occasion::ApprovalDue, "mail").await;
        m.approve_absent().await;
        taken(Occasion::PresenceDue, "mail").await;
        taken(Occasion::MaintenanceStarts, "customers").await;
        m.decide(APPROVERS[0], DecisionKind::Abort, None).await.unwrap();
        m.phase(Phase::Cancelled).await;
        let status = taken(Occasion::MaintenanceCancelled, "customers").await;
        let starts = |occasion| status.notices.iter().find(|n| n.notice.occasion == occasion).unwrap().notice.starts_at;
        assert_eq!(starts(Occasion::MaintenanceCancelled), starts(Occasion::MaintenanceStarts));
        eventually("the customers' mails", async || {
            let mails = inbox(&format!("/mail/customers@{}.example.com", world.namespace)).await;
            let of = |words: &str| mails.iter().any(|mail| mail["subject"].as_str().unwrap().contains(words));
            let both = of("Scheduled maintenance") && of("Maintenance is cancelled");
            if both { Ok(()) } else { Err(format!("{mails:?}")) }
        })
        .await;
        m.cleaned().await;
    })
    .await;
}
