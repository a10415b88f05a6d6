//! What a spec names, and whether it is there and fits. Pure: the objects come in as plain values, from the API server or
//! from files.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::{apps::v1::Deployment, core::v1::ConfigMap};

use serde_json::Value;

use super::{
    documents::Document,
    needs::{PULL_KEY, needs},
};
use crate::{
    api::{CreditMigrationSpec, KeyRef, Reason},
    plugin::output::{Finding, State, finding},
    shared::{command::kubectl, deployment, sql},
};

/// One object that was looked for.
#[derive(Clone, Debug)]
pub(crate) enum Look<T> {
    /// It is there.
    Found(T),
    /// It is in the given files only.
    InFile(T),
    /// It is not there.
    Missing,
    /// Nobody could look: why.
    Unseen(String),
}

/// Objects of a namespace, by name. What is not in it was not looked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct World {
    /// The namespace; empty if it is not known.
    pub(crate) namespace: String,
    /// ConfigMaps.
    pub(crate) config_maps: BTreeMap<String, Look<ConfigMap>>,
    /// Deployments.
    pub(crate) deployments: BTreeMap<String, Look<Deployment>>,
    /// Keys of Secrets; never their values.
    pub(crate) secrets: BTreeMap<String, Look<BTreeSet<String>>>,
}

/// What the files bring along counts as if it were there: it would be applied together.
pub(crate) fn overlay(world: &mut World, documents: &[Document], namespace: &str) {
    for d in documents {
        let own = d.value.pointer("/metadata/namespace").and_then(Value::as_str);
        let Some(name) = d.value.pointer("/metadata/name").and_then(Value::as_str) else { continue };
        if own.is_some_and(|own| own != namespace) {
            continue;
        }
        match d.kind() {
            "ConfigMap" => {
                if let Ok(map) = serde_json::from_value(d.value.clone()) {
                    world.config_maps.insert(name.to_owned(), Look::InFile(map));
                }
            }
            "Deployment" => {
                if let Ok(deployment) = serde_json::from_value(d.value.clone()) {
                    world.deployments.insert(name.to_owned(), Look::InFile(deployment));
                }
            }
            "Secret" => {
                let keys = ["data", "stringData"].iter().filter_map(|part| d.value[part].as_object());
                let keys: BTreeSet<String> = keys.flat_map(|map| map.keys().cloned()).collect();
                world.secrets.insert(name.to_owned(), Look::InFile(keys));
            }
            _ => {}
        }
    }
}

/// Each thing that a spec names: whether it is there and fits.
pub(crate) fn look(spec: &CreditMigrationSpec, world: &World) -> Vec<Finding> {
    let mut found = vec![];
    let sql = &spec.migration;
    for (what, source) in [("up SQL", &sql.up), ("down SQL", &sql.down)] {
        let r = &source.config_map_key_ref;
        let edit = kubectl(&world.namespace, format!("edit configmap {}", r.name));
        // Both keys, if one map has them: what was created cannot be created once more.
        let keys = [&sql.up, &sql.down].map(|s| &s.config_map_key_ref);
        let keys: BTreeSet<&str> = keys.into_iter().filter(|k| k.name == r.name).map(|k| k.key.as_str()).collect();
        let files: Vec<String> = keys.iter().map(|key| format!("--from-file={key}=FILE")).collect();
        found.extend(config_map_key(what, r, world, [&files.join(" "), &edit], |text| sql_problem(&r.key, text)));
    }
    found.extend(flag(spec, world));
    if let Some(r) = &spec.notifications.templates_config_map_ref
        && let Some(look) = world.config_maps.get(&r.name)
    {
        found.push(match seen(look) {
            Ok(_) => finding("templates", State::Ok, format!("ConfigMap {}", r.name)),
            Err(unseen) => told(
                "templates",
                &format!("ConfigMap {}", r.name),
                unseen,
                kubectl(&world.namespace, format!("create configmap {} --from-file=FOLDER", r.name)),
            ),
        });
    }
    let reads = &spec.application.workloads;
    for name in needs(spec).deployments {
        let Some(look) = world.deployments.get(&name) else { continue };
        let what = format!("deployment/{name}");
        let key = &spec.application.flag.config_map_key_ref;
        found.push(match seen(look) {
            Err(unseen) => told(&what, &what, unseen, kubectl(&world.namespace, "get deployments")),
            Ok(d) if reads.iter().any(|w| w.name == name) && !deployment::reads_flag(d, &key.name, &key.key) => finding(
                &what,
                State::Wrong,
                format!(
                    "no container reads key {} of ConfigMap {} into its environment; next: add env.valueFrom.configMapKeyRef or envFrom.configMapRef",
                    key.key, key.name
                ),
            ),
            Ok(d) => {
                let wanted = d.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
                let ready = d.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0);
                finding(&what, State::Ok, format!("{ready} of {wanted} replicas available"))
            }
        });
    }
    for (name, keys) in needs(spec).secrets {
        let Some(look) = world.secrets.get(&name) else { continue };
        found.push(secret(&name, &keys, look, &world.namespace));
    }
    found
}

