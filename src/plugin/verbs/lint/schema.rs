//! A value against a CustomResourceDefinition's schema, with every problem and its path; then its CEL rules. Pure.
//!
//! Only the keywords that a structural schema of ours has are known; a test compares them with the schemas.

use kube::core::cel::{ErrorKind, Validator};
use regex::Regex;
use serde_json::Value;

use super::LintProblem;

/// Problems of a value by the schema; `path` is the value's path.
pub(super) fn check(schema: &Value, value: &Value, path: &str, found: &mut Vec<LintProblem>) {
    if value.is_null() {
        if schema["nullable"] != true {
            found.push(LintProblem::error(
                path,
                format!("is empty, expected {}; remove it or give it a value", expected(schema)),
            ));
        }
        return;
    }
    let Some(wanted) = schema["type"].as_str() else { return };
    if kind_of(value) != wanted && !(wanted == "number" && value.is_number()) {
        found.push(LintProblem::error(path, wrong_type(schema, wanted, value)));
        return;
    }
    if let Some(allowed) = schema["enum"].as_array()
        && !allowed.contains(value)
    {
        let names: Vec<String> = allowed.iter().filter(|a| !a.is_null()).map(plain).collect();
        found.push(LintProblem::error(path, format!("is {}; write one of {}", shown(value), names.join(", "))));
        return;
    }
    match value {
        Value::Object(map) => check_object(schema, map, path, found),
        Value::Array(items) => {
            length(schema, "minItems", "maxItems", items.len(), "entries", path, found);
            for (i, item) in items.iter().enumerate() {
                check(&schema["items"], item, &format!("{path}[{i}]"), found);
            }
        }
        Value::String(text) => {
            length(schema, "minLength", "maxLength", text.chars().count(), "characters", path, found);
            let pattern = schema["pattern"].as_str();
            if let Some(regex) = pattern.and_then(|p| Regex::new(p).ok())
                && !regex.is_match(text)
            {
                let example = example(schema);
                found.push(LintProblem::error(
                    path,
                    format!("is {}, expected {}{example}", shown(value), regex.as_str()),
                ));
            }
        }
        Value::Number(n) => {
            let n = n.as_f64().unwrap_or_default();
            let (min, max) = (schema["minimum"].as_f64(), schema["maximum"].as_f64());
            if min.is_some_and(|min| n < min) || max.is_some_and(|max| n > max) {
                found.push(LintProblem::error(path, format!("is {n}, expected {}", range(min, max))));
            }
        }
        Value::Bool(_) | Value::Null => {}
    }
}

fn check_object(schema: &Value, map: &serde_json::Map<String, Value>, path: &str, found: &mut Vec<LintProblem>) {
    let empty = serde_json::Map::new();
    let properties = schema["properties"].as_object().unwrap_or(&empty);
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if !map.contains_key(name) {
            let what = properties.get(name).and_then(|p| p["description"].as_str()).unwrap_or_default();
            let what = what.lines().next().unwrap_or_default();
            found.push(LintProblem::error(&format!("{path}.{name}"), format!("is missing: {what}")));
        }
    }
    for (name, value) in map {
        let path = format!("{path}.{name}");
        match (properties.get(name), &schema["additionalProperties"]) {
            (Some(property), _) => check(property, value, &path, found),
            (None, additional) if additional.is_object() => check(additional, value, &path, found),
            (None, _) => found.push(LintProblem::error(&path, unknown(name, properties.keys().map(String::as_str)))),
        }
    }
}

fn unknown<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    let known: Vec<&str> = known.collect();
    let plain = |s: &str| s.to_lowercase().replace(['-', '_'], "");
    let nearest = known.iter().map(|k| (distance(&plain(name), &plain(k)), *k)).min();
    match nearest {
        Some((far, near)) if far <= 2 => format!("is not a field; did you mean {near}?"),
        _ if known.is_empty() => "is not a field; remove it".to_owned(),
        _ => format!("is not a field; those are {}", known.join(", ")),
    }
}

