//! `lint`: checks files without a cluster. Pure but for reading the files.
//!
//! In this order, and only while the previous step found nothing that would make the next one guess: YAML; the CRD's
//! schema, unknown fields among it; its CEL rules; durations and times; values that only the operator understands: SQL,
//! templates, JSONPaths, time zones, patterns; objects in the same files against each other.
//!
//! Called by the dispatch of [`plugin`](crate::plugin). Imports `inspect`, `output` and `error` of the plugin, `api`,
//! `shared` and `telemetry`.

mod schema;
mod values;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use self::schema::TimeKind;
use crate::{
    api::{CreditMigrationSpec, GROUP, MigrationDecisionSpec, Time, crds},
    plugin::{
        Exit, PluginError,
        inspect::{
            documents::{self, Document},
            world::{ClusterObjects, check_objects, overlay},
        },
        output::{Format, Output, State},
    },
    telemetry,
};

pub(crate) const EXAMPLES: &str = "\
Needs no cluster. ConfigMaps, Deployments and Secrets in the same files are checked if the migration names them; other
kinds are ignored. `plan` checks what needs the server: permissions, admission, existing objects.
Exit code 3: at least one error.

Examples:
  kubectl creditmigration lint -f migration.yaml
  kubectl creditmigration lint -f migration.yaml -f sql.yaml -o json
  kustomize build . | kubectl creditmigration lint -f -";

/// Files to check.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// File; `-` is standard input. May be repeated.
    #[arg(short, long, value_name = "FILE", required = true)]
    filename: Vec<String>,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
}

/// Severity of a problem.
#[derive(Serialize, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Severity {
    /// The API server or the operator would refuse it.
    Error,
    /// It may be intended.
    Warning,
}

/// One problem.
#[derive(Serialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LintProblem {
    /// File.
    file: String,
    /// `CreditMigration simplify-credits`.
    object: String,
    /// `spec.window.maxDuration`.
    path: String,
    /// Severity of a problem.
    severity: Severity,
    /// Current value, and what to write instead.
    message: String,
}

impl LintProblem {
    fn new(path: &str, severity: Severity, message: impl Into<String>) -> Self {
        Self { file: String::new(), object: String::new(), path: path.into(), severity, message: message.into() }
    }

    fn error(path: &str, message: impl Into<String>) -> Self {
        Self::new(path, Severity::Error, message)
    }

    fn warning(path: &str, message: impl Into<String>) -> Self {
        Self::new(path, Severity::Warning, message)
    }

    /// `file: CreditMigration x: spec.a: message`.
    fn line(&self) -> String {
        let word = if self.severity == Severity::Error { "error" } else { "warning" };
        let parts = [self.file.as_str(), word, &self.object, &self.path];
        format!("{}: {}", parts.into_iter().filter(|p| !p.is_empty()).collect::<Vec<_>>().join(": "), self.message)
    }
}

/// Result for all files.
#[derive(Serialize, Debug, PartialEq)]
struct LintReport {
    /// Objects of our kinds.
    objects: Vec<String>,
    /// Problems, in the order of the files.
    problems: Vec<LintProblem>,
}

/// Checks the files.
pub(crate) fn run(args: &Args) -> Result<Output, PluginError> {
    let texts: Vec<(String, String)> =
        args.filename.iter().map(|f| Ok((f.clone(), documents::read(f)?))).collect::<Result<_, PluginError>>()?;
    let report = lint(&texts, telemetry::now())?;
    let errors = report.problems.iter().filter(|p| p.severity == Severity::Error).count();
    let text = args.output.write(&report, || {
        let mut lines: Vec<String> = report.problems.iter().map(LintProblem::line).collect();
        let warnings = report.problems.len() - errors;
        lines.push(format!("{} objects, {errors} errors, {warnings} warnings", report.objects.len()));
        lines.join("\n")
    })?;
    Ok(Output { text, exit: if errors > 0 { Exit::ProblemsFound } else { Exit::Success } })
}

