//! The kubectl plugin: writes `MigrationDecision`s, so that nobody hunts for a UID or a digest at night.
//!
//! Each verb reads the migration, says what it is about to decide on, and creates one decision in the name under which the
//! API server knows the caller.

use clap::{Args, Parser, Subcommand};
use k8s_openapi::{api::authentication::v1::SelfSubjectReview, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{
    Api, Client, Config, ResourceExt,
    api::PostParams,
    config::{KubeConfigOptions, KubeconfigError},
};

use crate::api::{CreditMigration, Decision, MigrationDecision, MigrationDecisionSpec, Phase};

/// Command line.
#[derive(Parser, Debug)]
#[command(
    name = "kubectl-creditmigration",
    bin_name = "kubectl creditmigration",
    version,
    about = "Decide on credit migrations"
)]
pub struct Cli {
    /// Namespace; the context's own when absent.
    #[arg(short, long, global = true)]
    namespace: Option<String>,
    /// Context of the kubeconfig.
    #[arg(long, global = true)]
    context: Option<String>,
    /// User to impersonate.
    #[arg(long = "as", global = true)]
    impersonate: Option<String>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Approve the plan as it stands: `kubectl creditmigration approve simplify-credits`.
    Approve(Target),
    /// Refuse the plan as it stands.
    Reject(Target),
    /// Stop: before the window nothing was changed, later the change is undone.
    Abort(Target),
    /// Go back to the old version: `kubectl creditmigration rollback simplify-credits --confirm --reason "..."`.
    Rollback {
        #[command(flatten)]
        target: Target,
        /// Without it nothing is done but to say what would be.
        #[arg(long)]
        confirm: bool,
    },
}

#[derive(Args, Debug)]
struct Target {
    /// Name of the CreditMigration.
    name: String,
    /// Why; it is kept with the decision.
    #[arg(long)]
    reason: Option<String>,
}