/// The object, or why there is none.
fn seen<T>(look: &Look<T>) -> Result<&T, Option<&str>> {
    match look {
        Look::Found(x) | Look::InFile(x) => Ok(x),
        Look::Missing => Err(None),
        Look::Unseen(why) => Err(Some(why)),
    }
}

fn told(what: &str, object: &str, unseen: Option<&str>, next: String) -> Finding {
    match unseen {
        Some(why) => finding(what, State::NotLooked, why),
        None => finding(what, State::Missing, format!("{object} is missing; next: {next}")),
    }
}

/// A key of a ConfigMap, and what its text is worth; `from` are the options that create the map with it, `add` the command that adds it
/// to a map that is there. Nothing if nobody looked for the map.
fn config_map_key(
    what: &str,
    r: &KeyRef,
    world: &World,
    [from, add]: [&str; 2],
    problem: impl Fn(&str) -> Option<(State, String)>,
) -> Option<Finding> {
    let look = world.config_maps.get(&r.name)?;
    let create = kubectl(&world.namespace, format!("create configmap {} {from}", r.name));
    let map = match seen(look) {
        Ok(map) => map,
        Err(unseen) => return Some(told(what, &format!("ConfigMap {}", r.name), unseen, create)),
    };
    let Some(text) = map.data.as_ref().and_then(|d| d.get(&r.key)) else {
        let add = if matches!(look, Look::InFile(_)) { "add it in the file" } else { add };
        let text = format!("ConfigMap {} has no key {}; next: {add}", r.name, r.key);
        return Some(finding(what, State::Missing, text));
    };
    let place = if matches!(look, Look::InFile(_)) { ", in the given files" } else { "" };
    Some(match problem(text) {
        Some((state, message)) => finding(what, state, message),
        None => finding(what, State::Ok, format!("key {} of ConfigMap {}{place}", r.key, r.name)),
    })
}

/// What stands in the way of running this SQL. What only this parser does not know is left to the server's.
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

fn flag(spec: &CreditMigrationSpec, world: &World) -> Vec<Finding> {
    let flag = &spec.application.flag;
    let r = &flag.config_map_key_ref;
    let set = |key: &str, value: &str| {
        let patch = format!("patch configmap {} --type=merge -p '{{\"data\":{{\"{key}\":\"{value}\"}}}}'", r.name);
        kubectl(&world.namespace, patch)
    };
    let literals = format!("--from-literal={}={} --from-literal={}=true", r.key, flag.from, flag.rollback_key);
    let mut found: Vec<Finding> = config_map_key("flag", r, world, [&literals, &set(&r.key, &flag.from)], |value| {
        (value != flag.from).then(|| {
            // Whoever sets the key of a migrated system back breaks it.
            let next = if value == flag.to {
                "if the new version runs, this migration is done already; else correct spec.application.flag".to_owned()
            } else {
                format!("next: {}", set(&r.key, &flag.from))
            };
            let text = format!("key {} of ConfigMap {} is {value:?}, expected {:?}; {next}", r.key, r.name, flag.from);
            (State::Wrong, text)
        })
    })
    .into_iter()
    .collect();
    let Some(Look::Found(map) | Look::InFile(map)) = world.config_maps.get(&r.name) else { return found };
    if map.immutable == Some(true) {
        let text =
            format!("ConfigMap {} is immutable; next: delete it and create it again without immutable: true", r.name);
        found.push(finding("flag", State::Wrong, text));
    }
    let key = KeyRef { name: r.name.clone(), key: flag.rollback_key.clone() };
    let add = set(&key.key, "true");
    found.extend(config_map_key("application is prepared for the way back", &key, world, [&literals, &add], |value| {
        (value != "true").then(|| {
            let text = format!(
                "key {} of ConfigMap {} is {value:?}, expected \"true\"; next: {}",
                key.key,
                r.name,
                set(&key.key, "true")
            );
            (State::Wrong, text)
        })
    }));
    found
}

