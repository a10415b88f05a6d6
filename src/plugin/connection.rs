//! The connection to the API server, as kubectl would make it.

use std::time::Duration;

use clap::Args;
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        authentication::v1::SelfSubjectReview,
        authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec},
        core::v1::ConfigMap,
    },
};
use kube::{
    Api, Client, Config, ResourceExt,
    api::{ListParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};

use super::{PluginError, inspect::record::Record};
use crate::{
    api::{CreditMigration, KeyRef, MigrationDecision, MigrationRun, sha256},
    telemetry,
};

/// Longest wait for a response.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Options of kubectl that every verb has.
#[derive(Args, Debug, Default)]
pub(super) struct ConnectionOptions {
    /// Namespace; the context's own when absent.
    #[arg(short, long, global = true)]
    pub(super) namespace: Option<String>,
    /// Path of the kubeconfig; that of kubectl when absent.
    #[arg(long, global = true, value_name = "FILE")]
    pub(super) kubeconfig: Option<std::path::PathBuf>,
    /// Context of the kubeconfig.
    #[arg(long, global = true)]
    pub(super) context: Option<String>,
    /// User to impersonate.
    #[arg(long = "as", global = true, value_name = "USER")]
    pub(super) impersonate: Option<String>,
    /// Group to impersonate; may be repeated.
    #[arg(long = "as-group", global = true, value_name = "GROUP", requires = "impersonate")]
    pub(super) impersonate_groups: Vec<String>,
}

/// Client and namespace.
#[derive(Clone)]
pub(super) struct ClusterConnection {
    /// The client.
    pub(super) client: Client,
    /// Namespace of the options, otherwise that of the context.
    pub(super) namespace: String,
}

impl ClusterConnection {
    /// Connects. `streams`: responses have no time limit.
    pub(super) async fn new(options: &ConnectionOptions, streams: bool) -> Result<Self, PluginError> {
        let chosen = KubeConfigOptions { context: options.context.clone(), ..Default::default() };
        let mut config = match (&options.kubeconfig, &options.context) {
            (Some(path), _) => Config::from_custom_kubeconfig(Kubeconfig::read_from(path)?, &chosen).await?,
            (None, Some(_)) => Config::from_kubeconfig(&chosen).await?,
            (None, None) => Config::infer().await?,
        };
        if options.impersonate.is_some() {
            config.auth_info.impersonate.clone_from(&options.impersonate);
            config.auth_info.impersonate_groups =
                Some(options.impersonate_groups.clone()).filter(|groups| !groups.is_empty());
        }
        config.read_timeout = (!streams).then_some(READ_TIMEOUT);
        let namespace = options.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        Ok(Self { client: Client::try_from(config)?, namespace })
    }

    /// An API of the namespace.
    pub(super) fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Whether the caller has the permission for a verb, such as `create`, on objects of a kind in the namespace, or on
    /// the one with this name. The message of a refused request does not show that: policies and webhooks have texts of
    /// their own.
    pub(super) async fn may<K>(&self, verb: &str, name: Option<&str>) -> Result<bool, PluginError>
    where
        K: kube::Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        let wanted = ResourceAttributes {
            group: Some(K::group(&()).into_owned()),
            resource: Some(K::plural(&()).into_owned()),
            namespace: Some(self.namespace.clone()),
            verb: Some(verb.to_owned()),
            name: name.map(str::to_owned),
            ..Default::default()
        };
        let spec = SelfSubjectAccessReviewSpec { resource_attributes: Some(wanted), ..Default::default() };
        let review = Api::<SelfSubjectAccessReview>::all(self.client.clone())
            .create(&PostParams::default(), &SelfSubjectAccessReview { spec, ..Default::default() })
            .await?;
        review
            .status
            .map(|s| s.allowed)
            .ok_or_else(|| PluginError::InvalidState("the API server does not report what you may do".into()))
    }

    /// The migration.
    pub(super) async fn migration(&self, name: &str) -> Result<CreditMigration, PluginError> {
        Ok(self.api::<CreditMigration>().get(name).await?)
    }

    /// All objects that the evidence of a migration is read from.
    pub(super) async fn record(&self, name: &str) -> Result<Record, PluginError> {
        let migration = self.migration(name).await?;
        let uid = migration.uid().unwrap_or_default();
        let all = ListParams::default();
        let mut decisions = self.api::<MigrationDecision>().list(&all).await?.items;
        decisions.retain(|d| d.spec.migration == name && d.spec.migration_uid == uid);
        decisions.sort_by_key(|d| (d.metadata.creation_timestamp.as_ref().map(|t| t.0), d.name_any()));
        let mut runs = self.api::<MigrationRun>().list(&all).await?.items;
        runs.retain(|r| r.spec.migration_uid == uid);
        let sql = &migration.spec.migration;
        let sql = [self.sha_of(&sql.up.config_map_key_ref).await, self.sha_of(&sql.down.config_map_key_ref).await];
        Ok(Record { at: telemetry::now(), migration, decisions, runs, sql })
    }

    /// SHA-256 of a ConfigMap's key; absent where it cannot be read.
    async fn sha_of(&self, key: &KeyRef) -> Option<String> {
        let map = self.api::<ConfigMap>().get_opt(&key.name).await.ok()??;
        map.data?.get(&key.key).map(|text| sha256(text.as_bytes()))
    }

    /// The caller's user name, as the API server knows it.
    pub(super) async fn whoami(&self) -> Result<String, PluginError> {
        let review = Api::<SelfSubjectReview>::all(self.client.clone())
            .create(&PostParams::default(), &SelfSubjectReview::default())
            .await?;
        review
            .status
            .and_then(|s| s.user_info)
            .and_then(|u| u.username)
            .ok_or_else(|| PluginError::InvalidState("the API server does not report who you are".into()))
    }
}
