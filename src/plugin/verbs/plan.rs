//! `plan`: shows what would happen and what is missing on the server, without changing anything.
//!
//! A file is sent with `dryRun=All`, so that schema, rules and admission policies are applied; then each object that
//! the spec names is checked.

use std::{fmt::Write as _, future::Future};

use k8s_openapi::{
    api::{
        admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding},
        apps::v1::Deployment,
        core::v1::{ConfigMap, Namespace, Secret},
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, PostParams},
};
use serde::Serialize;
use serde_json::Value;

use super::{completion, status::current_state};
use crate::{
    api::{CreditMigration, CreditMigrationSpec, ExpectedWindow, Gap, Phase, StatementEvidence, Step, Time},
    plugin::{
        PluginError,
        connection::ClusterConnection,
        inspect::{
            documents::{Document, read_files},
            needs::needs,
            procedure::{Planned, procedure},
            world::{ClusterObjects, Lookup, check_objects, overlay},
        },
        output::{CheckedItem, Format, Output, State, exit_of, item, items_table, table},
    },
    shared::admission,
    telemetry,
};

pub(crate) const EXAMPLES: &str = "\
Nothing is changed: a file is only sent with dryRun=All. ConfigMaps in the same files count as existing.
Exit code 3: something is missing or wrong. What is not covered or could not be checked is reported, but is no error.

Examples:
  kubectl creditmigration plan -f migration.yaml
  kustomize build . | kubectl creditmigration plan -f -
  kubectl creditmigration plan simplify-credits -o yaml";

/// Name of the field manager of the dry run.
const MANAGER: &str = "kubectl-creditmigration";

/// What to plan.
#[derive(clap::Args, Debug)]
#[group(skip)]
pub(crate) struct Args {
    /// Name of a CreditMigration on the server.
    #[arg(required_unless_present = "filename", conflicts_with = "filename", add = completion::names())]
    name: Option<String>,
    /// File with a CreditMigration and its objects; `-` is standard input. May be repeated.
    #[arg(short, long, value_name = "FILE")]
    filename: Vec<String>,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
}

/// What would happen, and what is missing.
#[derive(Serialize, Debug)]
#[serde(rename_all = "camelCase")]
struct PlanView {
    name: String,
    namespace: String,
    /// State of a migration that is on the server.
    #[serde(skip_serializing_if = "Option::is_none")]
    current_state: Option<String>,
    /// What the window is expected to take, once the rehearsal has passed.
    #[serde(skip_serializing_if = "Option::is_none")]
    expected_window: Option<ExpectedWindow>,
    steps: Vec<Planned>,
    /// Statements of the SQL as the rehearsal measured them, the longest first.
    statements: Vec<StatementEvidence>,
    /// Checked items.
    found: Vec<CheckedItem>,
    /// Lines of the checklist that the spec does not cover.
    not_covered: Vec<CheckedItem>,
}

/// Plans the migration.
pub(crate) async fn run(
    mut connection: ClusterConnection,
    namespace: Option<&str>,
    args: &Args,
) -> Result<Output, PluginError> {
    let mut found = vec![];
    let (migration, documents) = match &args.name {
        Some(name) => (connection.migration(name).await?, vec![]),
        None => {
            let documents = read_files(&args.filename)?;
            let wanted = the_migration(&documents)?;
            if let Some(own) = wanted.value.pointer("/metadata/namespace").and_then(Value::as_str) {
                if namespace.is_some_and(|n| n != own) {
                    return Err(PluginError::Content(format!(
                        "{} is of namespace {own}, the option says {}; next: leave one of them out",
                        wanted.title(),
                        namespace.unwrap_or_default()
                    )));
                }
                own.clone_into(&mut connection.namespace);
            }
            let installation = installation(&connection).await;
            found.extend(installation.items);
            let planned = dry_run(&connection, installation.kinds_served, wanted, &mut found).await?;
            (planned, documents)
        }
    };
    if args.name.is_some() {
        found.extend(installation(&connection).await.items);
    }
    if before_the_window(&migration) {
        let mut objects = fetch(&connection, &migration.spec).await?;
        overlay(&mut objects, &documents, &connection.namespace);
        found.extend(check_objects(&migration.spec, &objects));
        found.extend(start(&migration.spec, telemetry::now()));
    }
    let view = PlanView {
        name: migration.name_any(),
        namespace: connection.namespace.clone(),
        current_state: migration.status.is_some().then(|| current_state(&migration)),
        expected_window: migration.status.as_ref().and_then(|s| s.plan.as_ref()?.expected_window.clone()),
        steps: with_states(procedure(&migration.spec, telemetry::now()), &migration),
        statements: migration.measured_statements(),
        not_covered: gaps(&migration.spec),
        found,
    };
    Ok(Output { text: args.output.write(&view, || screen(&view))?, exit: exit_of(&view.found) })
}

