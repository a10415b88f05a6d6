//! Requests one after another, with values carried from step to step.
//!
//! # Contract
//! - A step that goes wrong ends the sequence: the measurement is bad and names the step. What could not be sent is no
//!   measurement: `Error`.
//! - No message holds a body, a captured value or a secret: only the lengths of what was found.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use minijinja::{
    AutoEscape, Environment, ErrorKind, UndefinedBehavior,
    value::{Object, Value as Captured},
};
use serde_json::Value as Json;
use serde_json_path::JsonPath;

use super::{
    evaluator::{Measurement, Value, compare},
    http::{HttpRequest, send},
};
use crate::{
    api::{Expectation, HttpStep, SequenceCheck},
    runner::{
        clients::http_probe::{Prober, parse},
        settings::{Example, set_key},
    },
    shared::quoted::Quoted,
};

/// Steps of a template's program: a loop in a loop would otherwise block the stage for ever.
const SEQUENCE_TEMPLATE_FUEL: u64 = 100_000;
/// Longest text that a template may give.
const MAX_RENDERED_BYTES: usize = 1 << 20;

/// A mounted Secret; templates read its keys.
#[derive(Clone, Debug)]
pub struct Secret {
    folder: PathBuf,
}

impl Secret {
    /// The Secret called `name`, below the folder of all Secrets.
    pub fn new(secrets: &Path, name: &str) -> Self {
        Self { folder: secrets.join(name) }
    }

    /// A key's value without the line break at its end. `None` if there is no such key.
    pub(in crate::runner) fn read(&self, key: &str) -> Option<String> {
        // A name with a slash would lead to what is mounted next to it, such as the database's password.
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let name = self.folder.file_name()?.to_str()?;
        let inside = [name, key].iter().all(|part| !part.starts_with("..") && part.chars().all(plain));
        let direct = self.folder.parent()?.file_name()? == crate::api::mounts::SECRETS;
        if !inside || !direct {
            return None;
        }
        let text = std::fs::read_to_string(self.folder.join(key)).ok()?;
        Some(text.trim_end_matches(['\r', '\n']).to_owned())
    }
}

impl Object for Secret {
    fn get_value(self: &Arc<Self>, key: &Captured) -> Option<Captured> {
        self.read(key.as_str()?).map(Captured::from)
    }
}

/// What templates may use.
pub(in crate::runner) fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    // A misspelt name would otherwise become an empty text, and a request that means something else.
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_debug(false);
    environment.set_fuel(Some(SEQUENCE_TEMPLATE_FUEL));
    environment.add_filter("tojson", |value: Captured| {
        serde_json::to_string(&value).map_err(|_| minijinja::Error::new(ErrorKind::BadSerialization, "no JSON"))
    });
    environment
}

/// A template's text.
///
/// # Errors
/// A text without a value.
fn rendered<C: serde::Serialize>(
    environment: &Environment<'_>,
    what: &str,
    text: &str,
    context: C,
) -> Result<String, String> {
    let text = environment.render_str(text, context).map_err(|e| template_error(what, &e))?;
    if text.len() > MAX_RENDERED_BYTES {
        return Err(format!("template of {what} gives {} bytes, limit {MAX_RENDERED_BYTES}", text.len()));
    }
    Ok(text)
}

/// Sends all requests. The value is the milliseconds of all together if `wants_time`, otherwise that all answered as
/// expected.
pub async fn measure(prober: &Prober, check: &SequenceCheck, secret: Option<Secret>, wants_time: bool) -> Measurement {
    let environment = environment();
    let mut known = BTreeMap::new();
    if let Some(secret) = secret {
        known.insert("secret".to_owned(), Captured::from_object(secret));
    }
    let mut total = 0.0;
    for step in &check.steps {
        match run(prober, &environment, step, &mut known).await {
            Ok(milliseconds) => total += milliseconds,
            Err(Measurement::Failed(detail)) => return Measurement::Failed(of_step(step, &detail)),
            Err(Measurement::Error(detail)) => return Measurement::Error(of_step(step, &detail.to_string()).into()),
            Err(other) => return other,
        }
    }
    let value = if wants_time { Value::Number(format!("{total:.1}")) } else { Value::Answered };
    Measurement::Value { value, samples: None }
}

