//! What only the operator knows of a spec's values: SQL, templates, JSONPaths, time zones, patterns. Pure.

use std::collections::BTreeSet;

use serde_json::Value;
use serde_json_path::JsonPath;

use super::LintProblem;
use crate::{
    api::{Check, CreditMigrationSpec, HttpStep, SequenceCheck, Time, TriggerSource, is_template_key},
    plugin::inspect::{
        documents::Document,
        needs::{templates_of, variables},
    },
    shared::{quoted::Quoted, sql},
};

/// Problems of the values.
pub(super) fn check(spec: &CreditMigrationSpec, documents: &[Document], now: Time, found: &mut Vec<LintProblem>) {
    for (i, hours) in spec.schedule.allowed_hours.iter().enumerate() {
        if let Err(error) = jiff::tz::TimeZone::get(&hours.time_zone) {
            found.push(LintProblem::error(
                &format!("spec.schedule.allowedHours[{i}].timeZone"),
                format!("is {}: {error}; write an IANA name such as Europe/Berlin or UTC", Quoted(&hours.time_zone)),
            ));
        }
    }
    if let Some(at) = spec.schedule.start_at.filter(|at| *at < now) {
        found.push(LintProblem::warning(
            "spec.schedule.startAt",
            format!("is {at:.0}, which has passed; the window may open at once"),
        ));
    }
    if let Some(probe) = &spec.application.version_probe {
        json_path("spec.application.versionProbe.jsonPath", &probe.json_path, found);
    }
    for (path, query) in [
        ("spec.migration.verifyUp", &spec.migration.verify_up),
        ("spec.migration.verifyDown", &spec.migration.verify_down),
    ] {
        if let Some(query) = query {
            one_query(path, query, found);
        }
    }
    for (i, invariant) in spec.migration.invariants.iter().enumerate() {
        for (field, query) in [("before", &invariant.before), ("after", &invariant.after)] {
            one_query(&format!("spec.migration.invariants[{i}].{field}"), query, found);
        }
    }
    let transactions = spec.credits.transactions.as_ref().map(|transactions| &transactions.table);
    let ledger: Vec<&String> = [&spec.credits.balances.table].into_iter().chain(transactions).collect();
    for (i, table) in spec.migration.park.iter().flat_map(|park| &park.tables).enumerate() {
        if ledger.contains(&table) {
            let text = format!("{table} holds credits, which the new version has to have; remove it");
            found.push(LintProblem::error(&format!("spec.migration.park.tables[{i}]"), text));
        }
    }
    if let Some(Err(problem)) = spec.rehearsal.writes.as_deref().map(sql::for_run) {
        let text = format!("line {}: {}", problem.line, problem.message);
        found.push(LintProblem::error("spec.rehearsal.writes", text));
    }
    let stages = [
        ("spec.validation.checks", &spec.validation.checks),
        ("spec.monitoring.checks", &spec.monitoring.checks),
        ("spec.followUps.day.checks", &spec.follow_ups.day.checks),
        ("spec.followUps.week.checks", &spec.follow_ups.week.checks),
    ];
    for (path, checks) in stages {
        for (i, check) in checks.iter().enumerate() {
            of_check(&format!("{path}[{i}]"), check, found);
        }
    }
    let triggers = &spec.rollback.triggers;
    for (name, source) in
        [("paymentProcessing", &triggers.payment_processing), ("coreFunction", &triggers.core_function)]
    {
        let Some(TriggerSource { sql, http, sequence, .. }) = source.clone() else { continue };
        let check = Check { sql, http, sequence, ..Check::named("x") };
        of_check(&format!("spec.rollback.triggers.{name}"), &check, found);
    }
    if let Some(r) = &spec.notifications.templates_config_map_ref {
        let maps = documents.iter().filter(|d| d.kind() == "ConfigMap" && d.name() == r.name);
        for map in maps {
            notices(&r.name, &map.value["data"], found);
        }
    }
}

fn of_check(path: &str, check: &Check, found: &mut Vec<LintProblem>) {
    if let Some(sql) = &check.sql {
        one_query(&format!("{path}.sql.query"), &sql.query, found);
    }
    if let Some(http) = &check.http {
        if let Some(p) = &http.json_path {
            json_path(&format!("{path}.http.jsonPath"), p, found);
        }
        if let Some(body) = &http.body {
            json_body(&format!("{path}.http.body"), body, found);
        }
    }
    if let Some(logs) = &check.logs
        && let Err(error) = regex::Regex::new(&logs.pattern)
    {
        let error = error.to_string();
        let last = error.lines().last().unwrap_or_default();
        found.push(LintProblem::error(&format!("{path}.logs.pattern"), format!("is no regular expression: {last}")));
    }
    if let Some(sequence) = &check.sequence {
        of_sequence(&format!("{path}.sequence"), sequence, found);
    }
}

