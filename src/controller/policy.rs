//! Whether names and reports can be trusted: the admission policies and their bindings must be there, and strong enough.

use futures::future::try_join_all;
use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding, ValidatingAdmissionPolicyBindingSpec,
    ValidatingAdmissionPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Api, Client, api::ListParams};

use super::Error;
use crate::api::{CreditMigration, MigrationDecision, MigrationRun, Time};

/// What a policy must cover, and what it must compare. Its binding has the same name.
struct Guard<'a> {
    name: &'a str,
    resources: &'static [&'static str],
    rule: &'static str,
    without_rule: &'static str,
}

/// Who decides comes first.
fn guards(decision_policy: &str) -> [Guard<'_>; 3] {
    [
        Guard {
            name: decision_policy,
            resources: &["migrationdecisions"],
            rule: "object.spec.by == request.userInfo.username",
            without_rule: "does not compare spec.by with the user's name",
        },
        Guard {
            name: "creditmigrations.creditmigration.io",
            resources: &["creditmigrations"],
            rule: "object.spec.requestedBy == request.userInfo.username",
            without_rule: "does not compare spec.requestedBy with the user's name",
        },
        Guard {
            name: "migrationruns.creditmigration.io",
            resources: &["migrationruns", "migrationruns/status"],
            rule: "variables.pod.startsWith(object.metadata.name + '-')",
            without_rule: "does not compare the run's name with that of the pod which reports",
        },
    ]
}

/// How far names and reports can be trusted.
pub(super) struct Trust {
    /// Why they cannot be; `None` when all policies and bindings are there and deny.
    pub(super) problem: Option<String>,
    /// Decisions made before this time were not held to anybody.
    pub(super) since: Option<Time>,
}

/// Looks at policies and bindings.
pub(super) async fn trust(client: &Client, decision_policy: &str) -> Result<Trust, Error> {
    let guards = guards(decision_policy);
    let seen = try_join_all(guards.iter().map(|guard| look(client, guard))).await?;
    let since = seen.first().and_then(|decisions| decisions.since);
    Ok(Trust { problem: seen.into_iter().find_map(|t| t.problem), since })
}

async fn look(client: &Client, guard: &Guard<'_>) -> Result<Trust, Error> {
    let name = guard.name;
    let policies: Api<ValidatingAdmissionPolicy> = Api::all(client.clone());
    let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(client.clone());
    let (policy, binding) = futures::try_join!(policies.get_opt(name), bindings.get_opt(name))?;
    let created = |m: &ObjectMeta| m.creation_timestamp.as_ref().map(|t| t.0);
    let since =
        policy.as_ref().map(|p| created(&p.metadata)).max(binding.as_ref().map(|b| created(&b.metadata))).flatten();
    Ok(Trust { problem: problem(guard, policy.and_then(|p| p.spec).as_ref(), binding.map(|b| b.spec).as_ref()), since })
}

/// The first way round a policy and its binding. Pure.
fn problem(
    guard: &Guard<'_>,
    policy: Option<&ValidatingAdmissionPolicySpec>,
    binding: Option<&ValidatingAdmissionPolicyBindingSpec>,
) -> Option<String> {
    let (kind, why) = match (policy, binding) {
        (None, _) => ("ValidatingAdmissionPolicy", "is missing"),
        (_, None) => ("ValidatingAdmissionPolicyBinding", "is missing"),
        (Some(policy), Some(binding)) => {
            let weak = weak_policy(policy, guard).map(|why| ("ValidatingAdmissionPolicy", why));
            weak.or_else(|| weak_binding(binding, guard.name).map(|why| ("ValidatingAdmissionPolicyBinding", why)))?
        }
    };
    Some(format!("{kind} {} {why}", guard.name))
}

