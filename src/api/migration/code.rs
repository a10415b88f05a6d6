//! Backup of the code: a tag and a branch at the application's old version.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::api::NameRef;

/// Tag and branch that are pushed before anything is changed.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CodeBackup {
    /// Repository, by ssh or https, without user or password: `ssh://git@git.example.com/shop.git`.
    #[schemars(length(max = 1024))]
    #[x_kube(
        validation = Rule::new("self.startsWith('ssh://') || self.startsWith('https://')")
            .message("repository must start with ssh:// or https://, for example ssh://git@git.example.com/shop.git")
    )]
    #[x_kube(
        validation = Rule::new("!self.matches('^[a-z]+://[^/@]*:[^/@]*@')")
            .message("repository must not contain a password: put username and password into the Secret of \
                code.secretRef")
    )]
    pub repository: String,
    /// Full hash of the deployed commit, 40 hex digits.
    #[schemars(regex(pattern = r"^[0-9a-f]{40}$"))]
    pub commit: String,
    /// Annotated tag on that commit. An existing tag on the same commit is a success, on another commit a failure.
    #[serde(default = "tag")]
    #[schemars(length(min = 1, max = 200), regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9._/-]*$"))]
    pub tag: String,
    /// Branch at that commit. The same rules apply.
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