fn of_sequence(path: &str, sequence: &SequenceCheck, found: &mut Vec<LintProblem>) {
    let mut known: BTreeSet<String> = BTreeSet::new();
    for (i, step) in sequence.steps.iter().enumerate() {
        let path = format!("{path}.steps[{i}]");
        for text in templates_of(step) {
            template(&path, text, &known, sequence.secret_ref.is_some(), found);
        }
        let HttpStep { expect, capture, .. } = step;
        for (n, e) in expect.iter().enumerate() {
            json_path(&format!("{path}.expect[{n}].jsonPath"), &e.json_path, found);
        }
        for (n, c) in capture.iter().enumerate() {
            json_path(&format!("{path}.capture[{n}].jsonPath"), &c.json_path, found);
            known.insert(c.name.clone());
        }
    }
}

/// A template of a request: it can be parsed, and what it uses is known by then.
fn template(path: &str, text: &str, known: &BTreeSet<String>, has_secret: bool, found: &mut Vec<LintProblem>) {
    if let Err(why) = parse_template(text) {
        found.push(LintProblem::error(path, format!("a template cannot be parsed: {why}")));
        return;
    }
    for variable in variables(text) {
        let first = variable.split('.').next().unwrap_or_default();
        if first == "secret" && !has_secret {
            found.push(LintProblem::error(path, format!("uses {{{{ {variable} }}}}; set secretRef of the sequence")));
        } else if first != "secret" && !known.contains(first) {
            let names: Vec<&str> = known.iter().map(String::as_str).collect();
            let there = if names.is_empty() { "nothing".to_owned() } else { names.join(", ") };
            found.push(LintProblem::error(
                path,
                format!(
                    "uses {{{{ {variable} }}}}, which no earlier step captures ({there} is); add it to capture of one"
                ),
            ));
        }
    }
}

fn parse_template(text: &str) -> Result<(), String> {
    let environment = minijinja::Environment::new();
    environment.template_from_str(text).map(drop).map_err(|e| e.to_string())
}

/// Templates of notices: their keys and their text.
fn notices(map: &str, data: &Value, found: &mut Vec<LintProblem>) {
    for (key, text) in data.as_object().into_iter().flatten() {
        let path = format!("ConfigMap {map} data.{key}");
        if !is_template_key(key) {
            found.push(LintProblem::warning(
                &path,
                "is no key of a template; write OCCASION.subject, OCCASION.body, or OCCASION.AUDIENCE.body, such as \
                    MaintenanceStarts.Users.body",
            ));
        } else if let Some(Err(why)) = text.as_str().map(parse_template) {
            found.push(LintProblem::error(&path, format!("cannot be parsed: {why}")));
        }
    }
}

fn json_path(path: &str, text: &str, found: &mut Vec<LintProblem>) {
    if let Err(error) = JsonPath::parse(text) {
        found.push(LintProblem::error(
            path,
            format!("is {}: {error}; write a JSONPath (RFC 9535) such as $.running", Quoted(text)),
        ));
    }
}

fn json_body(path: &str, text: &str, found: &mut Vec<LintProblem>) {
    if let Err(error) = serde_json::from_str::<Value>(text) {
        found.push(LintProblem::warning(path, format!("is no JSON: {error}")));
    }
}

/// One statement that could be run in a transaction.
fn one_query(path: &str, text: &str, found: &mut Vec<LintProblem>) {
    match sql::read(text) {
        Ok(statements) if statements.len() == 1 => {}
        Ok(statements) => {
            found.push(LintProblem::error(path, format!("holds {} statements; write one query", statements.len())));
        }
        Err(problems) => {
            let Some(p) = problems.iter().find(|p| !p.doubtful).or(problems.first()) else { return };
            let text = format!("line {}: {}", p.line, p.message);
            found.push(if p.doubtful {
                LintProblem::warning(path, format!("{text}; the server's parser decides"))
            } else {
                LintProblem::error(path, text)
            });
        }
    }
}
