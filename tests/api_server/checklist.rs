//! Fields of the checklist's other lines: an invalid value is rejected with a message that says what to write instead.

use serde_json::{Value, json};

use super::{
    cluster::{set, with_cluster},
    schema::refused,
};

fn hours() -> Value {
    json!({"days": ["Tuesday"], "from": "02:00", "to": "04:00", "timeZone": "Europe/Berlin"})
}

fn chat() -> Value {
    json!({"name": "chat", "audiences": ["Team"], "slack": {"urlSecretRef": {"name": "chat", "key": "url"}}})
}

fn mail() -> Value {
    json!({"name": "mail", "audiences": ["Users"], "email": {"host": "mail", "from": "shop@example.com",
        "to": ["users@example.com"]}})
}

fn contact() -> Value {
    json!({"role": "DBA", "name": "Ann", "phone": "+49 1", "duty": "database"})
}

fn step() -> Value {
    json!({"name": "login", "url": "http://shop/login", "capture": [{"name": "token", "jsonPath": "$.token"}]})
}

#[tokio::test]
async fn code_schedule_and_notices() {
    with_cluster("checklist", async |w| {
        let mut good = w.migration("m");
        let code = json!({"repository": "ssh://git@git/shop.git", "commit": "0".repeat(40),
            "secretRef": {"name": "git"}});
        set(&mut good, "spec/code", code);
        set(
            &mut good,
            "spec/schedule",
            json!({"startAt": "2030-01-01T02:00:00Z", "allowedHours": [hours()],
            "presence": {}}),
        );
        set(&mut good, "spec/notifications", json!({"channels": [chat(), mail()], "contacts": [contact()]}));
        let presence = "spec.schedule.presence.required: Invalid value: 1: spec.schedule.presence.required in body \
            should be greater than or equal to 2";
        refused(&w.admin, "creditmigrations", &good, vec![
            ("spec/code/repository", "git@git:shop.git".into(),
                "repository must start with ssh:// or https://, for example ssh://git@git.example.com/shop.git"),
            ("spec/code/repository", "https://me:secret@git/shop.git".into(),
                "repository must not contain a password: put username and password into the Secret of code.secretRef"),
            ("spec/code/commit", "main".into(), "spec.code.commit: Invalid value"),
            ("spec/code/tag", "-f".into(), "spec.code.tag: Invalid value"),
            ("spec/code/branch", "a b".into(), "spec.code.branch: Invalid value"),
            ("spec/code/secretRef", Value::Null, "spec.code.secretRef: Required value"),
            ("spec/application/flag/rollbackKey", "".into(), "spec.application.flag.rollbackKey: Invalid value"),
            ("spec/application/flag/onDrift", "Ignore".into(), "Unsupported value: \"Ignore\""),
            ("spec/backup/keyUsers", json!({"balanceOver": "much"}), "spec.backup.keyUsers.balanceOver: Invalid value"),
            ("spec/backup/keyUsers", json!({"purchasedOver": "0; DROP TABLE users"}),
                "spec.backup.keyUsers.purchasedOver: Invalid value"),
            ("spec/schedule/startAt", "tomorrow".into(), "spec.schedule.startAt: Invalid value"),
            ("spec/schedule/allowedHours/0/days", json!(["Tue"]), "Unsupported value: \"Tue\""),
            ("spec/schedule/allowedHours/0/from", "25:00".into(), "spec.schedule.allowedHours[0].from: Invalid value"),
            ("spec/schedule/allowedHours/0/from", "24:00".into(), "spec.schedule.allowedHours[0].from: Invalid value"),
            ("spec/schedule/allowedHours/0/to", "4".into(), "spec.schedule.allowedHours[0].to: Invalid value"),
            ("spec/schedule/allowedHours/0/to", "02:00".into(),
                "from and to must differ; for a whole day write from: \"00:00\", to: \"24:00\""),
            ("spec/schedule/leadTime", "-1s".into(), "leadTime must be between 0s and 168h, for example 1h"),
            ("spec/schedule/leadTime", "24h".into(), "leadTime must be less than backupMaxAge"),
            ("spec/schedule/backupMaxAge", "1s".into(), "backupMaxAge must be at least 1m, for example 24h"),
            ("spec/schedule/presence/required", json!(1), presence),
            ("spec/schedule/presence/within", "25h".into(), "within must be between 1m and 24h, for example 1h"),
            ("spec/notifications/channels/0/audiences", json!(["Everybody"]), "Unsupported value: \"Everybody\""),
            ("spec/notifications/channels/0/audiences", json!([]),
                "spec.notifications.channels[0].audiences: Invalid value"),
            ("spec/notifications/channels/0/audiences", json!(["Users", "Support"]),
                "audiences mix Team or Support, who get notices with phone numbers, with Users, Social or StatusPage: \
                make two channels"),
            ("spec/notifications/channels/1/audiences", json!(["Team", "StatusPage"]), "make two channels"),
            ("spec/notifications/channels/0/slack", Value::Null, "exactly one of slack, webhook and email must be set"),
            ("spec/notifications/channels/0/webhook", json!({"urlSecretRef": {"name": "a", "key": "b"}}),
                "exactly one of slack, webhook and email must be set"),
            ("spec/notifications/channels/1/name", "chat".into(), "names of channels must be unique"),
            ("spec/notifications/channels/1/email/from", "no-address".into(),
                "spec.notifications.channels[1].email.from: Invalid value"),
            ("spec/notifications/channels/1/email/to", json!([]),
                "spec.notifications.channels[1].email.to: Invalid value"),
            ("spec/notifications/channels/1/email/to", json!(["a b@c"]),
                "spec.notifications.channels[1].email.to[0]: Invalid value"),
            ("spec/notifications/channels/1/email/port", json!(0), "should be greater than or equal to 1"),
            ("spec/notifications/channels/1/email/tls", "None".into(),
                "Unsupported value: \"None\": supported values: \"StartTls\", \"Implicit\""),
            ("spec/notifications/contacts/0/role", "Boss".into(), "Unsupported value: \"Boss\""),
            ("spec/notifications/contacts/0/phone", Value::Null,
                "spec.notifications.contacts[0].phone: Required value"),
        ])
        .await;
    })
    .await;
}

