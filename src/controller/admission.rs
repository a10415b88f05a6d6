//! Reads the admission policies and their bindings, on which the trust in names and reports rests.

use futures::future::try_join_all;
use k8s_openapi::api::admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding};
use kube::{Api, Client, api::ListParams};

use super::{Error, client, metrics::Metrics};
use crate::{
    api::{CreditMigration, MigrationDecision, MigrationRun},
    shared::admission::{self, DECISIONS, Installed, Trust},
};

/// How far names and reports can be trusted; `decision_policy` is the name of the policy on decisions.
pub(super) async fn trust(client: &Client, decision_policy: &str) -> Result<Trust, Error> {
    let installed = try_join_all(admission::names(decision_policy).map(|name| installed(client, name))).await?;
    Ok(admission::trust(decision_policy, &installed))
}

async fn installed(client: &Client, name: &str) -> Result<Installed, Error> {
    let policies: Api<ValidatingAdmissionPolicy> = Api::all(client.clone());
    let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(client.clone());
    let (policy, binding) = futures::try_join!(policies.get_opt(name), bindings.get_opt(name))?;
    Ok(Installed { policy, binding })
}

/// Options of `check-install`.
#[derive(clap::Args, Clone, Debug)]
pub struct InstallCheck {
    /// Name of the ValidatingAdmissionPolicy, and of its binding, that verifies the names in decisions.
    #[arg(long, default_value = DECISIONS)]
    pub decision_policy: String,
    /// Namespace in which the kinds are listed.
    #[arg(long, env = "POD_NAMESPACE", default_value = "default")]
    pub namespace: String,
}

/// The check of `helm test`: the three kinds are served, and all policies exist and are strict enough.
///
/// # Errors
/// `AdmissionPolicyMissing` with what is missing or weak; `Kube` when a kind is not served.
pub async fn check_install(options: &InstallCheck) -> Result<String, Error> {
    let client = client::connect(&Metrics::default()).await?;
    let (one, namespace) = (ListParams::default().limit(1), &options.namespace);
    Api::<CreditMigration>::namespaced(client.clone(), namespace).list(&one).await?;
    Api::<MigrationDecision>::namespaced(client.clone(), namespace).list(&one).await?;
    Api::<MigrationRun>::namespaced(client.clone(), namespace).list(&one).await?;
    match trust(&client, &options.decision_policy).await?.problem {
        Some(problem) => Err(Error::AdmissionPolicyMissing(problem)),
        None => Ok("the three kinds are served, decisions, authors and reports are guarded".into()),
    }
}
