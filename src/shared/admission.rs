//! Whether the admission policies and their bindings are at least as strict as those of the chart. A weaker policy
//! would let a user approve in another user's name. The objects come in as plain values, from the controller or the
//! plugin.

use std::sync::LazyLock;

use k8s_openapi::{
    api::admissionregistration::v1::{
        NamedRuleWithOperations, ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
        ValidatingAdmissionPolicyBindingSpec, ValidatingAdmissionPolicySpec,
    },
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta},
};

use super::time::Time;

/// Default name of the policy on decisions.
pub const DECISIONS: &str = "migrationdecisions.creditmigration.io";

/// A policy of the chart. Its binding has the same name.
struct ChartPolicy {
    name: &'static str,
    wanted: ValidatingAdmissionPolicySpec,
}

macro_rules! chart_policy {
    ($name:literal) => {
        ChartPolicy {
            name: $name,
            wanted: serde_yaml_ng::from_str(include_str!(concat!(
                "../../charts/credit-migration-operator/files/admissionpolicies/",
                $name,
                ".yaml"
            )))
            .expect("a policy of the chart is one"),
        }
    };
}

/// Policies on decisions, on migrations (author and status), on runs (orders and reports), and on the identity of
/// runners (their pods, Jobs and tokens), and on the SQL (its author).
static POLICIES: LazyLock<[ChartPolicy; 5]> = LazyLock::new(|| {
    [
        chart_policy!("migrationdecisions.creditmigration.io"),
        chart_policy!("creditmigrations.creditmigration.io"),
        chart_policy!("migrationruns.creditmigration.io"),
        chart_policy!("runners.creditmigration.io"),
        chart_policy!("sql.creditmigration.io"),
    ]
});

/// How far names and reports can be trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trust {
    /// Why they cannot be trusted; `None` when all policies and bindings exist and deny.
    pub problem: Option<String>,
    /// The names in decisions made before this time were not verified.
    pub since: Option<Time>,
}

/// A policy and its binding of one name, as they are on the server.
#[derive(Clone, Debug, Default)]
pub struct Installed {
    /// The policy; `None` if it is missing.
    pub policy: Option<ValidatingAdmissionPolicy>,
    /// The binding; `None` if it is missing.
    pub binding: Option<ValidatingAdmissionPolicyBinding>,
}

/// Names of the policies and bindings to read; `decision_policy` is the name of those on decisions.
pub fn names(decision_policy: &str) -> [&str; 5] {
    let [_, migrations, runs, runners, sql] = &*POLICIES;
    [decision_policy, migrations.name, runs.name, runners.name, sql.name]
}

/// Judges policies and bindings, in the order of [`names`].
pub fn trust(decision_policy: &str, installed: &[Installed]) -> Trust {
    let nothing = Installed::default();
    let found = names(decision_policy).into_iter().zip(&*POLICIES).enumerate().map(|(i, (name, wanted))| {
        let Installed { policy, binding } = installed.get(i).unwrap_or(&nothing);
        let written = [policy.as_ref().map(|p| &p.metadata), binding.as_ref().map(|b| &b.metadata)];
        let since = written.into_iter().flatten().filter_map(last_written).max();
        let specs = (policy.as_ref().and_then(|p| p.spec.as_ref()), binding.as_ref().map(|b| &b.spec));
        Trust { problem: problem(name, &wanted.wanted, specs.0, specs.1), since }
    });
    let found: Vec<Trust> = found.collect();
    let since = found.first().and_then(|decisions| decisions.since);
    Trust { problem: found.into_iter().find_map(|t| t.problem), since }
}

/// When an object was created or last changed, except for its status. The creation time alone would hide a binding that
/// only warned for an hour, during which any name was accepted. The time of the last write alone would void approvals
/// at an upgrade that writes the same spec again, which leaves the generation unchanged.
fn last_written(m: &ObjectMeta) -> Option<Time> {
    if m.generation == Some(1) {
        return m.creation_timestamp.as_ref().map(|t| t.0);
    }
    let changes = m.managed_fields.iter().flatten().filter(|f| f.subresource.as_deref().is_none_or(str::is_empty));
    changes.filter_map(|f| f.time.as_ref()).chain(&m.creation_timestamp).map(|t| t.0).max()
}

