//! Names of the objects that a spec needs in its namespace. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::api::{CreditMigrationSpec, KeyRef};

/// Key of a Secret for pulling images, which has a type of its own.
pub(super) const PULL_KEY: &str = ".dockerconfigjson";

/// Names of the objects that a spec needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    /// ConfigMaps.
    pub(crate) config_maps: BTreeSet<String>,
    /// Deployments.
    pub(crate) deployments: BTreeSet<String>,
    /// Secrets with the keys that are read, each with the field of the spec that names it.
    pub(crate) secrets: BTreeMap<String, BTreeMap<String, String>>,
}

/// Variables of a template, including `secret.KEY`. Functions that every template has, such as `range`, are not
/// variables. A template that cannot be parsed has none; `lint` reports it.
pub(crate) fn variables(template: &str) -> BTreeSet<String> {
    let environment = minijinja::Environment::new();
    let Ok(parsed) = environment.template_from_str(template) else { return BTreeSet::new() };
    let is_function = |variable: &String| environment.globals().any(|(name, _)| variable == name);
    parsed.undeclared_variables(true).into_iter().filter(|variable| !is_function(variable)).collect()
}

/// Names of the objects that a spec needs.
pub(crate) fn needs(spec: &CreditMigrationSpec) -> Needs {
    let mut n = Needs::default();
    let mut secret = |name: &str, keys: &[&str], field: &str| {
        let of = n.secrets.entry(name.to_owned()).or_default();
        for key in keys {
            of.entry((*key).to_owned()).or_insert_with(|| field.to_owned());
        }
    };
    let key = |r: &KeyRef| (r.name.clone(), r.key.clone());
    let mut keyed = vec![];
    let connections = [
        (Some(&spec.database.connection), "spec.database.connection.secretRef", "spec.database.connection.caSecretRef"),
        (
            spec.rehearsal.connection.as_ref(),
            "spec.rehearsal.connection.secretRef",
            "spec.rehearsal.connection.caSecretRef",
        ),
    ];
    for (connection, field, ca_field) in connections {
        let Some(connection) = connection else { continue };
        match &connection.secret_ref.key {
            Some(key) => secret(&connection.secret_ref.name, &[key], field),
            // Which of its forms the Secret has is Preflight's.
            None => secret(&connection.secret_ref.name, &[], field),
        }
        keyed.extend(connection.ca_secret_ref.as_ref().map(|r| (key(r), ca_field)));
    }
    for channel in &spec.notifications.channels {
        let field = "spec.notifications.channels";
        if let Some(slack) = &channel.slack {
            keyed.push((key(&slack.url_secret_ref), field));
            keyed.extend(slack.ca_secret_ref.as_ref().map(|r| (key(r), field)));
        }
        if let Some(webhook) = &channel.webhook {
            keyed.push((key(&webhook.url_secret_ref), field));
            keyed.extend(webhook.authorization_secret_ref.as_ref().map(|r| (key(r), field)));
            keyed.extend(webhook.ca_secret_ref.as_ref().map(|r| (key(r), field)));
        }
        if let Some(email) = &channel.email {
            keyed.extend(email.ca_secret_ref.as_ref().map(|r| (key(r), field)));
            if let Some(r) = &email.secret_ref {
                secret(&r.name, &["username", "password"], field);
            }
        }
    }
    for ((name, key), field) in keyed {
        secret(&name, &[&key], field);
    }
    secret(&spec.backup.store.secret_ref.name, &["accessKeyId", "secretAccessKey"], "spec.backup.store.secretRef");
    if let Some(code) = &spec.code {
        let keys: &[&str] = if code.repository.starts_with("ssh://") {
            &["ssh-privatekey", "known_hosts"]
        } else {
            &["username", "password"]
        };
        secret(&code.secret_ref.name, keys, "spec.code.secretRef");
    }
    for r in &spec.runner.image_pull_secrets {
        secret(&r.name, &[PULL_KEY], "spec.runner.imagePullSecrets");
    }
    n.deployments.extend(spec.application.workloads.iter().map(|w| w.name.clone()));
    for (field, check) in spec.all_checks() {
        n.deployments.extend(check.workload.iter().map(|w| w.name.clone()));
        n.deployments.extend(check.logs.iter().map(|l| l.workload.name.clone()));
        for r in check.job.iter().flat_map(|j| &j.env_from_secrets) {
            n.secrets.entry(r.name.clone()).or_default();
        }
        let Some((r, sequence)) = check.sequence.as_ref().and_then(|s| Some((s.secret_ref.as_ref()?, s))) else {
            continue;
        };
        let of = n.secrets.entry(r.name.clone()).or_default();
        for text in sequence.steps.iter().flat_map(templates_of) {
            for key in variables(text).iter().filter_map(|v| v.strip_prefix("secret.")) {
                of.entry(key.to_owned()).or_insert_with(|| field.to_owned());
            }
        }
    }
    let flag = &spec.application.flag.config_map_key_ref;
    let sql = &spec.migration;
    n.config_maps.extend([flag, &sql.up.config_map_key_ref, &sql.down.config_map_key_ref].map(|r| r.name.clone()));
    n.config_maps.extend(spec.notifications.templates_config_map_ref.as_ref().map(|r| r.name.clone()));
    n
}

/// Templates of a request.
pub(crate) fn templates_of(step: &crate::api::HttpStep) -> Vec<&str> {
    let mut all = vec![step.url.as_str()];
    all.extend(step.headers.values().map(String::as_str));
    all.extend(step.body.as_deref());
    all.extend(step.expect.iter().filter_map(|e| e.equals.as_deref()));
    all
}
