//! Whether the objects that a spec names exist and fit. Pure: the objects are plain values, from the API server or from
//! files.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::{apps::v1::Deployment, core::v1::ConfigMap};

use serde_json::Value;

use super::{
    documents::Document,
    needs::{PULL_KEY, needs},
};
use crate::{
    api::{CreditMigrationSpec, KeyRef, Reason},
    plugin::output::{CheckedItem, State, item},
    shared::{command::kubectl, deployment, quoted::Quoted, sql},
};

/// Result of reading one object.
#[derive(Clone, Debug)]
pub(crate) enum Lookup<T> {
    /// It exists.
    Found(T),
    /// It exists only in the given files.
    InFile(T),
    /// It does not exist.
    Missing,
    /// It could not be read, and why.
    Unknown(String),
}

/// Objects of a namespace by name. An object that is not listed was not read.
#[derive(Clone, Debug, Default)]
pub(crate) struct ClusterObjects {
    /// The namespace; empty if unknown.
    pub(crate) namespace: String,
    /// ConfigMaps.
    pub(crate) config_maps: BTreeMap<String, Lookup<ConfigMap>>,
    /// Deployments.
    pub(crate) deployments: BTreeMap<String, Lookup<Deployment>>,
    /// Keys of Secrets, never their values.
    pub(crate) secrets: BTreeMap<String, Lookup<BTreeSet<String>>>,
}

/// Objects of the files count as existing: they would be applied together.
pub(crate) fn overlay(objects: &mut ClusterObjects, documents: &[Document], namespace: &str) {
    for d in documents {
        let own = d.value.pointer("/metadata/namespace").and_then(Value::as_str);
        let Some(name) = d.value.pointer("/metadata/name").and_then(Value::as_str) else { continue };
        if own.is_some_and(|own| own != namespace) {
            continue;
        }
        match d.kind() {
            "ConfigMap" => {
                if let Ok(map) = serde_json::from_value(d.value.clone()) {
                    objects.config_maps.insert(name.to_owned(), Lookup::InFile(map));
                }
            }
            "Deployment" => {
                if let Ok(deployment) = serde_json::from_value(d.value.clone()) {
                    objects.deployments.insert(name.to_owned(), Lookup::InFile(deployment));
                }
            }
            "Secret" => {
                let keys = ["data", "stringData"].iter().filter_map(|part| d.value[part].as_object());
                let keys: BTreeSet<String> = keys.flat_map(|map| map.keys().cloned()).collect();
                objects.secrets.insert(name.to_owned(), Lookup::InFile(keys));
            }
            _ => {}
        }
    }
}

/// Whether each object that a spec names exists and fits.
pub(crate) fn check_objects(spec: &CreditMigrationSpec, objects: &ClusterObjects) -> Vec<CheckedItem> {
    let mut found = vec![];
    let sql = &spec.migration;
    for (what, source) in [("up SQL", &sql.up), ("down SQL", &sql.down)] {
        let r = &source.config_map_key_ref;
        let edit = kubectl(&objects.namespace, format!("edit configmap {}", r.name));
        // Both keys, if one ConfigMap has them: it cannot be created twice.
        let keys = [&sql.up, &sql.down].map(|s| &s.config_map_key_ref);
        let keys: BTreeSet<&str> = keys.into_iter().filter(|k| k.name == r.name).map(|k| k.key.as_str()).collect();
        let files: Vec<String> = keys.iter().map(|key| format!("--from-file={key}=FILE")).collect();
        found.extend(config_map_key(what, r, objects, [&files.join(" "), &edit], |text| sql_problem(&r.key, text)));
    }
    found.extend(dropped_tables(spec, objects));
    found.extend(flag(spec, objects));
    if let Some(r) = &spec.notifications.templates_config_map_ref
        && let Some(lookup) = objects.config_maps.get(&r.name)
    {
        found.push(match existing(lookup) {
            Ok(_) => item("templates", State::Ok, format!("ConfigMap {}", r.name)),
            Err(reason) => absent(
                "templates",
                &format!("ConfigMap {}", r.name),
                reason,
                kubectl(&objects.namespace, format!("create configmap {} --from-file=FOLDER", r.name)),
            ),
        });
    }
    let reads = &spec.application.workloads;
    for name in needs(spec).deployments {
        let Some(lookup) = objects.deployments.get(&name) else { continue };
        let what = format!("deployment/{name}");
        let key = &spec.application.flag.config_map_key_ref;
        found.push(match existing(lookup) {
            Err(reason) => absent(&what, &what, reason, kubectl(&objects.namespace, "get deployments")),
            Ok(d) if reads.iter().any(|w| w.name == name) && !deployment::reads_flag(d, &key.name, &key.key) => item(
                &what,
                State::Wrong,
                format!(
                    "no container reads key {} of ConfigMap {} into its environment; next: add \
                        env.valueFrom.configMapKeyRef or envFrom.configMapRef",
                    key.key, key.name
                ),
            ),
            Ok(d) if deployment::paused(d) => item(
                &what,
                State::Wrong,
                format!(
                    "spec.paused is true, expected false: a restart replaces no pod; next: {}",
                    kubectl(&objects.namespace, format!("rollout resume {what}"))
                ),
            ),
            Ok(d) => {
                let (ready, wanted) = deployment::available(d);
                item(&what, State::Ok, format!("{ready} of {wanted} replicas available"))
            }
        });
    }
    for (name, keys) in needs(spec).secrets {
        let Some(lookup) = objects.secrets.get(&name) else { continue };
        found.push(secret(&name, &keys, lookup, &objects.namespace));
    }
    found
}