fn secret(name: &str, keys: &BTreeMap<String, String>, look: &Look<BTreeSet<String>>, namespace: &str) -> Finding {
    let what = format!("secret/{name}");
    let literals: Vec<String> = keys.keys().map(|k| format!("--from-literal={k}=...")).collect();
    match seen(look) {
        Err(unseen) => {
            let create = if keys.contains_key(PULL_KEY) {
                format!(
                    "create secret docker-registry {name} --docker-server=... --docker-username=... --docker-password=..."
                )
            } else {
                format!("create secret generic {name} {}", literals.join(" "))
            };
            let next = kubectl(namespace, create);
            told(&what, &what, unseen, next.trim_end().to_owned())
        }
        Ok(there) => {
            let absent: Vec<String> =
                keys.iter().filter(|(k, _)| !there.contains(*k)).map(|(k, field)| format!("{k} ({field})")).collect();
            if absent.is_empty() {
                let names: Vec<&str> = keys.keys().map(String::as_str).collect();
                let text = if names.is_empty() { "there".to_owned() } else { format!("keys {}", names.join(", ")) };
                return finding(&what, State::Ok, text);
            }
            let next = match look {
                Look::InFile(_) => "add it in the file".to_owned(),
                Look::Found(_) | Look::Missing | Look::Unseen(_) => {
                    let data = keys.keys().filter(|k| !there.contains(*k)).map(|k| format!("\"{k}\":\"...\""));
                    let data = data.collect::<Vec<_>>().join(",");
                    kubectl(namespace, format!("patch secret {name} --type=merge -p '{{\"stringData\":{{{data}}}}}'"))
                }
            };
            finding(&what, State::Missing, format!("has no key {}; next: {next}", absent.join(", ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{api::fixtures::spec, plugin::commands::sound};

    fn config_map(data: Value) -> Look<ConfigMap> {
        Look::Found(serde_json::from_value(json!({"data": data})).unwrap())
    }

    /// All that the fixture's spec names, as it should be.
    fn good() -> World {
        let deployment = json!({"spec": {"selector": {}, "template": {"spec": {"containers": [
            {"name": "c", "envFrom": [{"configMapRef": {"name": "shop"}}]}]}}}, "status": {"availableReplicas": 1}});
        let keys = |keys: &[&str]| Look::Found(keys.iter().map(|k| (*k).to_owned()).collect());
        World {
            namespace: "shop".into(),
            config_maps: [
                ("sql".to_owned(), config_map(json!({"up": "SELECT 1", "down": "SELECT 2;"}))),
                ("shop".to_owned(), config_map(json!({"VERSION": "v1", "ENABLE_ROLLBACK": "true"}))),
            ]
            .into(),
            deployments: [("shop".to_owned(), Look::Found(serde_json::from_value(deployment).unwrap()))].into(),
            secrets: [
                ("db".to_owned(), keys(&["url"])),
                ("bucket".to_owned(), keys(&["accessKeyId", "secretAccessKey", "ca.crt"])),
            ]
            .into(),
        }
    }

    fn bad(world: &World) -> Vec<Finding> {
        look(&spec(), world).into_iter().filter(|f| f.state != State::Ok).collect()
    }

    #[test]
    fn what_is_as_it_should_be_is_ok() {
        let found = look(&spec(), &good());
        assert_eq!(bad(&good()), vec![]);
        let whats: Vec<&str> = found.iter().map(|f| f.what.as_str()).collect();
        assert_eq!(
            whats,
            [
                "up SQL",
                "down SQL",
                "flag",
                "application is prepared for the way back",
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
    #[case::no_key("sql", Some(json!({"up": "SELECT 1"})), State::Missing, "has no key down; next: kubectl -n shop edit configmap sql")]
    #[case::commit("sql", Some(json!({"up": "SELECT 1;\nCOMMIT", "down": "SELECT 1"})), State::Wrong, "SqlTransactionControl: up, line 2")]
    #[case::doubtful("sql", Some(json!({"up": "ALTER TABEL t", "down": "SELECT 1"})), State::Note, "the server's parser decides")]
    #[case::flag_elsewhere("shop", Some(json!({"VERSION": "v0", "ENABLE_ROLLBACK": "true"})), State::Wrong, "is \"v0\", expected \"v1\"; next: kubectl -n")]
    #[case::flag_done("shop", Some(json!({"VERSION": "v2", "ENABLE_ROLLBACK": "true"})), State::Wrong, "this migration is done already")]
    #[case::not_prepared("shop", Some(json!({"VERSION": "v1", "ENABLE_ROLLBACK": "false"})), State::Wrong, "is \"false\", expected \"true\"")]
    #[case::no_rollback_key("shop", Some(json!({"VERSION": "v1"})), State::Missing, "no key ENABLE_ROLLBACK; next: kubectl -n shop patch configmap shop --type=merge -p '{\"data\":{\"ENABLE_ROLLBACK\":\"true\"}}'")]
    fn a_config_map_that_does_not_fit(
        #[case] name: &str,
        #[case] data: Option<Value>,
        #[case] state: State,
        #[case] part: &str,
    ) {
        let mut world = good();
        world.config_maps.insert(name.into(), data.map_or(Look::Missing, config_map));
        let found = bad(&world);
        assert!(found.iter().any(|f| f.state == state && f.message.contains(part)), "{found:?}");
        found.iter().for_each(|f| assert!(sound(&f.message, "shop") <= 1, "{f:?}"));
    }

    /// What is there cannot be created.
    #[test]
    fn a_command_fits_what_is_there() {
        let mut world = good();
        world.config_maps.insert("shop".into(), Look::Missing);
        world.deployments.insert("shop".into(), Look::Missing);
        world.secrets.insert("bucket".into(), Look::Found(["accessKeyId".to_owned()].into()));
        world.secrets.insert("db".into(), Look::Missing);
        let found = bad(&world);
        let commands: usize = found.iter().map(|f| sound(&f.message, "shop")).sum();
        assert_eq!(commands, found.len(), "{found:?}");
        for part in [
            "next: kubectl -n shop create configmap shop --from-literal=VERSION=v1 --from-literal=ENABLE_ROLLBACK=true",
            "next: kubectl -n shop patch secret bucket --type=merge -p '{\"stringData\":{\"secretAccessKey\":\"...\"}}'",
            "next: kubectl -n shop create secret generic db --from-literal=url=...",
        ] {
            assert!(found.iter().any(|f| f.message.contains(part)), "{part}: {found:?}");
        }
        let pull = secret("registry", &[(PULL_KEY.to_owned(), String::new())].into(), &Look::Missing, "shop");
        assert!(pull.message.contains("create secret docker-registry registry --docker-server=..."), "{pull:?}");
        world.secrets.insert("bucket".into(), Look::InFile(["accessKeyId".to_owned()].into()));
        assert!(bad(&world).iter().any(|f| f.message.ends_with("next: add it in the file")), "{:?}", bad(&world));
    }

    #[test]
    fn an_immutable_flag_a_blind_deployment_and_a_secret_without_its_key_are_told() {
        let mut world = good();
        let map = json!({"immutable": true, "data": {"VERSION": "v1", "ENABLE_ROLLBACK": "true"}});
        world.config_maps.insert("shop".into(), Look::InFile(serde_json::from_value(map).unwrap()));
        world.deployments.insert("shop".into(), Look::Found(Deployment::default()));
        world.secrets.insert("bucket".into(), Look::Found(["accessKeyId".to_owned()].into()));
        world.secrets.insert("db".into(), Look::Unseen("you may not get secrets".into()));
        let found = bad(&world);
        for (state, part) in [
            (State::Wrong, "is immutable"),
            (State::Wrong, "no container reads key VERSION"),
            (State::Missing, "has no key secretAccessKey (spec.backup.store.secretRef)"),
            (State::NotLooked, "you may not get secrets"),
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
    fn what_nobody_looked_for_is_not_told() {
        assert_eq!(look(&spec(), &World::default()), vec![]);
    }
}
