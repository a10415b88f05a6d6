//! Good and bad files.

use std::path::Path;

use rstest::rstest;

use super::*;

const GOOD: &str = r#"
apiVersion: creditmigration.io/v1alpha1
kind: CreditMigration
metadata: {name: credit-v2, namespace: shop}
spec:
  requestedBy: alice
  database:
    name: shop
    connection: {secretRef: {name: shop-db, key: url}}
    applicationRoles: [shop]
  migration:
    up: {configMapKeyRef: {name: sql, key: up.sql}}
    down: {configMapKeyRef: {name: sql, key: down.sql}}
  application:
    flag: {configMapKeyRef: {name: shop, key: VERSION}}
    workloads: [{kind: Deployment, name: shop}]
  backup: {store: {url: "s3://backups/", secretRef: {name: bucket}}}
  schedule:
    startAt: 2031-01-01T00:00:00Z
    allowedHours: [{days: [Sunday], from: "02:00", to: "04:00", timeZone: Europe/Berlin}]
  notifications: {templatesConfigMapRef: {name: templates}}
  validation:
    duration: 30m
    checks:
    - name: buy
      sequence:
        secretRef: {name: login}
        steps:
        - name: in
          url: "http://shop/in"
          headers: {Authorization: "{{ secret.token }}"}
          capture: [{name: id, jsonPath: $.id}]
        - {name: buy, url: "http://shop/{{ id }}", expect: [{jsonPath: $.ok, equals: "true"}]}
    - {name: errors, logs: {workload: {kind: Deployment, name: shop}}, max: "0"}
    - {name: negative, sql: {query: SELECT count(*) FROM user_credits WHERE balance < 0}, max: "0"}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: sql, namespace: shop}
data: {up.sql: "CREATE TABLE a ();", down.sql: "DROP TABLE a;"}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: templates, namespace: shop}
data: {MaintenanceStarts.Users.body: "at {{ startsAt }}"}
"#;

fn now() -> Time {
    "2030-01-01T00:00:00Z".parse().unwrap()
}

fn found(text: &str) -> Vec<LintProblem> {
    lint(&[("a.yaml".into(), text.into())], now()).unwrap().problems
}

#[test]
fn a_good_file_is_clean() {
    assert_eq!(found(GOOD), vec![]);
}

/// Each file of ours that people copy.
#[rstest]
#[case("examples/complete/creditmigration.yaml")]
#[case("examples/minimal/creditmigration.yaml")]
#[case("examples/minimal/decision.yaml")]
fn our_examples_are_clean(#[case] file: &str) {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
    let report = lint(&[(file.into(), text)], now()).unwrap();
    assert_eq!(report.problems, vec![]);
    assert_eq!(report.objects.len(), 1);
}

/// The example with every section in use, and the demo's migration, cover every line of the checklist.
#[rstest]
#[case("examples/complete/creditmigration.yaml")]
#[case("examples/demo/migration.yaml")]
fn our_whole_examples_cover_the_checklist(#[case] file: &str) {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
    let text =
        text.replace("${NAMESPACE}", "shop").replace("${DATABASE}", "shop").replace("${COMMIT}", &"0".repeat(40));
    assert_eq!(found(&text), vec![]);
    let document = Document::parse(file, &text).unwrap().remove(0);
    let spec: CreditMigrationSpec = serde_json::from_value(document.value["spec"].clone()).unwrap();
    assert_eq!(spec.not_covered(), vec![]);
}

