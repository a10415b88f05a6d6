//! The CustomResourceDefinitions as they are installed.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::Value;

use super::{CreditMigration, MigrationDecision, MigrationRun};

/// Formats of Rust's types that the API server does not know: it ignores them, and warns of each at every installation.
/// A field is limited by its `minimum` and `maximum`.
const UNKNOWN_FORMATS: &[&str] = &["uint", "uint8", "uint16", "uint32", "uint64", "int8", "int16"];

/// The spec of a kind.
const SPEC: &str = "/spec/versions/0/schema/openAPIV3Schema/properties/spec";

/// Most characters of a text of a spec that has no limit of its own, such as a query or a body. Every object is kept in
/// memory, and each run has a copy of its migration's spec.
const LONGEST_TEXT: u64 = 16_384;

/// The snapshot of a migration's spec in a `MigrationRun`.
const PLAN: &str = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/plan";

/// The three kinds, in the order in which they are installed.
pub fn crds() -> Result<Vec<CustomResourceDefinition>, serde_json::Error> {
    [CreditMigration::crd(), MigrationDecision::crd(), MigrationRun::crd()]
        .into_iter()
        .map(|crd| {
            let mut value = serde_json::to_value(crd)?;
            remove_unknown_formats(&mut value);
            if let Some(spec) = value.pointer_mut(SPEC) {
                limit_strings(spec);
            }
            // The operator's own copy of a spec that was checked and is explained in the CreditMigration. With its
            // texts it would double the size, and client-side `kubectl apply` takes no more than 256 KiB.
            if let Some(plan) = value.pointer_mut(PLAN) {
                let about = plan["description"].take();
                strip(plan);
                plan["description"] = about;
            }
            serde_json::from_value(value)
        })
        .collect()
}

/// `crds/creditmigration.io.yaml`.
pub fn crds_yaml() -> Result<String, Box<dyn std::error::Error>> {
    let mut text = String::new();
    for crd in crds()? {
        text.push_str(&format!("---\n{}\n", serde_yaml_ng::to_string(&crd)?.trim_end()));
    }
    Ok(text)
}

/// Removes texts and rules; types and limits stay.
fn strip(value: &mut Value) {
    match value {
        Value::Object(map) => {
            // A property with that name has a schema, not a text.
            if map.get("description").is_some_and(|d| d.is_string() || d.is_null()) {
                map.remove("description");
            }
            map.remove("x-kubernetes-validations");
            map.values_mut().for_each(strip);
        }
        Value::Array(items) => items.iter_mut().for_each(strip),
        _ => {}
    }
}

/// Gives each text without a limit one.
fn limit_strings(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            let is_text = map.get("type").is_some_and(|kind| kind == "string");
            // A time and a choice limit themselves.
            let limits_itself = ["maxLength", "enum", "format"].iter().any(|key| map.contains_key(*key));
            if is_text && !limits_itself {
                map.insert("maxLength".into(), LONGEST_TEXT.into());
            }
            map.values_mut().for_each(limit_strings);
        }
        Value::Array(items) => items.iter_mut().for_each(limit_strings),
        _ => {}
    }
}

fn remove_unknown_formats(value: &mut Value) {
    match value {
        Value::Object(map) => {
            // A property that is called `format` has a schema, not a text.
            if map.get("format").and_then(Value::as_str).is_some_and(|f| UNKNOWN_FORMATS.contains(&f)) {
                map.remove("format");
            }
            map.values_mut().for_each(remove_unknown_formats);
        }
        Value::Array(items) => items.iter_mut().for_each(remove_unknown_formats),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::{SPEC, crds, crds_yaml};

    /// Paths of texts without a limit.
    fn unlimited(path: &str, schema: &Value, found: &mut Vec<String>) {
        if schema["type"] == "string" && ["maxLength", "enum", "format"].iter().all(|key| schema.get(key).is_none()) {
            found.push(path.to_owned());
        }
        let fields = schema.as_object().into_iter().flatten();
        fields.for_each(|(name, inner)| unlimited(&format!("{path}/{name}"), inner, found));
    }

    #[test]
    fn every_text_of_a_spec_has_a_limit() {
        for crd in crds().unwrap() {
            let value = serde_json::to_value(&crd).unwrap();
            let mut found = vec![];
            unlimited("", value.pointer(SPEC).unwrap(), &mut found);
            assert_eq!(found, Vec::<String>::new(), "{}", crd.spec.names.kind);
        }
    }

    // kubectl reads YAML 1.1, where these are booleans; what writes the CRDs knows 1.2 and does not quote them.
    #[test]
    fn no_value_is_a_boolean_of_yaml_1_1() {
        let text = crds_yaml().unwrap();
        let values =
            text.lines().map(|line| line.trim().trim_start_matches("- ").rsplit(": ").next().unwrap_or_default());
        let booleans: Vec<&str> = values
            .filter(|value| ["on", "off", "yes", "no", "y", "n"].contains(&value.to_lowercase().as_str()))
            .collect();
        assert_eq!(booleans, Vec::<&str>::new());
    }
}