#[tokio::test]
async fn checks_triggers_and_follow_ups() {
    with_cluster("checks", async |w| {
        let mut good = w.migration("m");
        let query = json!({"url": "http://prometheus", "query": "a", "samplesQuery": "b"});
        set(
            &mut good,
            "spec/validation",
            json!({"duration": "1m", "checks": [
                {"name": "functions", "sequence": {"secretRef": {"name": "probe"}, "steps": [step()]}},
                {"name": "p95", "http": {"url": "http://shop", "percentile": 95}, "max": "100", "minimumSamples": 20},
                {"name": "balances", "balances": {}, "max": "0"},
                {"name": "queries", "statements": {}, "max": "50"},
                {"name": "own", "job": {"image": "shop:1"}, "interval": "30s"},
                {"name": "errors", "logs": {"workload": {"kind": "Deployment", "name": "shop"}}, "max": "0"},
            ]}),
        );
        set(
            &mut good,
            "spec/rollback",
            json!({"triggers": {
                "balanceErrors": {}, "databaseConnection": {}, "coreFunction": {"sequence": {"steps": [step()]}},
                "paymentProcessing": {"prometheus": query, "min": "1", "minimumSamples": 20},
                    "errorRate": {"prometheus": query},
            }}),
        );
        set(
            &mut good,
            "spec/followUps",
            json!({"day": {"checks": [{"name": "a", "sql": {"query": "SELECT 0"}, "max": "0"}]}, "week": {}}),
        );
        let samples = "a trigger with prometheus needs samplesQuery, the query that counts the attempts, and \
            minimumSamples";
        let limit = "a limit is missing: set max, min or equals";
        refused(
            &w.admin,
            "creditmigrations",
            &good,
            vec![
                (
                    "spec/validation/checks/0/sequence/steps",
                    json!([]),
                    "spec.validation.checks[0].sequence.steps: Invalid value",
                ),
                (
                    "spec/validation/checks/0/sequence/steps/0/url",
                    "/login".into(),
                    "url must start with http:// or https://",
                ),
                (
                    "spec/validation/checks/0/sequence/steps/0/capture/0/name",
                    "a-b".into(),
                    "capture[0].name: Invalid value",
                ),
                ("spec/validation/checks/1/http/percentile", json!(0), "should be greater than or equal to 1"),
                (
                    "spec/validation/checks/1/http/jsonPath",
                    "$.a".into(),
                    "percentile is about response times, jsonPath about a value of the response: set one of them",
                ),
                (
                    "spec/validation/checks/1/http/percentile",
                    Value::Null,
                    "minimumSamples needs prometheus.samplesQuery, http.percentile, statements or logs",
                ),
                (
                    "spec/validation/checks/2/balances",
                    json!({"compare": "Some"}),
                    "Unsupported value: \"Some\": supported values: \"Users\", \"Total\"",
                ),
                (
                    "spec/validation/checks/1",
                    json!({"name": "a", "http": {"url": "http://shop", "percentile": 95}}),
                    limit,
                ),
                (
                    "spec/validation/checks/1",
                    json!({"name": "a", "http": {"url": "http://shop", "jsonPath": "$.a"}}),
                    limit,
                ),
                ("spec/validation/checks/1/min", "100.5".into(), "min must be at most max: no value would be good"),
                (
                    "spec/validation/checks/1/minimumSamples",
                    json!(101),
                    "must be at most 100: the percentile is that of the last 100 times",
                ),
                ("spec/validation/checks/1/equals", "ok".into(), "equals must be a decimal number"),
                ("spec/validation/checks/1/max", "1".repeat(41).into(), "spec.validation.checks[1].max: Too long"),
                ("spec/validation/checks/2/max", Value::Null, limit),
                ("spec/validation/checks/3/max", Value::Null, limit),
                (
                    "spec/validation/checks/4/interval",
                    "9s".into(),
                    "interval of a job check must be at least 10s: each measurement is a pod",
                ),
                ("spec/validation/checks/4/max", "1".into(), "workload and job checks take no limit"),
                ("spec/validation/checks/4/job/image", "".into(), "spec.validation.checks[4].job.image: Invalid value"),
                (
                    "spec/validation/checks/4/job",
                    json!({"image": "a", "timeout": "2h"}),
                    "timeout must be between 1s and 1h, for example 1m",
                ),
                (
                    "spec/validation/checks/5/logs/workload",
                    Value::Null,
                    "spec.validation.checks[5].logs.workload: Required value",
                ),
                (
                    "spec/validation/checks/5/name",
                    "error-rate".into(),
                    "are the names of spec.rollback.triggers: configure them there, or choose another name",
                ),
                (
                    "spec/validation/checks/0/sequence/steps/0/timeout",
                    "0s".into(),
                    "timeout must be more than 0s and at most 1m, for example 5s",
                ),
                (
                    "spec/validation/checks/1/http/timeout",
                    "999999999999999999999h".into(),
                    "spec.validation.checks[1].http.timeout",
                ),
                ("spec/validation/checks/1/http/expectedStatus", json!(9999), "should be less than or equal to 599"),
                (
                    "spec/rollback/triggers/failures",
                    json!({"count": 5, "of": 3}),
                    "failures.count must be at most failures.of",
                ),
                ("spec/rollback/triggers/interval", "0s".into(), "interval must be at least 1s, for example 3s"),
                (
                    "spec/rollback/triggers/balanceErrors/mode",
                    "Maybe".into(),
                    "Unsupported value: \"Maybe\": supported values: \"Enabled\", \"Disabled\"",
                ),
                (
                    "spec/rollback/triggers/databaseConnection/maxUsed",
                    "95".into(),
                    "spec.rollback.triggers.databaseConnection.maxUsed: Invalid value",
                ),
                (
                    "spec/rollback/triggers/coreFunction/sequence",
                    Value::Null,
                    "exactly one of sql, http, sequence and prometheus must be set",
                ),
                ("spec/rollback/triggers/paymentProcessing/min", Value::Null, limit),
                ("spec/rollback/triggers/paymentProcessing/minimumSamples", Value::Null, samples),
                ("spec/rollback/triggers/paymentProcessing/prometheus/samplesQuery", Value::Null, samples),
                (
                    "spec/rollback/triggers/paymentProcessing/minimumSamples",
                    json!(0),
                    "should be greater than or equal to 1",
                ),
                ("spec/rollback/triggers/paymentProcessing/max", "0.5".into(), "min must be at most max"),
                ("spec/rollback/triggers/paymentProcessing/equals", "ok".into(), "equals must be a decimal number"),
                (
                    "spec/rollback/triggers/paymentProcessing",
                    json!({"sql": {"query": "SELECT 1"}, "min": "1", "minimumSamples": 20}),
                    "minimumSamples needs prometheus or http.percentile: other sources count no samples",
                ),
                (
                    "spec/rollback/triggers/coreFunction",
                    json!({"http": {"url": "http://shop", "jsonPath": "$.status"}}),
                    limit,
                ),
                (
                    "spec/rollback/triggers/coreFunction",
                    json!({"http": {"url": "http://shop", "percentile": 95}, "max": "500", "minimumSamples": 101}),
                    "must be at most 100",
                ),
                ("spec/rollback/triggers/errorRate/minimumSamples", json!(0), "should be greater than or equal to 1"),
                (
                    "spec/rollback/triggers/errorRate/max",
                    "5%".into(),
                    "spec.rollback.triggers.errorRate.max: Invalid value",
                ),
                (
                    "spec/rollback/triggers/errorRate/prometheus/samplesQuery",
                    Value::Null,
                    "errorRate.prometheus needs samplesQuery, the query that counts the requests",
                ),
                ("spec/followUps/day/after", "-1s".into(), "after must not be negative, for example 24h"),
                ("spec/followUps/day/duration", "7h".into(), "duration must be between 1s and 6h, for example 5m"),
                (
                    "spec/followUps/day/checks/0",
                    json!({"name": "a", "job": {"image": "a"}}),
                    "workload and job checks belong in validation and monitoring: a follow-up is measured by one pod",
                ),
                (
                    "spec/followUps/reminderInterval",
                    "1s".into(),
                    "reminderInterval must be at least 1m, for example 24h",
                ),
            ],
        )
        .await;
    })
    .await;
}