/// Levenshtein's.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let changed = corner + usize::from(x != *y);
            corner = row[j + 1];
            row[j + 1] = changed.min(corner + 1).min(row[j] + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn wrong_type(schema: &Value, wanted: &str, value: &Value) -> String {
    let hint = match (wanted, value) {
        ("string", Value::Number(_) | Value::Bool(_)) => format!("; write it in quotes: \"{value}\""),
        ("integer" | "number" | "boolean", Value::String(s)) => format!("; write it without quotes: {s}"),
        ("array", _) => "; write a list: - ...".to_owned(),
        _ => String::new(),
    };
    format!("is {}, expected {}{hint}", shown(value), expected(schema))
}

fn expected(schema: &Value) -> &'static str {
    match schema["type"].as_str() {
        Some("string") => "a text",
        Some("integer") => "a whole number",
        Some("number") => "a number",
        Some("boolean") => "true or false",
        Some("array") => "a list",
        _ => "an object",
    }
}

/// A value in a message. Only short ones: a text may be long, an object longer.
fn shown(value: &Value) -> String {
    match value {
        Value::Object(_) => "an object".into(),
        Value::Array(_) => "a list".into(),
        other => other.to_string().chars().take(60).collect(),
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn example(schema: &Value) -> String {
    let default = schema["default"].as_str().map(|d| format!("for example {d}"));
    let text = schema["description"].as_str().map(|d| d.lines().next().unwrap_or_default().to_owned());
    default.or(text).map(|t| format!("; {t}")).unwrap_or_default()
}

fn length(schema: &Value, min: &str, max: &str, n: usize, unit: &str, path: &str, found: &mut Vec<LintProblem>) {
    let (min, max) = (schema[min].as_u64(), schema[max].as_u64());
    let n = n as u64;
    if min.is_some_and(|min| n < min) || max.is_some_and(|max| n > max) {
        let limits = range(min.map(|m| m as f64), max.map(|m| m as f64));
        found.push(LintProblem::error(path, format!("has {n} {unit}, expected {limits}")));
    }
}

fn range(min: Option<f64>, max: Option<f64>) -> String {
    match (min, max) {
        (Some(min), Some(max)) => format!("{min} to {max}"),
        (Some(min), None) => format!("at least {min}"),
        (None, Some(max)) => format!("at most {max}"),
        (None, None) => "any".into(),
    }
}

/// How a text of the schema is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TimeKind {
    /// A duration such as `30s`.
    Duration,
    /// A time such as `2030-01-31T03:00:00Z`.
    Time,
}

/// Whether a schema is that of a duration or a time. A duration has no format of its own: in a schema `duration` means
/// that of ISO 8601. Each of ours has a rule over `duration(self)`; a test compares them with the types.
fn time_kind(schema: &Value) -> Option<TimeKind> {
    if schema["format"] == "date-time" {
        return Some(TimeKind::Time);
    }
    let mut rules = schema["x-kubernetes-validations"].as_array().into_iter().flatten();
    let is_of_duration = |rule: &Value| rule["rule"].as_str().is_some_and(|text| text.contains("duration(self)"));
    rules.any(is_of_duration).then_some(TimeKind::Duration)
}

/// Calls `visit` with each text that is a duration or a time by the schema, and its path, in the order of the value.
pub(super) fn visit_times(
    schema: &Value,
    value: &mut Value,
    path: &str,
    visit: &mut impl FnMut(TimeKind, &str, &mut Value),
) {
    match value {
        Value::String(_) => {
            if let Some(kind) = time_kind(schema) {
                visit(kind, path, value);
            }
        }
        Value::Array(items) => {
            for (i, item) in items.iter_mut().enumerate() {
                visit_times(&schema["items"], item, &format!("{path}[{i}]"), visit);
            }
        }
        Value::Object(map) => {
            for (name, value) in map {
                let property = schema["properties"].get(name).unwrap_or(&schema["additionalProperties"]);
                visit_times(property, value, &format!("{path}.{name}"), visit);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// The schema's CEL rules. Those on changes of an object (`oldSelf`) do not concern a new one.
pub(super) fn rules(schema: &Value, object: &Value, found: &mut Vec<LintProblem>) {
    let Err(errors) = Validator::new().validate(schema, object, None) else { return };
    for error in errors {
        let path = error.field_path.trim_start_matches('.').to_owned();
        match error.kind {
            ErrorKind::ValidationFailure => found.push(LintProblem::error(&path, error.message)),
            // The type check reports a value that a rule cannot read; the server reports a rule that cannot run here.
            ErrorKind::EvaluationError => {}
            _ => found.push(LintProblem::warning(
                &path,
                format!(
                    "the rule `{}` cannot be evaluated here ({}); the API server evaluates \
                    it",
                    error.rule, error.message
                ),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;

    use super::*;

    fn keywords(schema: &Value, found: &mut BTreeSet<String>) {
        for (key, value) in schema.as_object().into_iter().flatten() {
            found.insert(key.clone());
            match key.as_str() {
                "properties" => value.as_object().into_iter().flatten().for_each(|(_, p)| keywords(p, found)),
                "items" | "additionalProperties" => keywords(value, found),
                _ => {}
            }
        }
    }

    #[test]
    fn every_keyword_of_our_schemas_is_known() {
        let mut found = BTreeSet::new();
        for crd in crate::api::crds().unwrap() {
            let schema = crd.spec.versions[0].schema.as_ref().unwrap().open_api_v3_schema.as_ref().unwrap();
            keywords(&serde_json::to_value(schema).unwrap(), &mut found);
        }
        let known = [
            "additionalProperties",
            "default",
            "description",
            "enum",
            "items",
            "maxItems",
            "maxLength",
            "maximum",
            "minItems",
            "minLength",
            "minimum",
            "nullable",
            "pattern",
            "properties",
            "required",
            "type",
            "x-kubernetes-validations",
            // Of the status only, or covered by the type.
            "title",
            "format",
            "x-kubernetes-list-map-keys",
            "x-kubernetes-list-type",
        ];
        let unknown: Vec<&String> = found.iter().filter(|k| !known.contains(&k.as_str())).collect();
        assert!(unknown.is_empty(), "{unknown:?}");
    }

    #[rstest::rstest]
    #[case(json!({"type": "string"}), json!(0.05), "is 0.05, expected a text; write it in quotes: \"0.05\"")]
    #[case(json!({"type": "integer"}), json!("3"), "write it without quotes: 3")]
    #[case(json!({"type": "array"}), json!("a"), "expected a list; write a list")]
    #[case(json!({"type": "integer", "minimum": 2.0, "maximum": 10.0}), json!(1), "is 1, expected 2 to 10")]
    #[case(json!({"type": "integer", "minimum": 0.0}), json!(-1), "at least 0")]
    #[case(json!({"type": "string", "enum": ["A", "B"]}), json!("C"), "is \"C\"; write one of A, B")]
    #[case(json!({"type": "string", "minLength": 1}), json!(""), "has 0 characters, expected at least 1")]
    #[case(
        json!({"type": "array", "maxItems": 1, "items": {"type": "integer"}}),
        json!([1, 2]),
        "has 2 entries, expected at most 1"
    )]
    #[case(
        json!({"type": "string", "pattern": "^[0-9]+$", "default": "42"}),
        json!("x"),
        "is \"x\", expected ^[0-9]+$; for example 42"
    )]
    #[case(json!({"type": "string"}), Value::Null, "is empty")]
    #[case(
        json!({"type": "object", "properties": {"maxDuration": {}}}),
        json!({"max_duration": 1}),
        "did you mean maxDuration?"
    )]
    #[case(
        json!({"type": "object", "properties": {"maxDuration": {}}}),
        json!({"maxDuratoin": 1}),
        "did you mean maxDuration?"
    )]
    #[case(json!({"type": "object", "properties": {"aaaa": {}}}), json!({"zzzzzzz": 1}), "those are aaaa")]
    #[case(
        json!({"type": "object", "properties": {"a": {"description": "The a."}}, "required": ["a"]}),
        json!({}),
        "is missing: The a."
    )]
    fn problems(#[case] schema: Value, #[case] value: Value, #[case] part: &str) {
        let mut found = vec![];
        check(&schema, &value, "spec", &mut found);
        assert!(found.len() == 1 && found[0].message.contains(part), "{found:?}");
    }

    #[test]
    fn paths_lead_to_the_value() {
        let schema = json!({"type": "object", "properties": {"list": {"type": "array", "items": {"type": "integer"}}},
            "additionalProperties": false});
        let mut found = vec![];
        check(&schema, &json!({"list": [1, "x"]}), "spec", &mut found);
        assert_eq!(found[0].path, "spec.list[1]");
    }
}