/// Whether the window has not started. Afterwards flag and schema are those of the new version, and the objects for the
/// start are no longer needed.
fn before_the_window(migration: &CreditMigration) -> bool {
    matches!(
        migration.status.as_ref().and_then(|s| s.phase),
        None | Some(Phase::Preparing | Phase::AwaitingApproval | Phase::Failed)
    )
}

fn the_migration(documents: &[Document]) -> Result<&Document, PluginError> {
    let mut all = documents.iter().filter(|d| d.kind() == "CreditMigration");
    match (all.next(), all.next()) {
        (Some(one), None) => Ok(one),
        (None, _) => Err(PluginError::Content(
            "no CreditMigration in the files; next: kubectl creditmigration lint -f FILE".into(),
        )),
        _ => Err(PluginError::Content("more than one CreditMigration in the files; next: plan them one by one".into())),
    }
}

/// The migration as the API server would store it; as it is in the file if the server refuses it.
async fn dry_run(
    connection: &ClusterConnection,
    kinds_served: bool,
    wanted: &Document,
    found: &mut Vec<CheckedItem>,
) -> Result<CreditMigration, PluginError> {
    let local = || {
        serde_json::from_value::<CreditMigration>(wanted.value.clone()).map_err(|error| {
            PluginError::Content(format!(
                "{}: {error}; next: kubectl creditmigration lint -f {}",
                wanted.title(),
                wanted.file
            ))
        })
    };
    let Some(name) = wanted.value.pointer("/metadata/name").and_then(Value::as_str) else {
        return Err(PluginError::Content(format!("{} has no metadata.name", wanted.title())));
    };
    let what = "the API server accepts it";
    let FailedRequest { verb, object, error } = match try_to_write(connection, name, &wanted.value).await {
        Ok(made) => {
            found.push(item(what, State::Ok, "schema, rules and admission: a dry run was accepted"));
            return Ok(made);
        }
        Err(failed) => failed,
    };
    let kube::Error::Api(status) = error else { return Err(error.into()) };
    found.push(match status.code {
        // That is reported already.
        404 if !kinds_served => item(what, State::NotChecked, "its kind is not served"),
        // Without an answer it is not known whether the object was refused, or the caller.
        403 => {
            let has_permission = connection.may::<CreditMigration>(verb, object).await.unwrap_or(false);
            item(what, if has_permission { State::Wrong } else { State::NotChecked }, status.message)
        }
        _ => item(what, State::Wrong, status.message),
    });
    local()
}

/// A request that failed, with the permission that it needs: verb, and name of the object if there is one.
struct FailedRequest<'a> {
    verb: &'static str,
    object: Option<&'a str>,
    error: kube::Error,
}

/// Creates the object or replaces the existing one as a dry run. A server-side apply under its own manager would keep
/// the fields that the file no longer has.
async fn try_to_write<'a>(
    connection: &ClusterConnection,
    name: &'a str,
    wanted: &Value,
) -> Result<CreditMigration, FailedRequest<'a>> {
    let live = connection.api::<CreditMigration>().get_opt(name).await;
    let live = live.map_err(|error| FailedRequest { verb: "get", object: Some(name), error })?;
    let (verb, object) = if live.is_some() { ("update", Some(name)) } else { ("create", None) };
    write_over(connection, name, wanted, live.as_ref()).await.map_err(|error| FailedRequest { verb, object, error })
}