/// The object; otherwise why it could not be read, or `None` if it does not exist.
fn existing<T>(lookup: &Lookup<T>) -> Result<&T, Option<&str>> {
    match lookup {
        Lookup::Found(x) | Lookup::InFile(x) => Ok(x),
        Lookup::Missing => Err(None),
        Lookup::Unknown(why) => Err(Some(why)),
    }
}

fn absent(what: &str, object: &str, reason: Option<&str>, next: String) -> CheckedItem {
    match reason {
        Some(why) => item(what, State::NotChecked, why),
        None => item(what, State::Missing, format!("{object} is missing; next: {next}")),
    }
}

/// A key of a ConfigMap and whether its text fits. `from` has the options that create the ConfigMap with it, `add` the
/// command that adds it to an existing one. `None` if the ConfigMap was not read.
fn config_map_key(
    what: &str,
    r: &KeyRef,
    objects: &ClusterObjects,
    [from, add]: [&str; 2],
    problem: impl Fn(&str) -> Option<(State, String)>,
) -> Option<CheckedItem> {
    let lookup = objects.config_maps.get(&r.name)?;
    let create = kubectl(&objects.namespace, format!("create configmap {} {from}", r.name));
    let map = match existing(lookup) {
        Ok(map) => map,
        Err(reason) => return Some(absent(what, &format!("ConfigMap {}", r.name), reason, create)),
    };
    let Some(text) = map.data.as_ref().and_then(|d| d.get(&r.key)) else {
        let add = if matches!(lookup, Lookup::InFile(_)) { "add it in the file" } else { add };
        let binary = map.binary_data.as_ref().is_some_and(|data| data.contains_key(&r.key));
        return Some(match binary {
            true => {
                let text = format!("key {} of ConfigMap {} is not UTF-8 text; next: save it as UTF-8", r.key, r.name);
                item(what, State::Wrong, text)
            }
            false => item(what, State::Missing, format!("ConfigMap {} has no key {}; next: {add}", r.name, r.key)),
        });
    };
    let place = if matches!(lookup, Lookup::InFile(_)) { ", in the given files" } else { "" };
    Some(match problem(text) {
        Some((state, message)) => item(what, state, message),
        None => item(what, State::Ok, format!("key {} of ConfigMap {}{place}", r.key, r.name)),
    })
}

/// Tables that the up SQL drops. What is parked instead is there for a rollback, and moving it takes no time.
fn dropped_tables(spec: &CreditMigrationSpec, objects: &ClusterObjects) -> Option<CheckedItem> {
    let r = &spec.migration.up.config_map_key_ref;
    let text = existing(objects.config_maps.get(&r.name)?).ok()?.data.as_ref()?.get(&r.key)?;
    let dropped = sql::dropped_tables(text);
    let last = |name: &str| name.rsplit_once('.').map_or(name, |(_, table)| table).to_owned();
    let is_parked = |name: &&String| {
        let mut parked = spec.migration.park.iter().flat_map(|park| &park.tables);
        parked.any(|table| last(table) == last(name))
    };
    let (parked, others): (Vec<&String>, Vec<&String>) = dropped.iter().partition(is_parked);
    let join = |names: &[&String]| names.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
    match (parked.as_slice(), others.as_slice()) {
        ([], []) => None,
        ([], others) => {
            let names = join(others);
            let next = format!("leave DROP TABLE out of it, and write spec.migration.park: {{tables: [{names}]}}");
            let text = format!("drops {names}, and a rollback has to make them again; next: {next}");
            Some(item("up SQL", State::Note, text))
        }
        (parked, _) => {
            let text = format!(
                "drops {}, which spec.migration.park moves away before; next: leave DROP TABLE out of it",
                join(parked)
            );
            Some(item("up SQL", State::Wrong, text))
        }
    }
}