/// Checks texts, each with the name of its file.
///
/// # Errors
/// `Output` if the schemas of our own kinds cannot be built.
fn lint(texts: &[(String, String)], now: Time) -> Result<LintReport, PluginError> {
    let crds = crds().map_err(|e| PluginError::Output(e.to_string()))?;
    let mut report = LintReport { objects: vec![], problems: vec![] };
    let mut documents = vec![];
    for (file, text) in texts {
        match Document::parse(file, text) {
            Ok(found) => documents.extend(found),
            Err(why) => report.problems.push(LintProblem { file: file.clone(), ..LintProblem::error("", why) }),
        }
    }
    for d in &documents {
        let mut found = vec![];
        if !d.value["apiVersion"].as_str().is_some_and(|v| v.starts_with(GROUP)) {
            if crds.iter().any(|crd| crd.spec.names.kind == d.kind()) {
                found.push(LintProblem::error(
                    "apiVersion",
                    format!("is {}; write {GROUP}/v1alpha1", d.value["apiVersion"]),
                ));
            }
        } else {
            report.objects.push(d.title());
            object(d, &crds, &documents, now, &mut found);
            let text = texts.iter().find(|(file, _)| *file == d.file).map_or("", |(_, text)| text.as_str());
            booleans(d, text, &mut found);
        }
        report.problems.extend(found.into_iter().map(|problem| LintProblem {
            file: d.file.clone(),
            object: d.title().trim().to_owned(),
            ..problem
        }));
    }
    if report.objects.is_empty() && report.problems.is_empty() {
        let files: Vec<&str> = texts.iter().map(|(file, _)| file.as_str()).collect();
        let text = format!("has no object of {GROUP}; next: give the file of the CreditMigration");
        report.problems.push(LintProblem { file: files.join(", "), ..LintProblem::error("", text) });
    }
    Ok(report)
}

/// Problems of one of our objects.
fn object(
    d: &Document,
    crds: &[CustomResourceDefinition],
    documents: &[Document],
    now: Time,
    found: &mut Vec<LintProblem>,
) {
    let kinds = || crds.iter().map(|c| c.spec.names.kind.as_str()).collect::<Vec<_>>().join(", ");
    let Some(crd) = crds.iter().find(|crd| crd.spec.names.kind == d.kind()) else {
        found.push(LintProblem::error("kind", format!("is {}; write one of {}", d.value["kind"], kinds())));
        return;
    };
    let version = crd.spec.versions.iter().find(|v| d.value["apiVersion"] == format!("{GROUP}/{}", v.name));
    let schema = version.and_then(|v| v.schema.as_ref()?.open_api_v3_schema.as_ref());
    let Some(schema) = schema.and_then(|s| serde_json::to_value(s).ok()) else {
        found.push(LintProblem::error("apiVersion", format!("is {}; write {GROUP}/v1alpha1", d.value["apiVersion"])));
        return;
    };
    let own = d.value.as_object().into_iter().flatten();
    for (key, _) in own.filter(|(k, _)| !["apiVersion", "kind", "metadata", "spec", "status"].contains(&k.as_str())) {
        found.push(LintProblem::error(key, "is not a field; the parts of an object are metadata and spec"));
    }
    if d.name().is_empty() {
        found.push(LintProblem::error("metadata.name", "is missing"));
        return;
    }
    if d.value["spec"].is_null() {
        found.push(LintProblem::error("spec", "is missing"));
        return;
    }
    let spec_schema = &schema["properties"]["spec"];
    schema::check(spec_schema, &d.value["spec"], "spec", found);
    if !found.is_empty() {
        return;
    }
    // With a wrong type or an unreadable duration, rules would fail for another reason than the one in their message.
    match d.kind() {
        "CreditMigration" => {
            if let Some(spec) = typed::<CreditMigrationSpec>(spec_schema, &d.value["spec"], found) {
                schema::rules(&schema, &with_name(d), found);
                values::check(&spec, documents, now, found);
                named_objects(d, &spec, documents, found);
            }
        }
        "MigrationDecision" => {
            if typed::<MigrationDecisionSpec>(spec_schema, &d.value["spec"], found).is_some() {
                schema::rules(&schema, &with_name(d), found);
            }
        }
        _ => found.push(LintProblem::warning("kind", "is written by the operator and its runner only")),
    }
}

/// The object as the rules see it: it has a name, if only the `generateName`.
fn with_name(d: &Document) -> Value {
    let mut value = d.value.clone();
    value["metadata"]["name"] = d.name().into();
    value
}