/// One step; what it captures is added to `known`. Returns its milliseconds.
async fn run(
    prober: &Prober,
    environment: &Environment<'_>,
    step: &HttpStep,
    known: &mut BTreeMap<String, Captured>,
) -> Result<f64, Measurement> {
    let render = |what: &str, text: &str| {
        rendered(environment, what, text, &*known).map_err(|detail| Measurement::Error(detail.into()))
    };
    let url = render("url", &step.url)?;
    let headers =
        step.headers.iter().map(|(name, value)| Ok((name.clone(), render(&format!("header {name}"), value)?)));
    let headers = headers.collect::<Result<Vec<_>, Measurement>>()?;
    let body = step.body.as_deref().map(|text| render("body", text)).transpose()?;
    // Before the request: what cannot be judged must not be sent, it may change something.
    let wanted: Vec<Option<String>> = step
        .expect
        .iter()
        .map(|e| e.equals.as_deref().map(|text| render(&format!("equals of {}", e.json_path), text)).transpose())
        .collect::<Result<_, _>>()?;
    let wants_body = !step.expect.is_empty() || !step.capture.is_empty();
    let timeout = step.timeout.into();
    let request = HttpRequest { method: step.method, url: &url, headers: &headers, body, timeout, wants_body };
    let answer = send(prober, request).await?;
    if answer.status != step.expected_status {
        return Err(Measurement::Failed(format!("status {}, not {}", answer.status, step.expected_status)));
    }
    if !wants_body {
        return Ok(answer.milliseconds);
    }
    let json = parse(&answer.bytes).map_err(Measurement::Failed)?;
    for (expectation, wanted) in step.expect.iter().zip(wanted) {
        check_expectation(&json, expectation, wanted.as_deref())?;
    }
    for capture in &step.capture {
        let found = one(&json, &capture.json_path)?;
        known.insert(capture.name.clone(), Captured::from_serialize(found));
    }
    Ok(answer.milliseconds)
}

/// What a template's error may say: its class and line. Its details may quote values.
fn template_error(what: &str, error: &minijinja::Error) -> String {
    let line = error.line().map(|line| format!(", line {line}")).unwrap_or_default();
    format!("template of {what}{line}: {}", error.kind())
}

fn one<'a>(json: &'a Json, path: &str) -> Result<&'a Json, Measurement> {
    let parsed = JsonPath::parse(path).map_err(|e| Measurement::Error(format!("jsonPath {path}: {e}").into()))?;
    let found = parsed.query(json).exactly_one();
    found.map_err(|_| Measurement::Failed(format!("{path} finds no single value in the answer")))
}

/// Whether the answer has what it must have.
fn check_expectation(json: &Json, expectation: &Expectation, wanted: Option<&str>) -> Result<(), Measurement> {
    let path = &expectation.json_path;
    let found = one(json, path)?;
    let Some(wanted) = wanted else { return Ok(()) };
    let text = match found {
        Json::String(text) => text.clone(),
        Json::Number(_) | Json::Bool(_) | Json::Null => found.to_string(),
        Json::Array(_) => return Err(Measurement::Failed(format!("{path} is a list, not one value"))),
        Json::Object(_) => return Err(Measurement::Failed(format!("{path} is an object, not one value"))),
    };
    // 9, 9.0 and "9" are one number.
    let equal = text == wanted || compare(&text, wanted).is_some_and(std::cmp::Ordering::is_eq);
    if equal {
        return Ok(());
    }
    // What the spec says may be shown; what was captured may be personal data.
    let wanted = match expectation.equals.as_deref() == Some(wanted) {
        true => Quoted(wanted).to_string(),
        false => format!("what was wanted ({} characters)", wanted.chars().count()),
    };
    Err(Measurement::Failed(format!("{path} is another value ({} characters), not {wanted}", text.chars().count())))
}

/// A detail with the step that it is about.
fn of_step(step: &HttpStep, detail: &str) -> String {
    format!("step {}: {detail}", Quoted(&step.name))
}