/// Why this SQL cannot run. What only our parser does not know is a note: the server's parser decides.
fn sql_problem(name: &str, text: &str) -> Option<(State, String)> {
    let problems = sql::read(text).err()?;
    let certain = problems.iter().find(|p| !p.doubtful);
    let problem = certain.or(problems.first())?;
    let message = format!("{}: {name}, line {}: {}", Reason::from(problem.kind), problem.line, problem.message);
    Some(match certain {
        Some(_) => (State::Wrong, message),
        None => (State::Note, format!("{message}; the server's parser decides in Preflight")),
    })
}

fn flag(spec: &CreditMigrationSpec, objects: &ClusterObjects) -> Vec<CheckedItem> {
    let flag = &spec.application.flag;
    let r = &flag.config_map_key_ref;
    let set = |key: &str, value: &str| {
        let patch = format!("patch configmap {} --type=merge -p '{{\"data\":{{\"{key}\":\"{value}\"}}}}'", r.name);
        kubectl(&objects.namespace, patch)
    };
    let literals = format!("--from-literal={}={} --from-literal={}=true", r.key, flag.from, flag.rollback_key);
    let mut found: Vec<CheckedItem> =
        config_map_key("flag", r, objects, [&literals, &set(&r.key, &flag.from)], |value| {
            (value != flag.from).then(|| {
                // To set the key back on a migrated system would break it.
                let next = if value == flag.to {
                    "if the new version runs, this migration is done already; otherwise correct spec.application.flag"
                        .to_owned()
                } else {
                    format!("next: {}", set(&r.key, &flag.from))
                };
                let text = format!(
                    "key {} of ConfigMap {} is {}, expected {}; {next}",
                    r.key,
                    r.name,
                    Quoted(value),
                    Quoted(&flag.from)
                );
                (State::Wrong, text)
            })
        })
        .into_iter()
        .collect();
    let Some(Lookup::Found(map) | Lookup::InFile(map)) = objects.config_maps.get(&r.name) else { return found };
    if map.immutable == Some(true) {
        let text =
            format!("ConfigMap {} is immutable; next: delete it and create it again without immutable: true", r.name);
        found.push(item("flag", State::Wrong, text));
    }
    let key = KeyRef { name: r.name.clone(), key: flag.rollback_key.clone() };
    let add = set(&key.key, "true");
    found.extend(config_map_key("application is prepared for a rollback", &key, objects, [&literals, &add], |value| {
        (value != "true").then(|| {
            let text = format!(
                "key {} of ConfigMap {} is {}, expected \"true\"; next: {}",
                key.key,
                r.name,
                Quoted(value),
                set(&key.key, "true")
            );
            (State::Wrong, text)
        })
    }));
    found
}