fn weak_policy(policy: &ValidatingAdmissionPolicySpec, guard: &Guard<'_>) -> Option<&'static str> {
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
    let covers = |resource: &&str| {
        matched.resource_rules.iter().flatten().any(|rule| {
            let has = |list: &Option<Vec<String>>, wanted: &str, all: &str| {
                list.iter().flatten().any(|x| x == wanted || x == all)
            };
            // `*` stands for no subresource
            has(&rule.resources, resource, if resource.contains('/') { "*/*" } else { "*" })
                && has(&rule.operations, "CREATE", "*")
                && has(&rule.operations, "UPDATE", "*")
                && rule.resource_names.iter().flatten().next().is_none()
        })
    };
    if !guard.resources.iter().all(covers) {
        return Some("does not cover CREATE and UPDATE of what it is named after");
    }
    (!policy.validations.iter().flatten().any(|v| v.expression.contains(guard.rule))).then_some(guard.without_rule)
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
    /// Name of the ValidatingAdmissionPolicy, and of its binding, that holds names in decisions to their authors.
    #[arg(long, default_value = "migrationdecisions.creditmigration.io")]
    pub decision_policy: String,
    /// Namespace in which the kinds are listed.
    #[arg(long, env = "POD_NAMESPACE", default_value = "default")]
    pub namespace: String,
}

/// What `helm test` runs: the three kinds are served, and all policies are there and strong enough.
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
        None => Ok("the three kinds are served, decisions, authors and reports are guarded".into()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// The chart's three policies with its default values, as charts/generate renders them.
    fn rendered() -> Vec<Value> {
        let text =
            std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/manifests/base/operator.yaml")).unwrap();
        serde_yaml_ng::Deserializer::from_str(&text)
            .map(|document| <Value as serde::Deserialize>::deserialize(document).unwrap())
            .filter(|object| object["kind"] == "ValidatingAdmissionPolicy")
            .collect()
    }

    /// What stands in the way of a policy of the chart after a change.
    fn weakness(name: &str, change: impl FnOnce(&mut Value)) -> Option<String> {
        let mut policy = rendered().into_iter().find(|p| p["metadata"]["name"] == name).unwrap();
        change(&mut policy["spec"]);
        let guard = guards("migrationdecisions.creditmigration.io").into_iter().find(|g| g.name == name).unwrap();
        let binding = serde_json::from_value(json!({"policyName": name, "validationActions": ["Deny"]})).unwrap();
        problem(&guard, Some(&serde_json::from_value(policy["spec"].take()).unwrap()), Some(&binding))
    }

    const DECISIONS: &str = "migrationdecisions.creditmigration.io";
    const MIGRATIONS: &str = "creditmigrations.creditmigration.io";
    const RUNS: &str = "migrationruns.creditmigration.io";

    #[test]
    fn the_policies_of_the_chart_are_trusted() {
        assert_eq!(rendered().len(), guards("").len());
        for name in [DECISIONS, MIGRATIONS, RUNS] {
            assert_eq!(weakness(name, |_| {}), None);
        }
    }

    #[rstest::rstest]
    fn a_weak_policy_is_not(
        #[values(DECISIONS, MIGRATIONS, RUNS)] name: &str,
        #[values(
            ("/failurePolicy", json!("Ignore"), "failurePolicy"),
            ("/matchConditions", json!([{"name": "n", "expression": "false"}]), "matchConditions"),
            ("/matchConstraints", Value::Null, "matches nothing"),
            ("/matchConstraints/namespaceSelector", json!({"matchLabels": {"a": "b"}}), "selector"),
            ("/matchConstraints/resourceRules/0/operations", json!(["UPDATE"]), "cover"),
            ("/matchConstraints/resourceRules/0/resources", json!(["*"]), "cover"),
            ("/matchConstraints/resourceRules/0/resourceNames", json!(["one"]), "cover"),
            ("/validations", json!([{"expression": "true"}]), "does not compare"),
        )]
        (path, value, why): (&str, Value, &str),
    ) {
        let (parent, key) = path.rsplit_once('/').unwrap();
        // A wildcard covers a kind, not its status.
        let covered = name != RUNS && value == json!(["*"]);
        let found = weakness(name, |spec| spec.pointer_mut(parent).unwrap()[key] = value);
        assert_eq!(found.as_ref().is_some_and(|w| w.contains(why)), !covered, "{found:?}");
    }

    #[test]
    fn a_missing_policy_or_binding_is_not() {
        let [guard, ..] = guards("p");
        let policy = ValidatingAdmissionPolicySpec::default();
        assert_eq!(problem(&guard, None, None).unwrap(), "ValidatingAdmissionPolicy p is missing");
        assert_eq!(problem(&guard, Some(&policy), None).unwrap(), "ValidatingAdmissionPolicyBinding p is missing");
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
