//! Notify against a real mail server and a real web server, both with TLS of a private authority.

use std::{
    net::TcpListener,
    path::PathBuf,
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use credit_migration::{
    api::{Delivery, DeliveryState, Finding, MigrationRunSpec, Reason, RunInputs, Task, mounts},
    runner::{
        Failure,
        clients::pg_tools::Tools,
        context::TaskContext,
        report::Progress,
        settings::Settings,
        tasks::{findings::Findings, notify},
    },
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::harness::Script;

pub const DELIVERY_DEADLINE: Duration = Duration::from_secs(20);
/// None of them may be in a message.
const SECRETS: &[&str] =
    &["mail-secret", "wrong-secret", "hook-secret", "127.0.0.1", "@example.com", "+49", "operator"];

/// The servers: ended by their shell when this process ends, however it does.
pub struct Office {
    dir: PathBuf,
    start_tls: u16,
    implicit: u16,
    plain: u16,
    web: u16,
    _script: Script,
}

static OFFICE: OnceLock<Office> = OnceLock::new();
static NEXT: AtomicU32 = AtomicU32::new(0);

fn start() -> Office {
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/runner_data/notify.py");
    let script = Script::start("notify.sh", &[program.into()]);
    let ports = script.said.clone().expect("the servers do not start; next: apt-get install python3-aiosmtpd");
    let ports: Vec<u16> = ports.split(' ').map(|port| port.parse().unwrap()).collect();
    let [start_tls, implicit, plain, web] = ports[..] else { panic!("{ports:?}") };
    Office { dir: script.dir.clone(), start_tls, implicit, plain, web, _script: script }
}

impl Office {
    pub async fn open() -> &'static Self {
        tokio::task::spawn_blocking(|| OFFICE.get_or_init(start)).await.unwrap()
    }

    pub fn url(&self, path: &str) -> String {
        format!("https://127.0.0.1:{}{path}", self.web)
    }

    /// `ca` signed the servers' certificate, `foreign` did not.
    pub fn authority(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.join(format!("{name}.crt"))).unwrap()
    }

    fn kept(&self, kind: &str, is: impl Fn(&Value) -> bool) -> Vec<Value> {
        let files = std::fs::read_dir(self.dir.join(kind)).unwrap().map(|entry| entry.unwrap().path());
        let whole = files.filter(|path| path.extension().is_some_and(|e| e == "json"));
        whole.map(|path| serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()).filter(is).collect()
    }

    /// Requests to a path.
    pub fn web(&self, path: &str) -> Vec<Value> {
        self.kept("web", |request| request["path"] == path)
    }

    pub async fn web_until(&self, path: &str, count: usize) {
        let started = Instant::now();
        while self.web(path).len() < count {
            assert!(
                started.elapsed() < DELIVERY_DEADLINE,
                "not {count} requests to {path} within {DELIVERY_DEADLINE:?}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Mails of a sender.
    fn mail(&self, from: &str) -> Vec<Value> {
        self.kept("mail", |mail| mail["from"] == from)
    }
}

/// One migration's run, with mounts of its own.
pub struct Desk {
    pub office: &'static Office,
    number: u32,
    root: PathBuf,
    pub spec: MigrationRunSpec,
}

impl Desk {
    pub async fn new(occasion: &str, channels: Value) -> Self {
        let office = Office::open().await;
        let number = NEXT.fetch_add(1, Ordering::SeqCst);
        let sql = |key: &str| json!({"configMapKeyRef": {"name": "sql", "key": key}});
        let plan = json!({
            "requestedBy": "ann",
            "database": {
                "name": "shop", "connection": {"secretRef": {"name": "db", "key": "url"}}, "applicationRoles": ["app"],
            },
            "migration": {"up": sql("up.sql"), "down": sql("down.sql"), "verifyDown": "SELECT true"},
            "application": {
                "flag": {"configMapKeyRef": {"name": "shop", "key": "V"}},
                "workloads": [{"kind": "Deployment", "name": "shop"}],
            },
            "backup": {"store": {"url": "s3://backups/x/", "secretRef": {"name": "store"}}},
            "notifications": {
                "channels": channels,
                "contacts": [{"role": "CTO", "name": "Zoë Müller", "phone": "+49 30 000000", "duty": "decides"}],
            },
        });
        let notice = json!({
            "id": format!("0d9f2c11-{number}-notice"), "occasion": occasion, "at": "2026-11-26T22:00:00Z",
            "message": "errors <5%> & more; next: kubectl get cmig", "phase": "RollingBack",
        });
        let spec = MigrationRunSpec {
            migration: "simplify-credits".to_owned(),
            migration_uid: format!("0d9f2c11-{number}"),
            task: Task::Notify,
            attempt: 1,
            plan: serde_json::from_value(plan).unwrap(),
            inputs: RunInputs { notice: Some(serde_json::from_value(notice).unwrap()), ..RunInputs::default() },
            window: None,
        };
        let desk = Self { office, number, root: office.dir.join(format!("mounts-{number}")), spec };
        for (key, value) in [("username", "operator"), ("password", "mail-secret")] {
            desk.mount("mail", key, value);
        }
        for (key, value) in [("username", "operator"), ("password", "wrong-secret")] {
            desk.mount("mail-wrong", key, value);
        }
        for ca in ["ca", "foreign"] {
            desk.mount("tls", ca, &office.authority(ca));
        }
        desk.mount("hook", "authorization", "Bearer hook-secret\n");
        desk
    }

    fn mount(&self, secret: &str, key: &str, value: &str) {
        let path = self.root.join(mounts::secret(secret, key));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, value).unwrap();
    }

    /// Makes a URL of the web server the value of a key.
    pub fn hook(&self, key: &str) -> String {
        let path = format!("/{key}/hook-secret-{}", self.number);
        self.mount("hook", key, &self.office.url(&path));
        path
    }

    fn template(&self, key: &str, text: &str) {
        let folder = self.root.join(mounts::TEMPLATES);
        std::fs::create_dir_all(folder.join("..data")).unwrap();
        std::fs::write(folder.join(key), text).unwrap();
    }

    pub fn context(&self, progress: &Progress) -> TaskContext<'_> {
        TaskContext {
            spec: &self.spec,
            settings: Settings::new(&self.root, &self.spec, "shop"),
            tools: Tools::in_path(),
            progress: progress.clone(),
            stop: CancellationToken::new(),
        }
    }

    /// The result and `channel: Delivered` or `channel: what it answered`.
    pub async fn run(&self) -> (Result<String, Failure>, Vec<String>) {
        let progress = Progress::default();
        let result = notify::run(&self.context(&progress)).await;
        clean(&format!("{result:?} {:?}", progress.fields()));
        (result, deliveries(&progress))
    }

    fn check(&self) -> Vec<Finding> {
        let mut findings = Findings::default();
        notify::check(&self.context(&Progress::default()), &mut findings);
        findings.list().to_vec()
    }

    fn from(&self) -> String {
        format!("from-{}@example.com", self.number)
    }
}

fn clean(text: &str) {
    for secret in SECRETS {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
}

fn deliveries(progress: &Progress) -> Vec<String> {
    let Some(noted) = progress.fields().get("deliveries").cloned() else { return vec![] };
    let deliveries: Vec<Delivery> = serde_json::from_value(noted).unwrap();
    let words = |delivery: &Delivery| match delivery.state {
        DeliveryState::Delivered => format!("{}: Delivered", delivery.channel),
        DeliveryState::Failed => format!("{}: {}", delivery.channel, delivery.message),
    };
    deliveries.iter().map(words).collect()
}

fn mail(name: &str, audience: &str, port: u16, changes: Value) -> Value {
    let mut email = json!({
        "host": "127.0.0.1", "port": port,
        "to": ["team@example.com", "night@example.com"],
        "secretRef": {"name": "mail"}, "caSecretRef": {"name": "tls", "key": "ca"},
    });
    for (field, value) in changes.as_object().unwrap() {
        email[field] = value.clone();
    }
    json!({"name": name, "audiences": [audience], "email": email})
}

pub fn slack(name: &str, audience: &str, key: &str) -> Value {
    json!({"name": name, "audiences": [audience], "slack": {
        "urlSecretRef": {"name": "hook", "key": key}, "caSecretRef": {"name": "tls", "key": "ca"},
    }})
}

pub fn event(name: &str, audience: &str, key: &str) -> Value {
    let mut webhook = slack(name, audience, key)["slack"].clone();
    webhook["authorizationSecretRef"] = json!({"name": "hook", "key": "authorization"});
    json!({"name": name, "audiences": [audience], "webhook": webhook})
}

/// Header fields and body of a mail as it came in.
fn fields(mail: &Value) -> (Vec<String>, String) {
    let text = mail["text"].as_str().unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let quoted = head.contains("quoted-printable");
    // Soft line breaks, and the escapes of this test's own letters.
    let body = if quoted {
        body.replace("=\r\n", "").replace("=C3=AB", "ë").replace("=C3=BC", "ü").replace("=3D", "=")
    } else {
        body.to_owned()
    };
    (head.replace("\r\n ", " ").lines().map(str::to_owned).collect(), body)
}

#[tokio::test]
async fn an_alert_arrives_by_every_channel_and_is_the_same_when_repeated() {
    let office = Office::open().await;
    // One number, for the sender's address too.
    let mut desk = Desk::new("TriggerFired", json!([])).await;
    let number = desk.number;
    let from = json!({"from": desk.from()});
    let implicit = json!({"from": desk.from(), "tls": "Implicit"});
    desk.spec.plan.notifications.channels = serde_json::from_value(json!([
        mail("mail", "Team", office.start_tls, from),
        mail("mail-implicit", "Support", office.implicit, implicit),
        slack("chat", "Team", "ok"),
        event("events", "Support", "created"),
        event("public", "Users", "error"),
    ]))
    .unwrap();
    let (ok, created) = (desk.hook("ok"), desk.hook("created"));
    desk.hook("error");
    let (result, sent) = desk.run().await;
    assert!(result.as_ref().unwrap().starts_with("4 of 4 channels took it"), "{result:?}");
    assert_eq!(sent, ["mail: Delivered", "mail-implicit: Delivered", "chat: Delivered", "events: Delivered"]);

    let mails = office.mail(&desk.from());
    assert_eq!(mails.len(), 2);
    for mail in &mails {
        assert_eq!((mail["tls"].as_bool(), mail["user"].as_str()), (Some(true), Some("operator")), "{mail}");
        assert_eq!(mail["to"], json!(["team@example.com", "night@example.com"]));
    }
    let team = |mail: &&Value| fields(mail).0.iter().any(|f| f.starts_with("Message-ID:") && f.contains(".Team@"));
    let (head, body) = fields(mails.iter().find(team).unwrap());
    for field in [
        format!("Message-ID: <0d9f2c11-{number}-notice.Team@example.com>"),
        "Subject: [shop/simplify-credits] ALERT: a trigger fired, rolling back to the old version".to_owned(),
        "To: team@example.com, night@example.com".to_owned(),
        "Date: Thu, 26 Nov 2026 22:00:00 +0000".to_owned(),
        "Auto-Submitted: auto-generated".to_owned(),
    ] {
        assert!(head.contains(&field), "{field} is not in {head:?}");
    }
    for words in ["errors <5%> & more; next: kubectl get cmig", "CTO: Zoë Müller, +49 30 000000 (decides)"] {
        assert!(body.contains(words), "{words} is not in {body}");
    }

    let chat = &office.web(&ok)[0];
    let text = chat["body"]["text"].as_str().unwrap();
    assert_eq!(chat["body"].as_object().unwrap().len(), 1);
    assert!(text.contains("errors &lt;5%&gt; &amp; more") && text.contains("+49 30 000000"), "{text}");
    let events = office.web(&created);
    let data = &events[0]["body"]["data"];
    assert_eq!(events[0]["headers"]["content-type"], "application/cloudevents+json; charset=utf-8");
    assert_eq!(events[0]["headers"]["authorization"], "Bearer hook-secret");
    let keys = [chat, &events[0]].map(|request| request["headers"]["idempotency-key"].clone());
    assert_eq!(keys, ["Team.chat", "Support.events"].map(|of| json!(format!("0d9f2c11-{number}-notice.{of}"))));
    let mut envelope = events[0]["body"].clone();
    envelope.as_object_mut().unwrap().remove("data");
    assert_eq!(
        envelope,
        json!({
            "specversion": "1.0", "id": format!("0d9f2c11-{number}-notice"), "time": "2026-11-26T22:00:00Z",
            "type": "io.creditmigration.notice.TriggerFired", "subject": "simplify-credits",
            "datacontenttype": "application/json",
            "source": concat!("/apis/creditmigration.io/v1alpha1/namespaces/shop/creditmigrations/",
                "simplify-credits/audiences/Support"),
        })
    );
    assert_eq!(
        (&data["occasion"], &data["audience"], &data["phase"], &data["contacts"][0]["phone"]),
        (&json!("TriggerFired"), &json!("Support"), &json!("RollingBack"), &json!("+49 30 000000"))
    );

    // Again, because the report of the first run was lost; the chat is known to have it.
    desk.spec.inputs.notice.as_mut().unwrap().delivered = vec!["chat".to_owned()];
    let (result, sent) = desk.run().await;
    assert!(result.unwrap().starts_with("3 of 3 channels took it; 1 had it before"));
    assert_eq!(sent.len(), 3);
    assert_eq!(office.web(&ok).len(), 1);
    let events = office.web(&created);
    assert_eq!((events.len(), &events[0]["body"]), (2, &events[1]["body"]));
    assert_eq!(events[0]["headers"]["idempotency-key"], events[1]["headers"]["idempotency-key"]);
    let again = office.mail(&desk.from());
    let texts: std::collections::BTreeSet<&str> = again.iter().map(|mail| mail["text"].as_str().unwrap()).collect();
    assert_eq!((again.len(), texts.len()), (4, 2), "the same to the letter");
}

#[tokio::test]
async fn a_failed_channel_is_reported_and_keeps_nothing_from_the_others() {
    let office = Office::open().await;
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    // Takes connections, says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    silent.set_nonblocking(true).unwrap();
    let mut desk = Desk::new("RolledBack", json!([])).await;
    let with = |mut changes: Value| {
        changes["from"] = json!(desk.from());
        changes
    };
    let foreign = json!({"name": "tls", "key": "foreign"});
    let mut strange = slack("web-strange", "Team", "ok");
    strange["slack"]["caSecretRef"] = foreign.clone();
    let channels = json!([
        event("hang", "Team", "hang"),
        mail("silent", "Team", silent.local_addr().unwrap().port(), with(json!({}))),
        mail("silent-tls", "Team", silent.local_addr().unwrap().port(), with(json!({"tls": "Implicit"}))),
        mail("refused", "Team", closed, with(json!({}))),
        mail("login", "Team", office.start_tls, with(json!({"secretRef": {"name": "mail-wrong"}}))),
        mail("no-login", "Team", office.start_tls, with(json!({"secretRef": null}))),
        mail("strange", "Team", office.start_tls, with(json!({"caSecretRef": foreign}))),
        mail("strange-tls", "Team", office.implicit, with(json!({"caSecretRef": foreign, "tls": "Implicit"}))),
        mail("public-ca", "Team", office.start_tls, with(json!({"caSecretRef": null}))),
        mail("other-host", "Team", office.start_tls, with(json!({"host": "localhost"}))),
        mail("plain", "Team", office.plain, with(json!({"secretRef": null}))),
        mail("one-address", "Team", office.start_tls, with(json!({"to": ["a@example.com", "refused@example.com"]}))),
        event("error", "Team", "error"),
        event("moved", "Team", "moved"),
        slack("archived", "Team", "archived"),
        slack("error-chat", "Team", "error"),
        strange,
        slack("web-other-host", "Team", "elsewhere"),
        slack("missing", "Team", "missing"),
        slack("closed", "Team", "closed"),
        slack("good", "StatusPage", "created"),
        mail("good-mail", "Team", office.start_tls, with(json!({}))),
    ]);
    desk.spec.plan.notifications.channels = serde_json::from_value(channels).unwrap();
    for key in ["error", "moved", "archived", "ok"] {
        desk.hook(key);
    }
    let hang = desk.hook("hang");
    let good = desk.hook("created");
    desk.mount("hook", "elsewhere", &format!("https://localhost:{}/ok/hook-secret", office.web));
    desk.mount("hook", "closed", &format!("https://127.0.0.1:{closed}/hook-secret"));
    let progress = Progress::default();
    let context = desk.context(&progress);
    // The good ones wait for no other, and those without an answer wait at the same time.
    let delivered_meanwhile = async {
        let (started, mut taken) = (Instant::now(), vec![]);
        loop {
            taken.extend(silent.accept().ok());
            let known = deliveries(&progress);
            let answerless = known.iter().filter(|d| d.contains("no answer within")).count();
            assert!(answerless == 0 && started.elapsed() < DELIVERY_DEADLINE, "{known:?}, {taken:?}");
            let good = ["good: Delivered", "good-mail: Delivered"].iter().all(|d| known.iter().any(|e| e == d));
            if good && taken.len() == 2 && office.web(&hang).len() == 1 {
                return taken;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let (result, _taken) = tokio::join!(notify::run(&context), delivered_meanwhile);
    let failure = result.unwrap_err();
    clean(&format!("{failure:?} {:?}", progress.fields()));
    assert_eq!(failure.reason, Reason::NoticeUndelivered);
    assert!(failure.message.starts_with("19 of 22 channels did not take it: hang: no answer within 10 s; silent: "));
    assert_eq!(
        deliveries(&progress),
        [
            "hang: no answer within 10 s",
            "silent: no answer within 10 s",
            "silent-tls: no answer within 10 s",
            "refused: no connection: Connection refused (os error 111)",
            "login: the login was refused (535)",
            "no-login: the sender was refused (530)",
            "strange: the certificate is of no trusted authority",
            "strange-tls: the certificate is of no trusted authority",
            "public-ca: the certificate is of no trusted authority",
            "other-host: the certificate is for another host",
            "plain: the server offers no STARTTLS",
            "one-address: Delivered",
            "error: answered 500",
            "moved: answered 302; redirects are not followed",
            "archived: answered 410 (channel_is_archived)",
            "error-chat: answered 500",
            "web-strange: the certificate is of no trusted authority",
            "web-other-host: the certificate is for another host",
            "missing: key missing of Secret shop/hook is missing; next: kubectl -n shop create secret generic hook \
                --from-literal=missing='https://hooks.slack.com/services/...'; if it exists, kubectl -n shop patch \
                secret hook -p '{\"stringData\": {\"missing\": \"https://hooks.slack.com/services/...\"}}'",
            "closed: no answer: Connection refused (os error 111)",
            "good: Delivered",
            "good-mail: Delivered",
        ]
    );
    let mails = office.mail(&desk.from());
    assert_eq!(mails.len(), 2, "of the good one and for the address that exists: {mails:?}");
    let public = office.web(&good)[0]["body"]["text"].as_str().unwrap().to_owned();
    assert!(public.contains("as before") && !public.contains("kubectl") && !public.contains("+49"), "{public}");
    assert_eq!(office.web("/ok/moved").len(), 0);
}

#[tokio::test]
async fn own_templates_are_used_and_a_bad_one_loses_no_alert() {
    let desk = Desk::new(
        "ManualInterventionRequired",
        json!([event("events", "Team", "ok"), slack("chat", "Support", "created")]),
    )
    .await;
    let (ok, created) = (desk.hook("ok"), desk.hook("created"));
    desk.template("ManualInterventionRequired.Team.subject", "{{ migration }} braucht jemanden");
    desk.template("ManualInterventionRequired.body", "{{ startsAt }}");
    let (result, sent) = desk.run().await;
    let message = result.unwrap();
    assert!(
        message.contains("template ManualInterventionRequired.body: ") && message.contains("the default was used"),
        "{message}"
    );
    assert_eq!(sent, ["events: Delivered", "chat: Delivered"]);
    let data = &desk.office.web(&ok)[0]["body"]["data"];
    assert_eq!(data["subject"], "simplify-credits braucht jemanden");
    assert!(data["body"].as_str().unwrap().contains("errors <5%>"), "{data}");
    assert!(desk.office.web(&created)[0]["body"]["text"].as_str().unwrap().contains("+49 30 000000"));
}

#[tokio::test]
async fn preflight_finds_what_keeps_a_channel_from_delivering_and_sends_nothing() {
    let office = Office::open().await;
    let from = json!({"from": "preflight@example.com"});
    let channels = json!([
        mail("mail", "Team", office.start_tls, from),
        slack("chat", "Users", "ok"),
        event("events", "Team", "created"),
    ]);
    let mut desk = Desk::new("Finished", channels).await;
    let (ok, created) = (desk.hook("ok"), desk.hook("created"));
    let wrong = |desk: &Desk| -> Vec<(String, Reason, String)> {
        let found = desk.check();
        clean(&format!("{found:?}").replace(&format!("127.0.0.1:{}", office.start_tls), "server"));
        found.into_iter().filter_map(|f| Some((f.name, f.reason?, f.message))).collect()
    };
    assert_eq!(wrong(&desk), []);
    assert_eq!(desk.check().len(), 3);

    desk.mount("mail", "password", " ");
    desk.mount("hook", "ok", "hooks.example.com/hook-secret");
    desk.mount("tls", "ca", "no PEM");
    let found = wrong(&desk);
    let names: Vec<_> = found.iter().map(|(name, reason, _)| (name.as_str(), *reason)).collect();
    assert_eq!(
        names,
        [
            ("notification channel mail", Reason::SecretKeyMissing),
            ("notification channel chat", Reason::CertificateNotTrusted),
            ("notification channel events", Reason::CertificateNotTrusted),
        ]
    );
    assert!(found[0].2.contains("kubectl -n shop patch secret mail -p '{\"stringData\": {\"password\": "), "{found:?}");
    desk.mount("mail", "password", "mail-secret");
    desk.mount("tls", "ca", &office.authority("ca"));
    desk.mount("hook", "authorization", "Bearer hook-secret\nX: y");
    let found = wrong(&desk);
    let words: Vec<_> =
        found.iter().map(|(name, reason, message)| (name.as_str(), *reason, message.as_str())).collect();
    let next = "next: kubectl -n shop edit secret hook";
    assert_eq!(
        words,
        [
            (
                "notification channel chat",
                Reason::ConnectionInvalid,
                format!(
                    "key ok of Secret shop/hook is no URL; \
                {next}"
                )
                .as_str()
            ),
            (
                "notification channel events",
                Reason::ConnectionInvalid,
                format!(
                    "key authorization of Secret shop/hook \
                is no value of a header: it has a line break or a control character; {next}"
                )
                .as_str()
            ),
        ]
    );

    desk.hook("ok");
    desk.mount("hook", "authorization", "Bearer hook-secret");
    desk.spec.plan.notifications.templates_config_map_ref =
        Some(serde_json::from_value(json!({"name": "texts"})).unwrap());
    assert!(wrong(&desk)[0].2.starts_with("ConfigMap shop/texts is missing or empty; next: kubectl"));
    desk.template("Finished.Users.body", "{{ startsAt|time('Asia/Shanghai') if startsAt else 'now' }}");
    assert_eq!(wrong(&desk), []);
    desk.template("Finished.body", "{{ mesage }}");
    desk.template("Finished.Users.subject", "{{ migration }}");
    desk.template("Finshed.body", "x");
    let found = wrong(&desk);
    assert_eq!((found.len(), found[0].0.as_str(), found[0].1), (1, "notification templates", Reason::TemplateInvalid));
    for key in [
        "Finished.body: for Team: undefined",
        "Finished.Users.subject: for Users: undefined",
        "Finshed.body names no template",
    ] {
        assert!(found[0].2.contains(key), "{key} is not in {found:?}");
    }
    assert_eq!((office.web(&ok).len(), office.web(&created).len()), (0, 0));
    assert_eq!(office.mail("preflight@example.com").len(), 0);
}