/// What keeps a verb from being carried out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No usable kubeconfig.
    #[error("{0}; next: kubectl config get-contexts")]
    Kubeconfig(#[from] KubeconfigError),
    /// Not in a cluster either.
    #[error("{0}")]
    Infer(#[from] kube::config::InferConfigError),
    /// The API server refused; its message names the rule.
    #[error("{}", short(.0))]
    Kube(#[from] kube::Error),
    /// The verb does not fit the migration's state.
    #[error("{0}")]
    Unfit(String),
}

/// What the API server says, without the whole of its answer.
fn short(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// Carries out one verb; returns what to print.
pub async fn run(cli: Cli) -> Result<String, Error> {
    let mut config = match &cli.context {
        Some(context) => {
            let options = KubeConfigOptions { context: Some(context.clone()), ..Default::default() };
            Config::from_kubeconfig(&options).await?
        }
        None => Config::infer().await?,
    };
    if cli.impersonate.is_some() {
        config.auth_info.impersonate = cli.impersonate;
    }
    let namespace = cli.namespace.unwrap_or_else(|| config.default_namespace.clone());
    let client = Client::try_from(config)?;
    let (decision, target, confirmed) = match cli.verb {
        Verb::Approve(target) => (Decision::Execute, target, true),
        Verb::Reject(target) => (Decision::Reject, target, true),
        Verb::Abort(target) => (Decision::Abort, target, true),
        Verb::Rollback { target, confirm } => (Decision::Revert, target, confirm),
    };
    let migration = Api::<CreditMigration>::namespaced(client.clone(), &namespace).get(&target.name).await?;
    let by = whoami(&client).await?;
    let wanted = plan(&migration, decision, &by, target.reason)?;
    if !confirmed {
        return Err(Error::Unfit(format!("{}; nothing was done; next: the same with --confirm", standing(&migration))));
    }
    let object = MigrationDecision {
        metadata: ObjectMeta { generate_name: Some(format!("{}-", target.name)), ..Default::default() },
        spec: wanted,
    };
    let made = Api::<MigrationDecision>::namespaced(client, &namespace).create(&PostParams::default(), &object).await?;
    Ok(format!("migrationdecision/{} created: {decision:?} by {by} on {}", made.name_any(), standing(&migration)))
}

async fn whoami(client: &Client) -> Result<String, Error> {
    let review = Api::<SelfSubjectReview>::all(client.clone())
        .create(&PostParams::default(), &SelfSubjectReview::default())
        .await?;
    review
        .status
        .and_then(|s| s.user_info)
        .and_then(|u| u.username)
        .ok_or_else(|| Error::Unfit("the API server does not tell who you are".into()))
}

/// The decision, or why it would do nothing. Pure.
fn plan(
    m: &CreditMigration,
    decision: Decision,
    by: &str,
    reason: Option<String>,
) -> Result<MigrationDecisionSpec, Error> {
    let status = m.status.as_ref();
    let phase = status.and_then(|s| s.phase);
    let digest = status.and_then(|s| s.plan.as_ref()).and_then(|p| p.digest.clone());
    let refuse = |why: &str| Err(Error::Unfit(format!("{why}; {}", standing(m))));
    match decision {
        Decision::Execute | Decision::Reject if phase != Some(Phase::AwaitingApproval) => {
            return refuse("there is nothing to approve or reject now");
        }
        Decision::Execute if m.spec.requested_by == by => {
            return refuse("the author's own approval does not count: ask another person");
        }
        Decision::Abort | Decision::Revert
            if matches!(phase, Some(Phase::Completed | Phase::RolledBack | Phase::Cancelled)) =>
        {
            return refuse("the migration has ended");
        }
        Decision::Abort if matches!(phase, Some(Phase::RollingBack | Phase::RollbackFailed)) => {
            return refuse("it is on its way back already; after RollbackFailed the verb is rollback --confirm");
        }
        _ => {}
    }
    Ok(MigrationDecisionSpec {
        migration: m.name_any(),
        migration_uid: m.uid().unwrap_or_default(),
        decision,
        by: by.into(),
        reason,
        // Who stops must not be refused because of a plan that changed meanwhile.
        digest: if matches!(decision, Decision::Execute | Decision::Reject) { digest } else { None },
    })
}

/// Where the migration stands, in one line.
fn standing(m: &CreditMigration) -> String {
    let status = m.status.clone().unwrap_or_default();
    let phase = status.phase.map_or_else(|| "not begun".into(), |p| format!("{p:?}"));
    let writes = status.writes.map_or_else(String::new, |w| format!(", writes {w:?}"));
    let message = status.conditions.iter().find(|c| c.type_ == "Ready").map(|c| c.message.clone()).unwrap_or_default();
    format!("{}: {phase} ({}){writes}: {message}", m.name_any(), status.progress.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::{CreditMigrationStatus, Plan},
        machine::fixture::spec,
    };

    fn migration(phase: Phase) -> CreditMigration {
        let plan =
            Plan { digest: Some("sha256:x".into()), generation: 1, up_sha256: "u".into(), down_sha256: "d".into() };
        let mut m = CreditMigration::new("m", spec());
        m.status = Some(CreditMigrationStatus { phase: Some(phase), plan: Some(plan), ..Default::default() });
        m
    }

    #[rstest::rstest]
    #[case(Decision::Execute, Phase::AwaitingApproval, "ann", Some("sha256:x"))]
    #[case(Decision::Reject, Phase::AwaitingApproval, "author", Some("sha256:x"))]
    #[case(Decision::Abort, Phase::Preparing, "author", None)]
    #[case(Decision::Abort, Phase::Executing, "ann", None)]
    #[case(Decision::Revert, Phase::RollbackFailed, "ann", None)]
    fn a_word_in_its_time(
        #[case] decision: Decision,
        #[case] phase: Phase,
        #[case] by: &str,
        #[case] digest: Option<&str>,
    ) {
        let spec = plan(&migration(phase), decision, by, None).unwrap();
        assert_eq!((spec.by.as_str(), spec.digest.as_deref()), (by, digest));
    }

    #[rstest::rstest]
    #[case(Decision::Execute, Phase::AwaitingApproval, "author", "own approval does not count")]
    #[case(Decision::Execute, Phase::Preparing, "ann", "nothing to approve")]
    #[case(Decision::Reject, Phase::Monitoring, "ann", "nothing to approve")]
    #[case(Decision::Abort, Phase::Completed, "ann", "has ended")]
    #[case(Decision::Abort, Phase::RollbackFailed, "ann", "way back already")]
    #[case(Decision::Revert, Phase::RolledBack, "ann", "has ended")]
    fn a_word_that_would_do_nothing(
        #[case] decision: Decision,
        #[case] phase: Phase,
        #[case] by: &str,
        #[case] why: &str,
    ) {
        let error = plan(&migration(phase), decision, by, None).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}