/// One change of the good file each: what is replaced, by what, path and part of the message.
#[rstest]
#[case::unknown_field("duration: 30m", "durations: 30m", "spec.validation.durations", "did you mean duration?")]
#[case::missing("requestedBy: alice", "approval: {required: 2}", "spec.requestedBy", "is missing")]
#[case::range(
    "requestedBy: alice",
    "requestedBy: alice\n  approval: {required: 1}",
    "spec.approval.required",
    "is 1, expected 2 to 10"
)]
#[case::number_for_text("max: \"0\"", "max: 0", "spec.validation.checks[1].max", "write it in quotes: \"0\"")]
#[case::enumeration(
    "kind: Deployment, name: shop}]",
    "kind: StatefulSet, name: shop}]",
    "spec.application.workloads[0].kind",
    "write one of Deployment"
)]
#[case::rule("VERSION}", "VERSION}, from: v2", "spec.application.flag", "flag.from and flag.to must differ")]
#[case::rule_of_a_range(
    "requestedBy: alice",
    "requestedBy: alice\n  window: {maxDuration: 2h}",
    "spec.window.maxDuration",
    "between 15s and 1h"
)]
#[case::two_sources(
    "logs: {workload",
    "http: {url: \"http://x\"}, logs: {workload",
    "spec.validation.checks[1]",
    "exactly one of sql, http"
)]
#[case::any_percentile(
    "logs: {workload: {kind: Deployment, name: shop}}, max: \"0\"",
    "http: {url: \"http://x\", percentile: 95}",
    "spec.validation.checks[1]",
    "a limit is missing"
)]
#[case::any_value_of_the_answer(
    "logs: {workload: {kind: Deployment, name: shop}}, max: \"0\"",
    "http: {url: \"http://x\", jsonPath: $.status}",
    "spec.validation.checks[1]",
    "a limit is missing"
)]
#[case::no_good_value(
    "balance < 0}, max: \"0\"",
    "balance < 0}, min: \"10\", max: \"9.5\"",
    "spec.validation.checks[2]",
    "min must be at most max"
)]
#[case::a_text_of_a_source_of_numbers(
    "name: shop}}, max: \"0\"",
    "name: shop}}, equals: none",
    "spec.validation.checks[1]",
    "equals must be a decimal number"
)]
#[case::trigger_without_samples(
    "requestedBy: alice",
    "requestedBy: alice\n  rollback: {triggers: {paymentProcessing: {prometheus: {url: \"http://p\", query: a, \
        samplesQuery: b}, min: \"1\"}}}",
    "spec.rollback.triggers.paymentProcessing",
    "needs samplesQuery, the query that counts the attempts, and minimumSamples"
)]
#[case::trigger_of_a_text(
    "requestedBy: alice",
    "requestedBy: alice\n  rollback: {triggers: {coreFunction: {http: {url: \"http://p\", jsonPath: $.status}}}}",
    "spec.rollback.triggers.coreFunction",
    "a limit is missing"
)]
#[case::customers_and_team(
    "notifications: {",
    "notifications: {channels: [{name: all, audiences: [Users, Support], slack: {urlSecretRef: {name: a, key: b}}}], ",
    "spec.notifications.channels[0]",
    "make two channels"
)]
#[case::long_name(
    "name: credit-v2",
    "name: a-very-long-name-that-has-more-than-forty-characters",
    "",
    "at most 40 characters"
)]
#[case::duration("duration: 30m", "duration: 30 minutes", "spec.validation.duration", "write a duration such as 30s")]
#[case::time("2031-01-01T00:00:00Z", "tomorrow", "spec.schedule.startAt", "write a time such as")]
#[case::past("2031", "2029", "spec.schedule.startAt", "which has passed")]
#[case::time_zone("Europe/Berlin", "Europe/Bonn", "spec.schedule.allowedHours[0].timeZone", "write an IANA name")]
#[case::json_path(
    "jsonPath: $.ok",
    "jsonPath: ok",
    "spec.validation.checks[0].sequence.steps[1].expect[0].jsonPath",
    "write a JSONPath"
)]
#[case::template(
    "shop/{{ id }}",
    "shop/{{ id",
    "spec.validation.checks[0].sequence.steps[1]",
    "a template cannot be parsed"
)]
#[case::not_captured(
    "shop/{{ id }}",
    "shop/{{ user }}",
    "spec.validation.checks[0].sequence.steps[1]",
    "which no earlier step captures (id is)"
)]
#[case::no_secret(
    "secretRef: {name: login}",
    "",
    "spec.validation.checks[0].sequence.steps[0]",
    "set secretRef of the sequence"
)]
#[case::pattern(
    "name: shop}}, max",
    "name: shop}, pattern: \"(\"}, max",
    "spec.validation.checks[1].logs.pattern",
    "no regular expression"
)]
#[case::two_statements(
    "balance < 0}",
    "balance < 0; SELECT 1}",
    "spec.validation.checks[2].sql.query",
    "holds 2 statements"
)]
#[case::two_statements_of_a_verification(
    "down: {configMapKeyRef: {name: sql, key: down.sql}}",
    "down: {configMapKeyRef: {name: sql, key: down.sql}}\n    verifyUp: SELECT true; SELECT 1",
    "spec.migration.verifyUp",
    "holds 2 statements"
)]
#[case::two_statements_of_an_invariant(
    "down: {configMapKeyRef: {name: sql, key: down.sql}}",
    "down: {configMapKeyRef: {name: sql, key: down.sql}}\n    invariants: [{name: a, before: SELECT 1, \
     after: SELECT 1; SELECT 2}]",
    "spec.migration.invariants[0].after",
    "holds 2 statements"
)]
#[case::writes_that_commit(
    "requestedBy: alice",
    "requestedBy: alice\n  rehearsal: {writes: \"DELETE FROM a; COMMIT;\"}",
    "spec.rehearsal.writes",
    "line 1: COMMIT"
)]
#[case::notice_key(
    "MaintenanceStarts.Users.body",
    "MaintenanceStarts.users.body",
    "ConfigMap templates data.MaintenanceStarts.users.body",
    "is no key of a template"
)]
#[case::notice_template(
    "at {{ startsAt }}",
    "at {{ startsAt",
    "ConfigMap templates data.MaintenanceStarts.Users.body",
    "cannot be parsed"
)]
#[case::commit("CREATE TABLE a ();", "CREATE TABLE a (); COMMIT;", "", "SqlTransactionControl: up.sql, line 1: COMMIT")]
#[case::psql("CREATE TABLE a ();", "\\\\i x", "", "SqlMetaCommand")]
#[case::outside("DROP TABLE a;", "CREATE INDEX CONCURRENTLY i ON a (b)", "", "SqlOutsideTransaction: down.sql")]
#[case::no_key("down.sql: \"", "back.sql: \"", "", "ConfigMap sql has no key down.sql")]
#[case::boolean("VERSION}", "VERSION}, from: off", "spec.application.flag.from", "write it in quotes: \"off\"")]
#[case::version("v1alpha1\nkind: Cred", "v1\nkind: Cred", "apiVersion", "write creditmigration.io/v1alpha1")]
#[case::kind("kind: CreditMigration", "kind: CreditsMigration", "kind", "write one of CreditMigration")]
#[case::group("creditmigration.io/v1alpha1", "apps/v1", "apiVersion", "write creditmigration.io/v1alpha1")]
#[case::part_of_the_object("spec:\n  requested", "specs: {}\nspec:\n  requested", "specs", "is not a field")]
#[case::yaml("spec:\n  requested", "spec: [\n  requested", "", "line")]
fn a_bad_file_is_reported(#[case] good: &str, #[case] bad: &str, #[case] path: &str, #[case] part: &str) {
    assert!(GOOD.contains(good), "{good}");
    let found = found(&GOOD.replacen(good, bad, 1));
    assert!(found.iter().any(|p| p.path == path && p.message.contains(part)), "{found:#?}");
    assert!(found.iter().all(|p| p.file == "a.yaml"));
}