/// The reason why a sequence cannot be measured: its templates, paths or Secret. `None` if it can. Nothing is sent.
pub(in crate::runner) fn invalid(
    check: &SequenceCheck,
    secret: Option<&Secret>,
    secret_name: &str,
    namespace: &str,
) -> Option<String> {
    let environment = environment();
    let mut known: Vec<&str> = environment.globals().map(|(name, _)| name).collect();
    let mut captured: Vec<&str> = Vec::new();
    for step in &check.steps {
        let at = |detail: String| Some(of_step(step, &detail));
        let mut templates = vec![("url".to_owned(), step.url.as_str())];
        templates.extend(step.headers.iter().map(|(name, value)| (format!("header {name}"), value.as_str())));
        templates.extend(step.body.as_deref().map(|text| ("body".to_owned(), text)));
        templates.extend(
            step.expect.iter().filter_map(|e| Some((format!("equals of {}", e.json_path), e.equals.as_deref()?))),
        );
        for (what, text) in templates {
            let template = match environment.template_from_str(text) {
                Ok(template) => template,
                Err(error) => return at(format!("{}; next: correct the template", template_error(&what, &error))),
            };
            for name in template.undeclared_variables(true) {
                let (first, key) = name.split_once('.').unwrap_or((&name, ""));
                if first != "secret" {
                    if !known.contains(&first) {
                        return at(format!(
                            "{what}: {first} is captured by no earlier step; next: capture it there, or correct the \
                                name"
                        ));
                    }
                    continue;
                }
                let Some(secret) = secret else {
                    return at(format!("{what}: secret is used without secretRef; next: set sequence.secretRef"));
                };
                if !key.is_empty() && secret.read(key).is_none() {
                    let next = set_key(namespace, secret_name, key, Example::Value("VALUE"), false);
                    return at(format!("{what}: key {key} of Secret {namespace}/{secret_name} is missing; {next}"));
                }
            }
            let used = template.undeclared_variables(false);
            let unknown: Vec<&str> = captured.iter().copied().filter(|name| used.contains(*name)).collect();
            if let Some(detail) = fails(&environment, &what, text, secret, &unknown) {
                return at(format!("{detail}; next: correct the template"));
            }
        }
        let paths = step.expect.iter().map(|e| &e.json_path).chain(step.capture.iter().map(|c| &c.json_path));
        for path in paths {
            if let Err(error) = JsonPath::parse(path) {
                return at(format!(
                    "jsonPath {path}: {error}; next: write it as RFC 9535 has it, for example $.balance"
                ));
            }
        }
        known.extend(step.capture.iter().map(|c| c.name.as_str()));
        captured.extend(step.capture.iter().map(|c| c.name.as_str()));
    }
    None
}