/// The typed spec; otherwise the paths of unreadable durations and times, which serde does not report.
fn typed<T: DeserializeOwned>(schema: &Value, spec: &Value, found: &mut Vec<LintProblem>) -> Option<T> {
    let mut readable = spec.clone();
    let mut unreadable = vec![];
    schema::visit_times(schema, &mut readable, "spec", &mut |kind, path, text| {
        let (error, valid, example) = match kind {
            TimeKind::Duration => (error_of::<kube::core::Duration>(text), "1s", "a duration such as 30s, 5m or 1h30m"),
            TimeKind::Time => (error_of::<Time>(text), "2030-01-31T03:00:00Z", "a time such as 2030-01-31T03:00:00Z"),
        };
        if let Some(error) = error {
            unreadable.push(LintProblem::error(path, format!("is {text}: {error}; write {example}")));
            // The rest of the spec is read as well.
            *text = valid.into();
        }
    });
    let typed = serde_json::from_value(readable);
    let all_readable = unreadable.is_empty();
    found.append(&mut unreadable);
    match typed {
        Ok(typed) => all_readable.then_some(typed),
        Err(error) => {
            found.push(LintProblem::error("spec", error.to_string()));
            None
        }
    }
}

/// Why a value cannot be read as a type; `None` if it can.
fn error_of<T: DeserializeOwned>(value: &Value) -> Option<String> {
    serde_json::from_value::<T>(value.clone()).err().map(|error| error.to_string())
}

/// JSON pointers of all texts.
fn texts(value: &Value, at: &str) -> Vec<String> {
    match value {
        Value::String(_) => vec![at.to_owned()],
        Value::Array(items) => items.iter().enumerate().flat_map(|(i, v)| texts(v, &format!("{at}/{i}"))).collect(),
        Value::Object(map) => map
            .iter()
            .flat_map(|(k, v)| texts(v, &format!("{at}/{}", k.replace('~', "~0").replace('/', "~1"))))
            .collect(),
        _ => vec![],
    }
}

/// `/checks/0/interval` as `spec.checks[0].interval`.
fn dotted(pointer: &str) -> String {
    pointer.split('/').skip(1).fold("spec".to_owned(), |path, part| match part.parse::<usize>() {
        Ok(n) => format!("{path}[{n}]"),
        Err(_) => format!("{path}.{part}"),
    })
}

/// Unquoted words that kubectl, which reads YAML 1.1, sends as booleans. Here they are texts.
fn booleans(d: &Document, text: &str, found: &mut Vec<LintProblem>) {
    for leaf in self::texts(&d.value["spec"], "") {
        let word = d.value["spec"].pointer(&leaf).and_then(Value::as_str).unwrap_or_default();
        if !["y", "yes", "on", "n", "no", "off"].contains(&word.to_lowercase().as_str()) {
            continue;
        }
        let unquoted = regex::Regex::new(&format!(r"(?m)[-:,\[{{][ \t]+{word}[ \t\r]*(?:$|[,}}\]#])"));
        if unquoted.is_ok_and(|r| r.is_match(text)) {
            let text = format!("is {word}, which kubectl takes for a boolean; write it in quotes: \"{word}\"");
            found.push(LintProblem::error(&dotted(&leaf), text));
        }
    }
}

/// Objects in the same files that the spec names.
fn named_objects(d: &Document, spec: &CreditMigrationSpec, documents: &[Document], found: &mut Vec<LintProblem>) {
    let namespace = d.value.pointer("/metadata/namespace").and_then(Value::as_str);
    let mut objects =
        ClusterObjects { namespace: namespace.unwrap_or_default().to_owned(), ..ClusterObjects::default() };
    // Without a namespace of its own any other would be a guess: then all objects of the files count.
    match namespace {
        Some(namespace) => overlay(&mut objects, documents, namespace),
        None => documents.iter().for_each(|document| {
            let own = document.value.pointer("/metadata/namespace").and_then(Value::as_str).unwrap_or_default();
            overlay(&mut objects, std::slice::from_ref(document), own);
        }),
    }
    for f in check_objects(spec, &objects) {
        if f.state.is_problem() {
            found.push(LintProblem::error("", format!("{}: {}", f.what, f.message)));
        } else if f.state == State::Note {
            found.push(LintProblem::warning("", format!("{}: {}", f.what, f.message)));
        }
    }
}

#[cfg(test)]
mod tests;