#[test]
fn every_duration_that_cannot_be_read_is_reported() {
    let bad = GOOD.replacen("duration: 30m", "duration: x", 1).replacen(
        "requestedBy: alice",
        "requestedBy: alice\n  window: {maxDuration: z}",
        1,
    );
    let paths: Vec<String> = found(&bad).into_iter().map(|p| p.path).collect();
    assert_eq!(paths, ["spec.validation.duration", "spec.window.maxDuration"]);
}

/// Each text of the whole example that the type refuses as `q` has a problem at its path: the schema shows which are
/// durations and times.
#[test]
fn a_text_that_cannot_be_read_is_reported_at_its_path() {
    let file = "examples/complete/creditmigration.yaml";
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
    let document = Document::parse(file, &text).unwrap().remove(0);
    let mut spec: CreditMigrationSpec = serde_json::from_value(document.value["spec"].clone()).unwrap();
    spec.schedule.start_at = Some("2031-01-01T00:00:00Z".parse().unwrap());
    // With all defaults.
    let spec = serde_json::to_value(spec).unwrap();
    let mut refused = 0;
    for leaf in texts(&spec, "") {
        let mut bad = document.value.clone();
        bad["spec"] = spec.clone();
        *bad["spec"].pointer_mut(&leaf).unwrap() = "q".into();
        if serde_json::from_value::<CreditMigrationSpec>(bad["spec"].clone()).is_err() {
            refused += 1;
            let found = found(&bad.to_string());
            assert!(found.iter().any(|p| p.path == dotted(&leaf)), "{leaf}: {found:#?}");
        }
    }
    assert!(refused > 20, "{refused}");
}

