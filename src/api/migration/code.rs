//! Backup of the code: a tag and a branch that stay where the application's old version was.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::api::NameRef;

/// Tag and branch to be pushed before anything is changed.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CodeBackup {
    /// Repository, by ssh or https, without user or password: `ssh://git@git.example.com/shop.git`.
    #[schemars(length(max = 1024))]
    #[x_kube(validation = Rule::new("self.startsWith('ssh://') || self.startsWith('https://')").message("repository must begin with ssh:// or https://, for example ssh://git@git.example.com/shop.git"))]
    #[x_kube(validation = Rule::new("!self.matches('^[a-z]+://[^/@]*:[^/@]*@')").message("repository must not hold a password: put username and password into the Secret of code.secretRef"))]
    pub repository: String,
    /// Full hash of the commit that is deployed now, 40 hex digits.
    #[schemars(regex(pattern = r"^[0-9a-f]{40}$"))]
    pub commit: String,
    /// Annotated tag on that commit. There already on the same commit is success, on another one a failure.
    #[serde(default = "tag")]
    #[schemars(length(min = 1, max = 200), regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9._/-]*$"))]
    pub tag: String,
    /// Branch at that commit. Same rules.
    #[serde(default = "branch")]
    #[schemars(length(min = 1, max = 200), regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9._/-]*$"))]
    pub branch: String,
    /// Message of the tag.
    #[serde(default = "message")]
    #[schemars(length(min = 1, max = 1024))]
    pub message: String,
    /// Secret with `ssh-privatekey` and `known_hosts` for ssh; `username`, `password` and, for a private authority,
    /// `ca.crt` for https.
    pub secret_ref: NameRef,
}

fn tag() -> String {
    "pre-credit-migration-v1".into()
}
fn branch() -> String {
    "backup/pre-credit-migration".into()
}
fn message() -> String {
    "Before the credit migration".into()
}