/// Sends the object as a dry run, over the existing one if there is one.
async fn write_over(
    connection: &ClusterConnection,
    name: &str,
    wanted: &Value,
    live: Option<&CreditMigration>,
) -> kube::Result<CreditMigration> {
    let url = <CreditMigration as kube::Resource>::url_path(&(), Some(&connection.namespace));
    let request = kube::core::Request::new(url);
    let params = PostParams { dry_run: true, field_manager: Some(MANAGER.into()) };
    let body = serde_json::to_vec(&as_written(wanted, live)).map_err(kube::Error::SerdeError)?;
    let request = match live {
        Some(_) => request.replace(name, &params, body),
        None => request.create(&params, body),
    };
    let mut request = request.map_err(kube::Error::BuildRequest)?;
    // An unknown field is refused, as by kubectl.
    if let Ok(strict) = format!("{}&fieldValidation=Strict", request.uri()).parse() {
        *request.uri_mut() = strict;
    }
    connection.client.request(request).await
}

/// The object to send: the file; for an existing object, the file's spec with the existing metadata.
fn as_written(wanted: &Value, live: Option<&CreditMigration>) -> Value {
    let mut sent = wanted.clone();
    let Some(live) = live else { return sent };
    let mut metadata = serde_json::to_value(&live.metadata).unwrap_or_default();
    for part in ["labels", "annotations"] {
        for (key, value) in wanted["metadata"][part].as_object().into_iter().flatten() {
            metadata[part][key] = value.clone();
        }
    }
    sent["metadata"] = metadata;
    sent
}

/// What the server has of the operator.
struct Installation {
    /// Checked items.
    items: Vec<CheckedItem>,
    /// Whether the API server serves the operator's kinds.
    kinds_served: bool,
}

/// Whether the operator's kinds are served and its policies are in force.
async fn installation(connection: &ClusterConnection) -> Installation {
    let client = &connection.client;
    let mut found = vec![];
    let what = "the operator's kinds";
    let next = "helm install credit-migration-operator";
    let listed = connection.api::<CreditMigration>().list(&ListParams::default().limit(1)).await;
    let kinds_served = !matches!(&listed, Err(kube::Error::Api(status)) if status.code == 404);
    let crd: Lookup<CustomResourceDefinition> = get(
        Api::<CustomResourceDefinition>::all(client.clone()).get_opt("creditmigrations.creditmigration.io"),
        "customresourcedefinitions",
    )
    .await;
    found.push(match (listed, crd) {
        (Ok(_), _) => item(what, State::Ok, "creditmigration.io/v1alpha1 is served"),
        (Err(_), _) if !kinds_served => {
            item(what, State::Missing, format!("creditmigration.io/v1alpha1 is not served; next: {next}"))
        }
        (_, Lookup::Found(_)) => item(what, State::Ok, "creditmigration.io/v1alpha1 is installed"),
        (Err(e), _) => item(what, State::NotChecked, PluginError::from(e).to_string()),
    });
    let what = "admission policies";
    found.push(match admission_trust(client).await.map(|trust| trust.problem) {
        Ok(None) => item(what, State::Ok, "names of authors and approvers are authenticated"),
        Ok(Some(problem)) => {
            let next = "helm upgrade the operator with admissionPolicies.install=true";
            item(what, State::Wrong, format!("{problem}; next: {next}"))
        }
        Err(error) => item(what, State::NotChecked, PluginError::from(error).to_string()),
    });
    let name = &connection.namespace;
    let what = format!("namespace/{name}");
    found.push(match get(Api::<Namespace>::all(client.clone()).get_opt(name), "namespaces").await {
        Lookup::Missing => item(&what, State::Missing, format!("next: kubectl create namespace {name}")),
        Lookup::Unknown(why) => item(&what, State::NotChecked, why),
        Lookup::Found(_) | Lookup::InFile(_) => item(&what, State::Ok, "exists"),
    });
    Installation { items: found, kinds_served }
}