#[test]
fn a_word_in_quotes_is_a_text() {
    assert_eq!(found(&GOOD.replacen("VERSION}", "VERSION}, from: \"off\", to: 'on'", 1)), vec![]);
}

#[test]
fn functions_that_every_template_has_need_no_capture() {
    let text = "shop/{% for i in range(2) %}{{ dict(a=id).a }}{% endfor %}";
    assert_eq!(found(&GOOD.replacen("shop/{{ id }}", text, 1)), vec![]);
}

#[test]
fn files_without_an_object_of_ours_are_reported() {
    let found = found("kind: ConfigMap\napiVersion: v1\nmetadata: {name: x}\n");
    assert!(found.len() == 1 && found[0].message.contains("no object of creditmigration.io"), "{found:?}");
}

#[test]
fn a_decision_without_its_digest_is_reported() {
    let text = "apiVersion: creditmigration.io/v1alpha1\nkind: MigrationDecision\nmetadata: {generateName: a-}\n\
                spec: {migration: a, migrationUID: '1', decision: Keep, by: bob}\n";
    let found = found(text);
    assert!(found.len() == 1 && found[0].message.contains("need spec.digest"), "{found:?}");
}

#[test]
fn a_line_names_file_object_and_path() {
    let found = found(&GOOD.replacen("requestedBy: alice", "requestedBy: ''", 1));
    assert_eq!(
        found[0].line(),
        "a.yaml: error: CreditMigration credit-v2: spec.requestedBy: has 0 characters, expected 1 to 253"
    );
}

#[test]
fn a_table_that_is_dropped_could_be_parked() {
    let parked = |tables: &str, sql: &str| {
        let text = GOOD.replace("up.sql: \"CREATE TABLE a ();\"", &format!("up.sql: \"{sql}\""));
        let park = format!("  migration:\n    park: {{tables: [{tables}]}}\n");
        found(&if tables.is_empty() { text } else { text.replace("  migration:\n", &park) })
    };
    let drops = "DROP TABLE IF EXISTS Orders, shop.carts CASCADE; DROP VIEW v";
    for (tables, sql, severity, part) in [
        ("", drops, Severity::Warning, "write spec.migration.park: {tables: [orders, shop.carts]}"),
        ("carts", drops, Severity::Error, "drops shop.carts, which spec.migration.park moves away before"),
        ("user_credits", "SELECT 1", Severity::Error, "user_credits holds credits"),
    ] {
        let problems = parked(tables, sql);
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert_eq!(problems[0].severity, severity);
        assert!(problems[0].message.contains(part), "{problems:?}");
    }
    assert_eq!(parked("orders, shop.carts", "SELECT 1"), vec![]);
}