fn secret(
    name: &str,
    keys: &BTreeMap<String, String>,
    lookup: &Lookup<BTreeSet<String>>,
    namespace: &str,
) -> CheckedItem {
    let what = format!("secret/{name}");
    let literals: Vec<String> = keys.keys().map(|k| format!("--from-literal={k}=...")).collect();
    match existing(lookup) {
        Err(reason) => {
            let create = if keys.contains_key(PULL_KEY) {
                format!(
                    "create secret docker-registry {name} --docker-server=... --docker-username=... \
                        --docker-password=..."
                )
            } else {
                format!("create secret generic {name} {}", literals.join(" "))
            };
            let next = kubectl(namespace, create);
            absent(&what, &what, reason, next.trim_end().to_owned())
        }
        Ok(there) => {
            let absent: Vec<String> =
                keys.iter().filter(|(k, _)| !there.contains(*k)).map(|(k, field)| format!("{k} ({field})")).collect();
            if absent.is_empty() {
                let names: Vec<&str> = keys.keys().map(String::as_str).collect();
                let text = if names.is_empty() { "there".to_owned() } else { format!("keys {}", names.join(", ")) };
                return item(&what, State::Ok, text);
            }
            let next = match lookup {
                Lookup::InFile(_) => "add it in the file".to_owned(),
                Lookup::Found(_) | Lookup::Missing | Lookup::Unknown(_) => {
                    let data = keys.keys().filter(|k| !there.contains(*k)).map(|k| format!("\"{k}\":\"...\""));
                    let data = data.collect::<Vec<_>>().join(",");
                    kubectl(namespace, format!("patch secret {name} --type=merge -p '{{\"stringData\":{{{data}}}}}'"))
                }
            };
            item(&what, State::Missing, format!("has no key {}; next: {next}", absent.join(", ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{api::fixtures::spec, plugin::commands::sound};

    fn config_map(data: Value) -> Lookup<ConfigMap> {
        Lookup::Found(serde_json::from_value(json!({"data": data})).unwrap())
    }

    /// All objects that the fixture's spec names, without problems.
    fn good() -> ClusterObjects {
        let deployment = json!({"spec": {"selector": {}, "template": {"spec": {"containers": [
            {"name": "c", "envFrom": [{"configMapRef": {"name": "shop"}}]}]}}}, "status": {"availableReplicas": 1}});
        let keys = |keys: &[&str]| Lookup::Found(keys.iter().map(|k| (*k).to_owned()).collect());
        ClusterObjects {
            namespace: "shop".into(),
            config_maps: [
                ("sql".to_owned(), config_map(json!({"up": "SELECT 1", "down": "SELECT 2;"}))),
                ("shop".to_owned(), config_map(json!({"VERSION": "v1", "ENABLE_ROLLBACK": "true"}))),
            ]
            .into(),
            deployments: [("shop".to_owned(), Lookup::Found(serde_json::from_value(deployment).unwrap()))].into(),
            secrets: [
                ("db".to_owned(), keys(&["url"])),
                ("bucket".to_owned(), keys(&["accessKeyId", "secretAccessKey", "ca.crt"])),
            ]
            .into(),
        }
    }

    fn bad(objects: &ClusterObjects) -> Vec<CheckedItem> {
        check_objects(&spec(), objects).into_iter().filter(|f| f.state != State::Ok).collect()
    }

    #[test]
    fn what_is_as_it_should_be_is_ok() {
        let found = check_objects(&spec(), &good());
        assert_eq!(bad(&good()), vec![]);
        let whats: Vec<&str> = found.iter().map(|f| f.what.as_str()).collect();
        assert_eq!(
            whats,
            [
                "up SQL",
                "down SQL",
                "flag",
                "application is prepared for a rollback",
                "deployment/shop",
                "secret/bucket",
                "secret/db"
            ]
        );
    }

    #[rstest::rstest]
    #[case::no_map(
        "sql",
        None,
        State::Missing,
        "kubectl -n shop create configmap sql --from-file=down=FILE --from-file=up=FILE"
    )]
    #[case::no_key(
        "sql",
        Some(json!({"up": "SELECT 1"})),
        State::Missing,
        "has no key down; next: kubectl -n shop edit configmap sql"
    )]
    #[case::commit(
        "sql",
        Some(json!({"up": "SELECT 1;\nCOMMIT", "down": "SELECT 1"})),
        State::Wrong,
        "SqlTransactionControl: up, line 2"
    )]
    #[case::doubtful(
        "sql",
        Some(json!({"up": "ALTER TABEL t", "down": "SELECT 1"})),
        State::Note,
        "the server's parser decides"
    )]
    #[case::flag_elsewhere(
        "shop",
        Some(json!({"VERSION": "v0", "ENABLE_ROLLBACK": "true"})),
        State::Wrong,
        "is \"v0\", expected \"v1\"; next: kubectl -n"
    )]
    #[case::flag_done(
        "shop",
        Some(json!({"VERSION": "v2", "ENABLE_ROLLBACK": "true"})),
        State::Wrong,
        "this migration is done already"
    )]
    #[case::not_prepared(
        "shop",
        Some(json!({"VERSION": "v1", "ENABLE_ROLLBACK": "false"})),
        State::Wrong,
        "is \"false\", expected \"true\""
    )]
    #[case::no_rollback_key(
        "shop",
        Some(json!({"VERSION": "v1"})),
        State::Missing,
        "no key ENABLE_ROLLBACK; next: kubectl -n shop patch configmap shop --type=merge -p \
            '{\"data\":{\"ENABLE_ROLLBACK\":\"true\"}}'"
    )]
    fn a_config_map_that_does_not_fit(
        #[case] name: &str,
        #[case] data: Option<Value>,
        #[case] state: State,
        #[case] part: &str,
    ) {
        let mut objects = good();
        objects.config_maps.insert(name.into(), data.map_or(Lookup::Missing, config_map));
        let found = bad(&objects);
        assert!(found.iter().any(|f| f.state == state && f.message.contains(part)), "{found:?}");
        found.iter().for_each(|f| assert!(sound(&f.message, "shop") <= 1, "{f:?}"));
    }

    /// What is there cannot be created.
    #[test]
    fn a_command_fits_what_is_there() {
        let mut objects = good();
        objects.config_maps.insert("shop".into(), Lookup::Missing);
        objects.deployments.insert("shop".into(), Lookup::Missing);
        objects.secrets.insert("bucket".into(), Lookup::Found(["accessKeyId".to_owned()].into()));
        objects.secrets.insert("db".into(), Lookup::Missing);
        let found = bad(&objects);
        let commands: usize = found.iter().map(|f| sound(&f.message, "shop")).sum();
        assert_eq!(commands, found.len(), "{found:?}");
        for part in [
            "next: kubectl -n shop create configmap shop --from-literal=VERSION=v1 --from-literal=ENABLE_ROLLBACK=true",
            "next: kubectl -n shop patch secret bucket --type=merge -p \
                '{\"stringData\":{\"secretAccessKey\":\"...\"}}'",
            "next: kubectl -n shop create secret generic db --from-literal=url=...",
        ] {
            assert!(found.iter().any(|f| f.message.contains(part)), "{part}: {found:?}");
        }
        let pull = secret("registry", &[(PULL_KEY.to_owned(), String::new())].into(), &Lookup::Missing, "shop");
        assert!(pull.message.contains("create secret docker-registry registry --docker-server=..."), "{pull:?}");
        objects.secrets.insert("bucket".into(), Lookup::InFile(["accessKeyId".to_owned()].into()));
        assert!(bad(&objects).iter().any(|f| f.message.ends_with("next: add it in the file")), "{:?}", bad(&objects));
    }

    #[test]
    fn an_immutable_flag_a_deployment_without_the_flag_and_a_secret_without_its_key_are_reported() {
        let mut objects = good();
        let map = json!({"immutable": true, "data": {"VERSION": "v1", "ENABLE_ROLLBACK": "true"}});
        objects.config_maps.insert("shop".into(), Lookup::InFile(serde_json::from_value(map).unwrap()));
        objects.deployments.insert("shop".into(), Lookup::Found(Deployment::default()));
        objects.secrets.insert("bucket".into(), Lookup::Found(["accessKeyId".to_owned()].into()));
        objects.secrets.insert("db".into(), Lookup::Unknown("you may not get secrets".into()));
        let found = bad(&objects);
        for (state, part) in [
            (State::Wrong, "is immutable"),
            (State::Wrong, "no container reads key VERSION"),
            (State::Missing, "has no key secretAccessKey (spec.backup.store.secretRef)"),
            (State::NotChecked, "you may not get secrets"),
        ] {
            assert!(found.iter().any(|f| f.state == state && f.message.contains(part)), "{part}: {found:?}");
        }
    }

    #[test]
    fn a_sequence_needs_the_keys_of_its_templates() {
        let mut spec = spec();
        spec.validation.checks =
            serde_json::from_value(json!([{"name": "buy", "sequence": {"secretRef": {"name": "login"}, "steps": [
            {"name": "in", "url": "http://shop/in", "headers": {"Authorization": "Bearer {{ secret.token }}"},
             "body": "{\"user\": \"{{ secret.user }}\"}"}]}}]))
            .unwrap();
        let keys: Vec<String> = needs(&spec).secrets["login"].keys().cloned().collect();
        assert_eq!(keys, ["token", "user"]);
    }

    #[test]
    fn what_was_not_read_is_not_reported() {
        assert_eq!(check_objects(&spec(), &ClusterObjects::default()), vec![]);
    }
}