/// The first way to bypass a policy and its binding. Pure.
fn problem(
    name: &str,
    wanted: &ValidatingAdmissionPolicySpec,
    policy: Option<&ValidatingAdmissionPolicySpec>,
    binding: Option<&ValidatingAdmissionPolicyBindingSpec>,
) -> Option<String> {
    let (kind, why) = match (policy, binding) {
        (None, _) => ("ValidatingAdmissionPolicy", "is missing".into()),
        (_, None) => ("ValidatingAdmissionPolicyBinding", "is missing".into()),
        (Some(policy), Some(binding)) => {
            let weak = weak_policy(policy, wanted).map(|why| ("ValidatingAdmissionPolicy", why));
            weak.or_else(|| weak_binding(binding, name).map(|why| ("ValidatingAdmissionPolicyBinding", why.into())))?
        }
    };
    Some(format!("{kind} {name} {why}"))
}

/// What the policy admits and the wanted one rejects. Additional rules, validations and variables are accepted.
fn weak_policy(policy: &ValidatingAdmissionPolicySpec, wanted: &ValidatingAdmissionPolicySpec) -> Option<String> {
    if policy.failure_policy.as_deref() == Some("Ignore") {
        return Some("has failurePolicy Ignore".into());
    }
    if policy.match_conditions.iter().flatten().next().is_some() {
        return Some("has matchConditions".into());
    }
    if policy.param_kind.is_some() {
        // A binding may allow everything when its parameters are missing.
        return Some("has a paramKind".into());
    }
    let Some(matched) = &policy.match_constraints else { return Some("matches nothing".into()) };
    let selects = |s: &Option<LabelSelector>| {
        s.as_ref().is_some_and(|s| {
            s.match_labels.as_ref().is_some_and(|l| !l.is_empty())
                || s.match_expressions.iter().flatten().next().is_some()
        })
    };
    if selects(&matched.namespace_selector)
        || selects(&matched.object_selector)
        || matched.exclude_resource_rules.iter().flatten().next().is_some()
    {
        return Some("leaves objects out by a selector".into());
    }
    let rules = matched.resource_rules.as_deref().unwrap_or_default();
    let wanted_rules = wanted.match_constraints.iter().flat_map(|m| m.resource_rules.iter().flatten());
    for (group, resource, operation) in wanted_rules.flat_map(resource_operations) {
        if !rules.iter().any(|rule| covers(rule, group, resource, operation)) {
            return Some(format!("does not cover {operation} of {resource}"));
        }
    }
    for variable in wanted.variables.iter().flatten() {
        let found = policy.variables.iter().flatten().find(|v| v.name == variable.name);
        let same = found.is_some_and(|found| match variable.expression.as_str() {
            "$(gitOps)" => lists_accounts(&found.expression),
            "$(operator)" => is_account(&found.expression),
            expression => found.expression == expression,
        });
        if !same {
            return Some(format!("has not the chart's variable {}", variable.name));
        }
    }
    let has = |expression: &str| policy.validations.iter().flatten().any(|v| v.expression == expression);
    let missing = wanted.validations.iter().flatten().find(|v| !has(&v.expression))?;
    Some(format!("has not the chart's validation `{}`", missing.expression))
}

/// Each group of a rule with each resource and each operation.
fn resource_operations(rule: &NamedRuleWithOperations) -> impl Iterator<Item = (&String, &String, &String)> {
    let (resources, operations) = (rule.resources.iter().flatten(), rule.operations.iter().flatten());
    rule.api_groups.iter().flatten().flat_map(move |group| {
        let operations = operations.clone();
        resources.clone().flat_map(move |resource| operations.clone().map(move |o| (group, resource, o)))
    })
}

