//! Volumes of a run's pod. Pure.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{
    ConfigMapProjection, ConfigMapVolumeSource, EmptyDirVolumeSource, KeyToPath, ProjectedVolumeSource,
    SecretVolumeSource, Volume, VolumeMount, VolumeProjection,
};

use crate::api::{
    CreditMigrationSpec, KeyRef, NotificationChannel, SlackChannel, Task, TaskSecrets, WebhookChannel, mounts,
};

/// Volumes for what the spec names, each optional: a missing Secret becomes the runner's message instead of a pod that
/// never starts.
pub(super) fn for_task(plan: &CreditMigrationSpec, task: Task) -> Vec<(Volume, VolumeMount)> {
    let connection = &plan.database.connection;
    let mut all = vec![
        secret(mounts::DATABASE, &connection.secret_ref.name, connection.secret_ref.key.as_deref().map(of_connection)),
        secret("store", &plan.backup.store.secret_ref.name, None),
        sql(&plan.migration.up.config_map_key_ref, &plan.migration.down.config_map_key_ref),
        (
            Volume { name: "tmp".into(), empty_dir: Some(EmptyDirVolumeSource::default()), ..Default::default() },
            VolumeMount { name: "tmp".into(), mount_path: "/tmp".into(), ..Default::default() },
        ),
    ];
    if let Some(KeyRef { name, key }) = &connection.ca_secret_ref {
        all.push(secret("database-ca", name, Some(vec![item(key, mounts::DATABASE_CA)])));
    }
    if let Some(copy) = plan.rehearsal.connection.as_ref().filter(|_| task.spec().secrets.contains(&TaskSecrets::Copy))
    {
        all.push(secret(mounts::COPY, &copy.secret_ref.name, copy.secret_ref.key.as_deref().map(of_connection)));
        if let Some(KeyRef { name, key }) = &copy.ca_secret_ref {
            all.push(secret("copy-ca", name, Some(vec![item(key, mounts::COPY_CA)])));
        }
    }
    for (n, name) in further_secrets(plan, task).into_iter().enumerate() {
        let (volume, mount) = secret(&format!("secret-{n}"), &name, None);
        let path = format!("{}/{}/{name}", mounts::ROOT, mounts::SECRETS);
        all.push((volume, VolumeMount { mount_path: path, ..mount }));
    }
    if task.sends_notices()
        && let Some(templates) = &plan.notifications.templates_config_map_ref
    {
        let source = ConfigMapVolumeSource { name: templates.name.clone(), optional: Some(true), ..Default::default() };
        let volume = Volume { name: mounts::TEMPLATES.into(), config_map: Some(source), ..Default::default() };
        all.push((volume, mount(mounts::TEMPLATES)));
    }
    all
}

/// Names of the Secrets that only this task needs.
fn further_secrets(plan: &CreditMigrationSpec, task: Task) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for secrets in task.spec().secrets {
        match secrets {
            TaskSecrets::Code => names.extend(plan.code.as_ref().map(|code| code.secret_ref.name.clone())),
            // A volume of its own.
            TaskSecrets::Copy => {}
            TaskSecrets::Channels => plan.notifications.channels.iter().for_each(|c| names.extend(of_channel(c))),
            TaskSecrets::ChecksOf(tasks) => {
                let checks = tasks.iter().flat_map(|task| plan.checks_of(*task));
                names.extend(checks.filter_map(|check| Some(check.sequence?.secret_ref?.name)));
            }
        }
    }
    names
}

/// Names of the Secrets of a channel.
fn of_channel(channel: &NotificationChannel) -> Vec<String> {
    let NotificationChannel { name: _, audiences: _, slack, webhook, email } = channel;
    let mut names = vec![];
    if let Some(SlackChannel { url_secret_ref, ca_secret_ref }) = slack {
        names.extend([Some(url_secret_ref), ca_secret_ref.as_ref()].into_iter().flatten().map(key_of));
    }
    if let Some(WebhookChannel { url_secret_ref, authorization_secret_ref, ca_secret_ref }) = webhook {
        let keys = [Some(url_secret_ref), authorization_secret_ref.as_ref(), ca_secret_ref.as_ref()];
        names.extend(keys.into_iter().flatten().map(key_of));
    }
    if let Some(email) = email {
        names.extend(email.secret_ref.as_ref().map(|s| s.name.clone()));
        names.extend(email.ca_secret_ref.as_ref().map(key_of));
    }
    names
}

fn key_of(reference: &KeyRef) -> String {
    reference.name.clone()
}

fn mount(name: &str) -> VolumeMount {
    VolumeMount {
        name: name.into(),
        mount_path: format!("{}/{name}", mounts::ROOT),
        read_only: Some(true),
        ..Default::default()
    }
}

/// Last part of a path in the mounted folder.
fn file(path: &str) -> String {
    path.rsplit('/').next().unwrap_or(path).to_owned()
}

fn item(key: &str, path: &str) -> KeyToPath {
    KeyToPath { key: key.into(), path: file(path), ..Default::default() }
}

/// The key with the URL, and the certificate of the role.
fn of_connection(key: &str) -> Vec<KeyToPath> {
    let client = mounts::CLIENT_CERTIFICATE_KEYS.into_iter().flatten().map(|key| item(key, key));
    [item(key, mounts::DATABASE_URL)].into_iter().chain(client).collect()
}

/// A Secret, or some keys of it: the runner does not need the others.
fn secret(volume: &str, name: &str, items: Option<Vec<KeyToPath>>) -> (Volume, VolumeMount) {
    let source = SecretVolumeSource {
        secret_name: Some(name.into()),
        optional: Some(true),
        items,
        // Readable only by the runner's group.
        default_mode: Some(0o440),
    };
    (Volume { name: volume.into(), secret: Some(source), ..Default::default() }, mount(volume))
}

