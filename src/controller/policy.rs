//! Whether names in decisions can be trusted: the admission policy and its binding must be there, and strong enough.

use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding, ValidatingAdmissionPolicyBindingSpec,
    ValidatingAdmissionPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Api, Client, api::ListParams};

use super::Error;
use crate::api::{CreditMigration, MigrationDecision, MigrationRun, Time};

/// What a policy must compare to hold a decision to its author.
const NAME_RULE: &str = "object.spec.by == request.userInfo.username";

/// How far names in decisions can be trusted.
pub(super) struct Trust {
    /// Why they cannot be; `None` when policy and binding are there and deny.
    pub(super) problem: Option<String>,
    /// Decisions made before this time were not held to anybody.
    pub(super) since: Option<Time>,
}

/// Looks at policy and binding of this name.
pub(super) async fn trust(client: &Client, name: &str) -> Result<Trust, Error> {
    let policies: Api<ValidatingAdmissionPolicy> = Api::all(client.clone());
    let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(client.clone());
    let (policy, binding) = futures::try_join!(policies.get_opt(name), bindings.get_opt(name))?;
    let created = |m: &ObjectMeta| m.creation_timestamp.as_ref().map(|t| t.0);
    let since =
        policy.as_ref().map(|p| created(&p.metadata)).max(binding.as_ref().map(|b| created(&b.metadata))).flatten();
    let problem = match (policy.and_then(|p| p.spec), binding.map(|b| b.spec)) {
        (None, _) => Some(format!("ValidatingAdmissionPolicy {name} is missing")),
        (_, None) => Some(format!("ValidatingAdmissionPolicyBinding {name} is missing")),
        (Some(policy), Some(binding)) => {
            weak_policy(&policy).map(|why| format!("ValidatingAdmissionPolicy {name} {why}")).or_else(|| {
                weak_binding(&binding, name).map(|why| format!("ValidatingAdmissionPolicyBinding {name} {why}"))
            })
        }
    };
    Ok(Trust { problem, since })
}

/// The first way round the policy, if there is one. Pure.
fn weak_policy(policy: &ValidatingAdmissionPolicySpec) -> Option<&'static str> {
    if policy.failure_policy.as_deref() == Some("Ignore") {
        return Some("has failurePolicy Ignore");
    }
    if policy.match_conditions.iter().flatten().next().is_some() {
        return Some("has matchConditions");
    }
    let Some(matched) = &policy.match_constraints else { return Some("matches nothing") };
    let selects = |s: &Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector>| {
        s.as_ref().is_some_and(|s| {
            s.match_labels.as_ref().is_some_and(|l| !l.is_empty())
                || s.match_expressions.iter().flatten().next().is_some()
        })
    };
    if selects(&matched.namespace_selector)
        || selects(&matched.object_selector)
        || matched.exclude_resource_rules.iter().flatten().next().is_some()
    {
        return Some("leaves objects out by a selector");
    }
    let covers = matched.resource_rules.iter().flatten().any(|rule| {
        let has = |list: &Option<Vec<String>>, wanted: &str| list.iter().flatten().any(|x| x == wanted || x == "*");
        has(&rule.resources, "migrationdecisions")
            && has(&rule.operations, "CREATE")
            && has(&rule.operations, "UPDATE")
            && rule.resource_names.iter().flatten().next().is_none()
    });
    if !covers {
        return Some("does not cover CREATE and UPDATE of migrationdecisions");
    }
    (!policy.validations.iter().flatten().any(|v| v.expression.contains(NAME_RULE)))
        .then_some("does not compare spec.by with the user's name")
}

fn weak_binding(binding: &ValidatingAdmissionPolicyBindingSpec, policy: &str) -> Option<&'static str> {
    if binding.policy_name != policy {
        return Some("binds another policy");
    }
    if binding.match_resources.is_some() {
        return Some("leaves objects out by matchResources");
    }
    (!binding.validation_actions.iter().any(|a| a == "Deny")).then_some("does not deny")
}

/// Options of `check-install`.
#[derive(clap::Args, Clone, Debug)]
pub struct InstallCheck {
    /// Name of the ValidatingAdmissionPolicy, and of its binding.
    #[arg(long, default_value = "migrationdecisions.creditmigration.io")]
    pub decision_policy: String,
    /// Namespace in which the kinds are listed.
    #[arg(long, env = "POD_NAMESPACE", default_value = "default")]
    pub namespace: String,
}

/// What `helm test` runs: the three kinds are served, and names in decisions are held to their authors.
///
/// # Errors
/// `Unguarded` with what is missing or weak; `Kube` when a kind is not served.
pub async fn check_install(options: &InstallCheck) -> Result<String, Error> {
    let client = super::client().await?;
    let (one, namespace) = (ListParams::default().limit(1), &options.namespace);
    Api::<CreditMigration>::namespaced(client.clone(), namespace).list(&one).await?;
    Api::<MigrationDecision>::namespaced(client.clone(), namespace).list(&one).await?;
    Api::<MigrationRun>::namespaced(client.clone(), namespace).list(&one).await?;
    match trust(&client, &options.decision_policy).await?.problem {
        Some(problem) => Err(Error::Unguarded(problem)),
        None => Ok("the three kinds are served, decisions are guarded".into()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn policy(change: impl FnOnce(&mut Value)) -> ValidatingAdmissionPolicySpec {
        let mut value = json!({
            "failurePolicy": "Fail",
            "matchConstraints": {"namespaceSelector": {}, "resourceRules": [{
                "apiGroups": ["creditmigration.io"], "apiVersions": ["*"], "operations": ["CREATE", "UPDATE"],
                "resources": ["migrationdecisions"],
            }]},
            "validations": [{"expression": "request.operation != 'CREATE' || object.spec.by == request.userInfo.username"}],
        });
        change(&mut value);
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_strong_policy_is_trusted() {
        assert_eq!(weak_policy(&policy(|_| {})), None);
    }

    #[rstest::rstest]
    #[case("/failurePolicy", json!("Ignore"), "failurePolicy")]
    #[case("/matchConstraints/namespaceSelector", json!({"matchLabels": {"a": "b"}}), "selector")]
    #[case("/matchConstraints/resourceRules/0/operations", json!(["UPDATE"]), "cover")]
    #[case("/matchConstraints/resourceRules/0/resources", json!(["creditmigrations"]), "cover")]
    #[case("/validations/0/expression", json!("true"), "compare")]
    fn a_weak_policy_is_not(#[case] path: &str, #[case] value: Value, #[case] why: &str) {
        let weak = policy(|p| *p.pointer_mut(path).unwrap() = value);
        assert!(weak_policy(&weak).is_some_and(|w| w.contains(why)), "{:?}", weak_policy(&weak));
    }

    #[rstest::rstest]
    #[case(json!({"policyName": "p", "validationActions": ["Deny"]}), None)]
    #[case(json!({"policyName": "p", "validationActions": ["Warn"]}), Some("does not deny"))]
    #[case(json!({"policyName": "q", "validationActions": ["Deny"]}), Some("binds another policy"))]
    #[case(json!({"policyName": "p", "validationActions": ["Deny"], "matchResources": {}}), Some("leaves objects out by matchResources"))]
    fn a_binding_must_deny_everywhere(#[case] binding: Value, #[case] weak: Option<&str>) {
        assert_eq!(weak_binding(&serde_json::from_value(binding).unwrap(), "p"), weak);
    }
}