fn covers(rule: &NamedRuleWithOperations, group: &str, resource: &str, operation: &str) -> bool {
    let has =
        |list: &Option<Vec<String>>, wanted: &str, all: &str| list.iter().flatten().any(|x| x == wanted || x == all);
    has(&rule.api_groups, group, "*")
        // With one version named here, requests in another version would pass.
        && has(&rule.api_versions, "*", "*")
        // `*` matches no subresource
        && has(&rule.resources, resource, if resource.contains('/') { "*/*" } else { "*" })
        && has(&rule.operations, operation, "*")
        && rule.resource_names.iter().flatten().next().is_none()
        && rule.scope.as_deref() != Some("Cluster")
}

/// `['...', '...']`: any other expression could be true for any user.
fn lists_accounts(expression: &str) -> bool {
    let list = expression.strip_prefix('[').and_then(|e| e.strip_suffix(']'));
    list.is_some_and(|list| list.is_empty() || list.split(',').all(|account| is_account(account.trim())))
}

/// The name of one ServiceAccount in quotes.
fn is_account(expression: &str) -> bool {
    let name = expression.strip_prefix("'system:serviceaccount:").and_then(|e| e.strip_suffix('\''));
    name.is_some_and(|name| name.chars().all(|c| c.is_ascii_alphanumeric() || "-.:".contains(c)))
}