fn sql(up: &KeyRef, down: &KeyRef) -> (Volume, VolumeMount) {
    let part = |r: &KeyRef, path: &str| VolumeProjection {
        config_map: Some(ConfigMapProjection {
            name: r.name.clone(),
            optional: Some(true),
            items: Some(vec![item(&r.key, path)]),
        }),
        ..Default::default()
    };
    let source = ProjectedVolumeSource {
        sources: Some(vec![part(up, mounts::UP_SQL), part(down, mounts::DOWN_SQL)]),
        ..Default::default()
    };
    (Volume { name: "sql".into(), projected: Some(source), ..Default::default() }, mount("sql"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn plan() -> CreditMigrationSpec {
        let mut plan = serde_json::to_value(crate::api::fixtures::spec()).unwrap();
        let key = |name: &str| json!({"name": name, "key": "k"});
        let sequence =
            |secret: &str| json!({"steps": [{"name": "a", "url": "http://shop"}], "secretRef": {"name": secret}});
        plan["code"] = json!({"repository": "ssh://git/x", "commit": "0", "secretRef": {"name": "git"}});
        plan["notifications"] = json!({"templatesConfigMapRef": {"name": "words"}, "channels": [
            {"name": "a", "audiences": ["Team"], "slack": {"urlSecretRef": key("chat"), "caSecretRef": key("ca")}},
            {"name": "b", "audiences": ["Team"], "webhook": {
                "urlSecretRef": key("hook"), "authorizationSecretRef": key("token")}},
            {"name": "c", "audiences": ["Team"], "email": {
                "host": "mail", "from": "a@b", "to": ["c@d"], "secretRef": {"name": "smtp"}, "caSecretRef": key("ca")}},
        ]});
        plan["validation"]["checks"] = json!([{"name": "x", "sequence": sequence("probe")}]);
        plan["rollback"]["triggers"] = json!({"coreFunction": {"sequence": sequence("core")}});
        serde_json::from_value(plan).unwrap()
    }

    #[test]
    fn no_task_gets_what_is_anothers() {
        let (plan, none): (_, &[&str]) = (plan(), &[]);
        let channels: &[&str] = &["ca", "chat", "hook", "smtp", "token"];
        for (task, wanted) in [
            (Task::CodeBackup, &["git"] as &[&str]),
            (Task::Backup, none),
            (Task::Rehearse, none),
            (Task::Notify, channels),
            (Task::Window, channels),
            (Task::Validate, &["core", "probe"]),
            (Task::Monitor, &["core"]),
            (Task::DayCheck, none),
            (Task::RehearseRollback, none),
            (Task::Cleanup, none),
            (Task::DropParked, none),
            (Task::Preflight, &["ca", "chat", "core", "git", "hook", "probe", "smtp", "token"]),
        ] {
            let found: Vec<String> = further_secrets(&plan, task).into_iter().collect();
            assert_eq!(found, wanted, "{task:?}");
        }
    }

    /// Which form it has is known once it is read.
    #[test]
    fn of_a_connection_without_a_key_the_whole_secret_is_mounted() {
        let mounted = |plan: &CreditMigrationSpec| for_task(plan, Task::Backup)[0].0.secret.clone().unwrap().items;
        let mut plan = plan();
        let keys: Vec<String> = mounted(&plan).unwrap().into_iter().map(|item| item.key).collect();
        assert_eq!(keys, ["url", "tls.crt", "tls.key", "sslcert", "sslkey"]);
        plan.database.connection.secret_ref.key = None;
        assert_eq!(mounted(&plan), None);
    }

    #[test]
    fn the_connection_to_the_copy_is_mounted_where_a_copy_is_made_or_dropped() {
        let mut plan = plan();
        let mounted = |plan: &CreditMigrationSpec, task| {
            let names = for_task(plan, task).into_iter().map(|(volume, _)| volume.name);
            names.filter(|name| name.starts_with("copy")).collect::<Vec<_>>()
        };
        assert!(Task::ALL.iter().all(|task| mounted(&plan, *task).is_empty()));
        plan.rehearsal.connection = Some(plan.database.connection.clone());
        plan.rehearsal.connection.as_mut().unwrap().ca_secret_ref = Some(KeyRef { name: "a".into(), key: "k".into() });
        let with: Vec<Task> =
            Task::ALL.iter().copied().filter(|task| mounted(&plan, *task) == ["copy", "copy-ca"]).collect();
        assert_eq!(with, [Task::Preflight, Task::Rehearse, Task::RehearseRollback, Task::Cleanup]);
        assert!(Task::ALL.iter().all(|task| with.contains(task) || mounted(&plan, *task).is_empty()));
    }

    #[test]
    fn mounts_lie_where_the_runner_looks() {
        let paths = |task| for_task(&plan(), task).into_iter().map(|(_, m)| m.mount_path).collect::<Vec<_>>();
        assert!(paths(Task::Notify).contains(&format!("{}/{}/chat", mounts::ROOT, mounts::SECRETS)));
        assert!(paths(Task::Notify).contains(&format!("{}/{}", mounts::ROOT, mounts::TEMPLATES)));
        assert!(!paths(Task::Backup).contains(&format!("{}/{}", mounts::ROOT, mounts::TEMPLATES)));
        assert_eq!(mounts::secret("chat", "url"), "secrets/chat/url");
        // Names of volumes are DNS labels: the name of a Secret may be too long.
        assert!(for_task(&plan(), Task::Preflight).iter().all(|(v, _)| v.name.len() <= 63));
    }
}