/// Whether the policies, under their default names, are as strict as those of the chart.
async fn admission_trust(client: &Client) -> kube::Result<admission::Trust> {
    let policies: Api<ValidatingAdmissionPolicy> = Api::all(client.clone());
    let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(client.clone());
    let mut installed = vec![];
    for name in admission::names(admission::DECISIONS) {
        let (policy, binding) = (policies.get_opt(name).await?, bindings.get_opt(name).await?);
        installed.push(admission::Installed { policy, binding });
    }
    Ok(admission::trust(admission::DECISIONS, &installed))
}

async fn get<T>(get: impl Future<Output = kube::Result<Option<T>>>, plural: &str) -> Lookup<T> {
    match get.await {
        Ok(Some(x)) => Lookup::Found(x),
        Ok(None) => Lookup::Missing,
        Err(kube::Error::Api(status)) if status.code == 403 => Lookup::Unknown(format!("you may not get {plural}")),
        Err(error) => Lookup::Unknown(PluginError::from(error).to_string()),
    }
}

/// Every object that the spec names, from the API server. Of a Secret only the names of the keys are kept.
async fn fetch(connection: &ClusterConnection, spec: &CreditMigrationSpec) -> Result<ClusterObjects, PluginError> {
    let needs = needs(spec);
    let mut objects = ClusterObjects { namespace: connection.namespace.clone(), ..ClusterObjects::default() };
    for name in needs.config_maps {
        let seen = get(connection.api::<ConfigMap>().get_opt(&name), "configmaps").await;
        objects.config_maps.insert(name, seen);
    }
    for name in needs.deployments {
        let seen = get(connection.api::<Deployment>().get_opt(&name), "deployments").await;
        objects.deployments.insert(name, seen);
    }
    for name in needs.secrets.into_keys() {
        let seen = match get(connection.api::<Secret>().get_opt(&name), "secrets").await {
            Lookup::Found(secret) | Lookup::InFile(secret) => Lookup::Found(
                secret.data.into_iter().flatten().filter(|(_, v)| !v.0.is_empty()).map(|(k, _)| k).collect(),
            ),
            Lookup::Missing => Lookup::Missing,
            Lookup::Unknown(why) => Lookup::Unknown(why),
        };
        objects.secrets.insert(name, seen);
    }
    Ok(objects)
}

/// Whether the start has passed: the window would start at once.
pub(crate) fn start(spec: &CreditMigrationSpec, now: Time) -> Option<CheckedItem> {
    let at = spec.schedule.start_at?;
    Some(if at < now {
        let text = format!("{at:.0} has passed: the window may start at once; next: set spec.schedule.startAt");
        item("start", State::Note, text)
    } else {
        item("start", State::Ok, format!("{at:.0}"))
    })
}

/// Adds the state of each step.
fn with_states(mut steps: Vec<Planned>, migration: &CreditMigration) -> Vec<Planned> {
    for planned in &mut steps {
        let of = migration.status.iter().flat_map(|s| &s.steps).find(|s| s.name == planned.step);
        planned.state = of.map(|s| s.state.to_string());
        let rehearsal = migration.status.as_ref().and_then(|s| s.rehearsal.as_ref());
        let users = migration.status.as_ref().and_then(|s| s.table_users.as_ref()?.summary());
        if let (Step::Preflight, Some(users)) = (planned.step, users) {
            planned.what = format!("{}; {users}", planned.what);
        }
        if let (Step::Rehearse, Some(rehearsal)) = (planned.step, rehearsal) {
            planned.what = format!("{}; {}", planned.what, rehearsal.summary());
        }
    }
    steps
}