/// What is wrong with a template that compiles: a filter that there is not, a loop without end. What is
/// captured is not known yet (`unknown`, if the template uses any): it is tried with a number and with a text in its
/// place, and what may be due to that is passed by.
fn fails(
    environment: &Environment<'_>,
    what: &str,
    text: &str,
    secret: Option<&Secret>,
    unknown: &[&str],
) -> Option<String> {
    let secret = secret.map(|secret| ("secret", Captured::from_object(secret.clone())));
    if unknown.is_empty() {
        return rendered(environment, what, text, secret.into_iter().collect::<BTreeMap<_, _>>()).err();
    }
    [Captured::from(1), Captured::from("1")].into_iter().find_map(|stand_in| {
        let stand_ins = unknown.iter().map(|name| (*name, stand_in.clone()));
        let context: BTreeMap<_, _> = stand_ins.chain(secret.clone()).collect();
        let error = environment.render_str(text, context).err()?;
        let certain = matches!(
            error.kind(),
            ErrorKind::UnknownFilter | ErrorKind::UnknownTest | ErrorKind::UnknownFunction | ErrorKind::OutOfFuel
        );
        certain.then(|| template_error(what, &error))
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    fn expectation(equals: &str) -> Expectation {
        serde_json::from_value(json!({"jsonPath": "$.a", "equals": equals})).unwrap()
    }

    #[rstest]
    #[case::number(json!({"a": 9}), "9", None)]
    #[case::number_as_text(json!({"a": "9"}), "9", None)]
    #[case::decimal(json!({"a": 9.0}), "9", None)]
    #[case::boolean(json!({"a": true}), "true", None)]
    #[case::text(json!({"a": "ann"}), "ann", None)]
    #[case::another_number(json!({"a": 12}), "9", Some("$.a is another value (2 characters), not \"9\""))]
    #[case::another_text(json!({"a": "ann"}), "bob", Some("$.a is another value (3 characters), not \"bob\""))]
    #[case::a_list(json!({"a": [9]}), "9", Some("$.a is a list, not one value"))]
    #[case::none(json!({"b": 9}), "9", Some("$.a finds no single value in the answer"))]
    fn values_are_checked(#[case] answer: Json, #[case] equals: &str, #[case] bad: Option<&str>) {
        let checked = check_expectation(&answer, &expectation(equals), Some(equals)).err();
        assert_eq!(checked, bad.map(|detail| Measurement::Failed(detail.to_owned())));
    }

    #[test]
    fn what_was_captured_is_not_shown() {
        let checked = check_expectation(&json!({"a": "ann"}), &expectation("{{ name }}"), Some("robert"));
        let want = "$.a is another value (3 characters), not what was wanted (6 characters)";
        assert_eq!(checked, Err(Measurement::Failed(want.to_owned())));
    }

    #[rstest]
    #[case("{{ before - 1 }}", Ok("11"))]
    #[case("{{ (before - 2) * 10 }}", Ok("100"))]
    #[case("Bearer {{ token }}", Ok("Bearer <a&b>"))]
    #[case("{\"t\": {{ token | tojson }}}", Ok("{\"t\": \"<a&b>\"}"))]
    #[case("{{ other }}", Err("template of body, line 1: undefined value"))]
    #[case("{{ before", Err("template of body, line 1: syntax error"))]
    #[case("{{ token - 1 }}", Err("template of body, line 1: invalid operation"))]
    fn templates(#[case] text: &str, #[case] want: Result<&str, &str>) {
        let known = BTreeMap::from([
            ("before".to_owned(), Captured::from_serialize(json!(12))),
            ("token".to_owned(), Captured::from_serialize(json!("<a&b>"))),
        ]);
        let rendered = environment().render_str(text, known).map_err(|e| template_error("body", &e));
        assert_eq!(rendered.as_deref().map_err(String::as_str), want);
    }

    fn mounted() -> (PathBuf, Secret) {
        let root = std::env::temp_dir().join(format!(
            "credit-secret-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        for (file, text) in
            [("secrets/login/user", "ann\n"), ("secrets/other/user", "bob"), ("database/url", "postgresql://")]
        {
            let path = root.join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let secret = Secret::new(&root.join("secrets"), "login");
        (root, secret)
    }

    #[test]
    fn a_secret_is_read_by_key_and_nothing_next_to_it() {
        let (root, secret) = mounted();
        let context = BTreeMap::from([("secret", Captured::from_object(secret.clone()))]);
        let render = |text: &str| environment().render_str(text, &context).map_err(|e| e.kind().to_string());
        assert_eq!(render("{{ secret.user }}").as_deref(), Ok("ann"));
        for text in ["{{ secret.password }}", "{{ secret['../other/user'] }}", "{{ secret['../../database/url'] }}"] {
            assert_eq!(render(text), Err("undefined value".to_owned()), "{text}");
        }
        assert!(!render("{{ secret }}").unwrap_or_default().contains("ann"));
        assert_eq!(Secret::new(&root.join("secrets"), "../database").read("url"), None);
        std::fs::remove_dir_all(root).unwrap();
    }

    #[rstest]
    #[case(json!([{"name": "a", "url": "http://h/{{ secret.user }}", "capture": [{"name": "x", "jsonPath": "$.x"}]},
        {"name": "b", "url": "http://h/{{ x - 1 }}"}]), None)]
    #[case(json!([{"name": "a", "url": "http://h/{{ x }}", "capture": [{"name": "x", "jsonPath": "$.x"}]}]),
        Some("step \"a\": url: x is captured by no earlier step"))]
    #[case(json!([{"name": "a", "url": "http://h/", "body": "{{"}]), Some("template of body, line 1: syntax error"))]
    #[case(json!([{"name": "a", "url": "http://h/", "headers": {"A": "{{ secret.password }}"}}]),
        Some("header A: key password of Secret shop/login is missing; \
            next: kubectl -n shop create secret generic login"))]
    #[case(json!([{"name": "a", "url": "http://h/", "expect": [{"jsonPath": "$["}]}]), Some("jsonPath $["))]
    #[case(json!([{"name": "a", "url": "http://h/{{ secret.user | upcase }}"}]),
        Some("step \"a\": template of url, line 1: unknown filter; next: correct the template"))]
    #[case(json!([{"name": "a", "url": "http://h/", "capture": [{"name": "x", "jsonPath": "$.x"}]},
        {"name": "b", "url": "http://h/", "body": "{{ x | upcase }}"}]), Some("step \"b\": template of body, line 1: \
            unknown filter"))]
    #[case(json!([{"name": "a", "url": "http://h/", "body": "{% for a in range(9999) %}{% for b in range(9999) %}x{% \
        endfor %}{% endfor %}"}]),
        Some("ran out of fuel"))]
    #[case(json!([{"name": "a", "url": "http://h/", "body": "{{ 'x' * 2000000 }}"}]), Some("template of body gives \
        2000000 bytes, limit 1048576"))]
    #[case::a_text_or_a_number(json!([{"name": "a", "url": "http://h/", "capture": [{"name": "x", "jsonPath": "$.x"}]},
        {"name": "b", "url": "http://h/{{ x | upper }}/{{ x.y }}"},
        {"name": "c", "url": "http://h/{{ x - 1 }}"}]), None)]
    fn sequences_that_cannot_be_measured(#[case] steps: Json, #[case] detail: Option<&str>) {
        let (root, secret) = mounted();
        let check: SequenceCheck = serde_json::from_value(json!({"steps": steps})).unwrap();
        let found = invalid(&check, Some(&secret), "login", "shop");
        std::fs::remove_dir_all(root).unwrap();
        match detail {
            None => assert_eq!(found, None),
            Some(detail) => assert!(found.as_ref().is_some_and(|f| f.contains(detail)), "{found:?}"),
        }
    }

    #[test]
    fn a_secret_needs_its_reference() {
        let steps = json!({"steps": [{"name": "a", "url": "http://h/{{ secret.user }}"}]});
        let found = invalid(&serde_json::from_value(steps).unwrap(), None, "", "shop").unwrap();
        assert!(found.contains("next: set sequence.secretRef"), "{found}");
    }
}