fn weak_binding(binding: &ValidatingAdmissionPolicyBindingSpec, policy: &str) -> Option<&'static str> {
    if binding.policy_name != policy {
        return Some("binds another policy");
    }
    if binding.match_resources.is_some() {
        return Some("leaves objects out by matchResources");
    }
    if binding.param_ref.is_some() {
        return Some("has a paramRef");
    }
    (!binding.validation_actions.iter().any(|a| a == "Deny")).then_some("does not deny")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// The chart's policies with its default values, as charts/generate renders them.
    fn rendered() -> Vec<Value> {
        let text =
            std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/manifests/base/operator.yaml")).unwrap();
        serde_yaml_ng::Deserializer::from_str(&text)
            .map(|document| <Value as serde::Deserialize>::deserialize(document).unwrap())
            .filter(|object| object["kind"] == "ValidatingAdmissionPolicy")
            .collect()
    }

    /// Why a policy of the chart is not trusted after a change.
    fn weakness(policy: &ChartPolicy, change: impl FnOnce(&mut Value)) -> Option<String> {
        let mut rendered = rendered().into_iter().find(|p| p["metadata"]["name"] == policy.name).unwrap();
        change(&mut rendered["spec"]);
        let live = serde_json::from_value(rendered["spec"].take()).unwrap();
        let binding = json!({"policyName": policy.name, "validationActions": ["Deny"]});
        problem(policy.name, &policy.wanted, Some(&live), Some(&serde_json::from_value(binding).unwrap()))
    }

    #[test]
    fn the_policies_of_the_chart_are_trusted() {
        assert_eq!(rendered().len(), POLICIES.len());
        assert_eq!(POLICIES[0].name, DECISIONS);
        for policy in &*POLICIES {
            assert_eq!(weakness(policy, |_| {}), None);
        }
    }

    #[rstest::rstest]
    #[case("/failurePolicy", json!("Ignore"), "failurePolicy")]
    #[case("/matchConditions", json!([{"name": "n", "expression": "false"}]), "matchConditions")]
    #[case("/paramKind", json!({"apiVersion": "v1", "kind": "ConfigMap"}), "paramKind")]
    #[case("/matchConstraints", Value::Null, "matches nothing")]
    #[case("/matchConstraints/namespaceSelector", json!({"matchLabels": {"a": "b"}}), "selector")]
    #[case(
        "/matchConstraints/objectSelector",
        json!({"matchExpressions": [{"key": "a", "operator": "Exists"}]}),
        "selector"
    )]
    #[case("/matchConstraints/excludeResourceRules", json!([{"resources": ["*"]}]), "selector")]
    #[case("/matchConstraints/resourceRules/0/apiGroups", json!(["example.com"]), "cover CREATE")]
    #[case("/matchConstraints/resourceRules/0/apiVersions", json!(["v1"]), "cover CREATE")]
    #[case("/matchConstraints/resourceRules/0/operations", json!(["UPDATE", "DELETE"]), "cover CREATE")]
    #[case("/matchConstraints/resourceRules/0/operations", json!(["CREATE", "DELETE"]), "cover UPDATE")]
    #[case("/matchConstraints/resourceRules/0/resources", json!(["endpoints"]), "cover CREATE")]
    #[case("/matchConstraints/resourceRules/0/resourceNames", json!(["one"]), "cover CREATE")]
    #[case("/matchConstraints/resourceRules/0/scope", json!("Cluster"), "cover CREATE")]
    #[case("/variables", json!([]), "variable")]
    #[case("/validations", json!([{"expression": "true"}]), "validation")]
    fn a_weak_policy_is_not(
        #[values(0, 1, 2, 3, 4)] policy: usize,
        #[case] path: &str,
        #[case] value: Value,
        #[case] why: &str,
    ) {
        let (parent, key) = path.rsplit_once('/').unwrap();
        let found = weakness(&POLICIES[policy], |spec| spec.pointer_mut(parent).unwrap()[key] = value);
        assert!(found.as_ref().is_some_and(|w| w.contains(why)), "{found:?}");
    }

    #[rstest::rstest]
    #[case("resources", json!(["*"]), Some("cover CREATE of migrationruns/status"))]
    #[case("resources", json!(["*", "*/*"]), None)]
    #[case("operations", json!(["CREATE", "UPDATE"]), Some("cover DELETE of migrationruns"))]
    #[case("operations", json!(["*"]), None)]
    fn runs_are_guarded_with_their_status_and_to_their_end(
        #[case] key: &str,
        #[case] value: Value,
        #[case] why: Option<&str>,
    ) {
        let found = weakness(&POLICIES[2], |spec| spec["matchConstraints"]["resourceRules"][0][key] = value);
        assert_eq!(found.is_some(), why.is_some(), "{found:?}");
        assert!(found.unwrap_or_default().contains(why.unwrap_or_default()));
    }

    #[test]
    fn the_status_of_migrations_is_guarded() {
        let unguarded = weakness(&POLICIES[1], |spec| {
            spec["matchConstraints"]["resourceRules"][0]["resources"] = json!(["creditmigrations"])
        });
        assert!(unguarded.is_some_and(|why| why.contains("of creditmigrations/status")));
        let anybody = weakness(&POLICIES[1], |spec| {
            let expression = |v: &Value| v["expression"].as_str().unwrap().contains("request.subResource");
            spec["validations"].as_array_mut().unwrap().retain(|v| !expression(v));
        });
        assert!(anybody.is_some_and(|why| why.contains("validation")));
    }

    #[rstest::rstest]
    #[case(0, "pods/ephemeralcontainers")]
    #[case(1, "pods/exec")]
    #[case(2, "serviceaccounts/token")]
    #[case(3, "jobs")]
    fn each_way_to_a_runner_is_guarded(#[case] rule: usize, #[case] resource: &str) {
        let gone = weakness(&POLICIES[3], |spec| {
            spec["matchConstraints"]["resourceRules"][rule]["resources"]
                .as_array_mut()
                .unwrap()
                .retain(|r| r != resource)
        });
        assert!(gone.as_ref().is_some_and(|why| why.ends_with(&format!(" of {resource}"))), "{gone:?}");
        let elsewhere = weakness(&POLICIES[3], |spec| {
            spec["matchConstraints"]["resourceRules"][rule]["apiGroups"] = json!(["creditmigration.io"])
        });
        assert!(elsewhere.is_some_and(|why| why.contains("cover")));
    }

    #[test]
    fn the_deletion_of_migrations_is_guarded() {
        let unguarded = weakness(&POLICIES[1], |spec| {
            spec["matchConstraints"]["resourceRules"][0]["operations"] = json!(["CREATE", "UPDATE"])
        });
        assert!(unguarded.is_some_and(|why| why.contains("cover DELETE of creditmigrations")));
    }

    /// Each expression of the chart is required, and one that only contains it is a different one.
    #[rstest::rstest]
    fn an_expression_that_is_missing_or_changed_is_noticed(
        #[values(0, 1, 2, 3, 4)] policy: usize,
        #[values("validations", "variables")] list: &str,
    ) {
        let policy = &POLICIES[policy];
        let wanted = serde_json::to_value(&policy.wanted).unwrap()[list].as_array().unwrap().len();
        for i in 0..wanted {
            let removed = weakness(policy, |spec| drop(spec[list].as_array_mut().unwrap().remove(i)));
            let weakened = weakness(policy, |spec| {
                let expression = &mut spec[list][i]["expression"];
                *expression = json!(format!("true || {}", expression.as_str().unwrap()));
            });
            for found in [removed, weakened] {
                assert!(found.as_ref().is_some_and(|w| w.contains(list.trim_end_matches('s'))), "{i}: {found:?}");
            }
        }
    }

    #[rstest::rstest]
    #[case("[]", true)]
    #[case(
        "['system:serviceaccount:argocd:application-controller', 'system:serviceaccount:flux:kustomize.controller']",
        true
    )]
    #[case("['system:serviceaccount:a:b','system:serviceaccount:a:c']", true)]
    #[case("[request.userInfo.username]", false)]
    #[case("['mallory']", false)]
    #[case("['system:serviceaccount:a:b' + request.userInfo.username, 'system:serviceaccount:a:c']", false)]
    #[case("['system:serviceaccount:a:b'] + [request.userInfo.username]", false)]
    fn only_service_accounts_may_name_another_author(#[case] expression: &str, #[case] trusted: bool) {
        let found = weakness(&POLICIES[1], |spec| spec["variables"][0]["expression"] = json!(expression));
        assert_eq!(found.is_none(), trusted, "{found:?}");
    }

    #[test]
    fn a_missing_policy_or_binding_is_not() {
        let policy = ValidatingAdmissionPolicySpec::default();
        let problem = |policy| problem("p", &POLICIES[0].wanted, policy, None).unwrap();
        assert_eq!(problem(None), "ValidatingAdmissionPolicy p is missing");
        assert_eq!(problem(Some(&policy)), "ValidatingAdmissionPolicyBinding p is missing");
    }

    #[rstest::rstest]
    #[case(json!({"policyName": "p", "validationActions": ["Deny"]}), None)]
    #[case(json!({"policyName": "p", "validationActions": ["Warn"]}), Some("does not deny"))]
    #[case(json!({"policyName": "q", "validationActions": ["Deny"]}), Some("binds another policy"))]
    #[case(
        json!({"policyName": "p", "validationActions": ["Deny"], "matchResources": {}}),
        Some("leaves objects out by matchResources")
    )]
    #[case(
        json!({"policyName": "p", "validationActions": ["Deny"], "paramRef": {"name": "x"}}),
        Some("has a paramRef")
    )]
    fn a_binding_must_deny_everywhere(#[case] binding: Value, #[case] weak: Option<&str>) {
        assert_eq!(weak_binding(&serde_json::from_value(binding).unwrap(), "p"), weak);
    }

    #[rstest::rstest]
    #[case::never_changed(json!([{"manager": "helm", "time": "2030-01-01T00:00:00Z"}]), "2030-01-01T00:00:00Z")]
    #[case::warned_for_an_hour(
        json!([
            {"manager": "helm", "time": "2030-01-01T00:00:00Z"},
            {"manager": "kubectl", "time": "2030-01-05T00:00:00Z"},
        ]),
        "2030-01-05T00:00:00Z"
    )]
    #[case::type_check(json!([{"subresource": "status", "time": "2030-01-05T00:00:00Z"}]), "2030-01-01T00:00:00Z")]
    #[case::without_times(Value::Null, "2030-01-01T00:00:00Z")]
    fn a_policy_holds_since_its_last_change(#[case] fields: Value, #[case] since: &str) {
        let meta = json!({"creationTimestamp": "2030-01-01T00:00:00Z", "generation": 2, "managedFields": fields});
        let mut meta: ObjectMeta = serde_json::from_value(meta).unwrap();
        assert_eq!(last_written(&meta), Some(since.parse().unwrap()));
        // Another field manager, the same spec.
        meta.generation = Some(1);
        assert_eq!(last_written(&meta), Some("2030-01-01T00:00:00Z".parse().unwrap()));
    }
}