fn screen(view: &PlanView) -> String {
    let PlanView { name, namespace, current_state, expected_window, steps, statements, found, not_covered } = view;
    let mut text = match current_state {
        Some(current_state) => format!("{namespace}/{current_state}"),
        None => format!("{namespace}/{name}: not on the server, nothing was changed"),
    };
    if let Some(expected) = expected_window {
        // Writing to a String cannot fail.
        let _ = write!(text, "\nexpected window: {}", expected.summary());
    }
    let begun = steps.iter().any(|s| s.state.is_some());
    let header: &[&str] = if begun { &["", "STEP", "STATE", "WHAT"] } else { &["", "STEP", "WHAT"] };
    let rows = steps.iter().map(|planned| {
        let mut row = vec![planned.number.to_string(), planned.step.to_string()];
        if begun {
            row.push(planned.state.clone().unwrap_or_default());
        }
        row.push(planned.what.clone());
        row
    });
    // Writing to a String cannot fail.
    let _ = write!(text, "\n\n{}", table(header, rows));
    if !statements.is_empty() {
        let measured = table(&StatementEvidence::COLUMNS, statements.iter().map(StatementEvidence::row));
        let _ = write!(text, "\n\n{measured}");
    }
    let _ = write!(text, "\n\n{}", items_table(found));
    for gap in not_covered {
        let _ = write!(text, "\nnot covered: {}; {}", gap.what, gap.message);
    }
    let bad = found.iter().filter(|f| f.state.is_problem()).count();
    let unknown = found.iter().filter(|f| f.state == State::NotChecked).count();
    let _ = write!(
        text,
        "\n\n{bad} missing or wrong, {unknown} not checked, {} not covered, of {} checked",
        not_covered.len(),
        found.len()
    );
    text
}

/// Lines of the checklist that the spec does not cover.
fn gaps(spec: &CreditMigrationSpec) -> Vec<CheckedItem> {
    let item = |gap: Gap| item(gap.what, State::NotCovered, format!("next: {}", gap.next));
    spec.not_covered().into_iter().map(item).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::{
            CreditMigrationStatus, Direction, ExpectedRollout, LeftOut, LeftOutKind, LeftOutObjects, LockMode,
            StatementLock, WritesEvidence,
            fixtures::{self, spec},
        },
        plugin::{Exit, verbs::status::tests::time},
    };

    fn view(found: Vec<CheckedItem>) -> PlanView {
        PlanView {
            name: "m".into(),
            namespace: "shop".into(),
            current_state: None,
            expected_window: None,
            steps: procedure(&spec(), Time::UNIX_EPOCH),
            statements: vec![],
            found,
            not_covered: gaps(&spec()),
        }
    }

    #[test]
    fn the_screen_holds_steps_findings_and_gaps() {
        let view = view(vec![item("flag", State::Wrong, "is v2"), item("secret/db", State::NotChecked, "you may not")]);
        let text = screen(&view);
        for part in [
            "shop/m: not on the server",
            "9   Approve",
            "wrong        flag       is v2",
            "not covered: tag and branch of the code; next: set spec.code",
            "1 missing or wrong, 1 not checked,",
        ] {
            assert!(text.contains(part), "{part}:\n{text}");
        }
        assert_eq!(exit_of(&view.found), Exit::ProblemsFound);
    }

    #[test]
    fn what_is_not_covered_is_no_error() {
        assert_eq!(exit_of(&view(vec![item("a", State::Ok, "")]).found), Exit::Success);
    }

    #[test]
    fn files_count_in_their_namespace() {
        let document = |text: &str| Document::parse("x.yaml", text).unwrap().remove(0);
        let all = [
            document("kind: ConfigMap\nmetadata: {name: a, namespace: shop}\ndata: {k: v}"),
            document("kind: ConfigMap\nmetadata: {name: b, namespace: other}\ndata: {k: v}"),
            document("kind: Secret\nmetadata: {name: s}\nstringData: {k: v}\ndata: {l: dg==}"),
        ];
        let mut objects = ClusterObjects::default();
        overlay(&mut objects, &all, "shop");
        assert_eq!(objects.config_maps.keys().collect::<Vec<_>>(), ["a"]);
        let Some(Lookup::InFile(keys)) = objects.secrets.get("s") else { panic!("{objects:?}") };
        assert_eq!(keys.iter().collect::<Vec<_>>(), ["k", "l"]);
    }

    /// What the file no longer has is gone, what others have put into the metadata stays.
    #[test]
    fn what_is_written_over_an_object_is_the_files_spec() {
        let mut live = CreditMigration::new("m", spec());
        live.spec.schedule.start_at = Some(time("2031-01-01T00:00:00Z"));
        live.metadata.resource_version = Some("7".into());
        live.metadata.finalizers = Some(vec!["creditmigration.io/window".into()]);
        live.metadata.labels = Some([("by".to_owned(), "argo".to_owned())].into());
        let mut wanted = serde_json::to_value(CreditMigration::new("m", spec())).unwrap();
        wanted["metadata"]["annotations"] = serde_json::json!({"why": "later"});
        assert_eq!(as_written(&wanted, None), wanted);
        let sent = as_written(&wanted, Some(&live));
        assert_eq!(sent["spec"], wanted["spec"]);
        assert!(sent["spec"]["schedule"].get("startAt").is_none());
        let metadata = &sent["metadata"];
        assert_eq!(metadata["resourceVersion"], "7", "nothing that came meanwhile is passed over");
        assert_eq!(metadata["finalizers"][0], "creditmigration.io/window");
        assert_eq!((&metadata["labels"]["by"], &metadata["annotations"]["why"]), (&"argo".into(), &"later".into()));
    }

    #[test]
    fn the_expected_window_is_shown_with_its_parts() {
        let rollouts = vec![ExpectedRollout::new("shop", 4, 1, 10, 5), ExpectedRollout::new("worker", 2, 2, 8, 30)];
        let expected_window = Some(ExpectedWindow::new(20.2, 2.5, rollouts));
        let text = screen(&PlanView { expected_window, ..view(vec![]) });
        let line = "\nexpected window: 66 s: SQL 21 s, then the longest of comparison 3 s and rollout of shop 45 s (4 \
                    pods, 1 at once, 10 s each until available, up to 5 s to end), worker 38 s (2 pods, 2 at once, 8 s \
                    each until available, up to 30 s to end)\n";
        assert!(text.contains(line), "{text}");
        assert!(!screen(&view(vec![])).contains("expected window"), "nothing is measured yet");
    }

    #[test]
    fn what_the_rehearsal_found_is_shown() {
        let mut migration = CreditMigration::new("m", spec());
        let mut rehearsal = fixtures::rehearsal(12.0);
        rehearsal.writes = Some(WritesEvidence { rows: 7, users: 2, rollback_seconds: 3.0 });
        let trigger = LeftOut {
            kind: LeftOutKind::Superuser,
            name: "event trigger audit".to_owned(),
            owner: Some("postgres".to_owned()),
            needs: None,
        };
        rehearsal.left_out = LeftOutObjects::new(vec![trigger]);
        migration.status = Some(CreditMigrationStatus { rehearsal: Some(rehearsal), ..Default::default() });
        let steps = with_states(procedure(&migration.spec, Time::UNIX_EPOCH), &migration);
        let what = &steps.iter().find(|planned| planned.step == Step::Rehearse).unwrap().what;
        for part in [
            "rolled back in 1.0 s",
            "7 rows and 2 balances written on the new version, rolled back in 3.0 s",
            "; the copy goes without 1 objects: event trigger audit (Superuser)",
        ] {
            assert!(what.contains(part), "{what}");
        }
    }

    #[test]
    fn statements_of_the_rehearsal_are_a_table() {
        assert!(!screen(&view(vec![])).contains("STRONGEST LOCK"), "nothing is measured yet");
        let (mode, table) = (LockMode::AccessExclusive, "public.users".to_owned());
        let statement = StatementEvidence {
            direction: Direction::Rollback,
            line: 7,
            keywords: "ALTER TABLE".to_owned(),
            seconds: 2.04,
            rows: 300,
            lock: Some(StatementLock { mode, table, held_seconds: 3.0 }),
        };
        let text = screen(&PlanView { statements: vec![statement], ..view(vec![]) });
        let row = "down SQL, line 7  ALTER TABLE  2.0      300   ACCESS EXCLUSIVE on public.users, held for 3.0 s";
        assert!(text.contains(row), "{text}");
    }

    #[test]
    fn a_start_in_the_past_is_reported() {
        let mut spec = spec();
        let now = time("2030-01-01T00:00:00Z");
        assert_eq!(start(&spec, now), None);
        for (at, state) in [("2029-12-31T00:00:00Z", State::Note), ("2030-01-02T00:00:00Z", State::Ok)] {
            spec.schedule.start_at = Some(time(at));
            assert_eq!(start(&spec, now).unwrap().state, state);
        }
    }
}
