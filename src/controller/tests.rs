//! What the controller writes, against an API server in memory: the fence of each irreversible effect, the order of
//! status and effects, adoption.

use std::sync::Arc;

use axum::http::Method;
use kube::{Client, runtime::events::Reporter};
use serde_json::{Value, json};

use super::{
    Context, ControllerOptions, Error, apply::apply, events::Events, fake_api::FakeApi, leader::Elector,
    metrics::Metrics, reconcile::reconcile,
};
use crate::{
    api::{
        CreditMigration, CreditMigrationStatus, FLAG_SET_FOR, Phase, RESTARTED_FOR, RunInputs, Task, WindowCommand,
        WindowOrder, fixtures,
    },
    machine::{DryRun, Effect, Event, ObservedFlag, StartRun},
};

const MIGRATION: &str = "/apis/creditmigration.io/v1alpha1/namespaces/shop/creditmigrations/m";
const RUN: &str = "/apis/creditmigration.io/v1alpha1/namespaces/shop/migrationruns/m-window-1";
const FLAG: &str = "/api/v1/namespaces/shop/configmaps/shop";
const WORKLOAD: &str = "/apis/apps/v1/namespaces/shop/deployments/shop";

/// A leader, its API server, and the migration that it has read.
struct Stage {
    api: FakeApi,
    elector: Elector,
    ctx: Context,
    live: CreditMigration,
    flag: ObservedFlag,
}

async fn stage() -> Stage {
    let api = FakeApi::default();
    let spec = serde_json::to_value(fixtures::spec()).unwrap();
    let live = api.store(
        MIGRATION,
        json!({
            "apiVersion": "creditmigration.io/v1alpha1",
            "kind": "CreditMigration",
            "metadata": {"name": "m", "namespace": "shop", "uid": "uid-m", "finalizers": [crate::api::FINALIZER]},
            "spec": spec,
        }),
    );
    api.store(FLAG, json!({"metadata": {"name": "shop", "namespace": "shop"}, "data": {"VERSION": "v1"}}));
    api.store(WORKLOAD, json!({"metadata": {"name": "shop", "namespace": "shop"}, "spec": {"template": {}}}));
    store_run(&api, WindowCommand::Standby);

    let client = Client::new(api.clone(), "shop");
    let lease = std::time::Duration::from_secs(600);
    let elector = Elector::new(client.clone(), "shop", "operator", "me", lease);
    elector.acquire().await;
    let reporter = Reporter { controller: super::MANAGER.into(), instance: None };
    let ctx = Context {
        events: Events::new(client.clone(), reporter),
        failures: super::failures::Failures::default(),
        dry_runs: super::per_migration::PerMigration::default(),
        options: options(),
        lease: elector.lease(),
        metrics: Arc::new(Metrics::default()),
        client,
    };
    api.state().forget_writes();
    let flag = ObservedFlag::Value { value: "v1".into(), immutable: false, set_for: None };
    Stage { api, elector, ctx, live: serde_json::from_value(live).unwrap(), flag }
}

fn options() -> ControllerOptions {
    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        options: ControllerOptions,
    }
    <Line as clap::Parser>::parse_from(["operator", "--runner-image", "runner"]).options
}

fn store_run(api: &FakeApi, command: WindowCommand) {
    let spec = run_spec(Task::Window);
    let mut spec = serde_json::to_value(spec).unwrap();
    spec["window"] = serde_json::to_value(order(command)).unwrap();
    let (version, kind) = ("creditmigration.io/v1alpha1", "MigrationRun");
    let metadata = json!({"name": "m-window-1", "namespace": "shop", "uid": "uid-run"});
    api.store(RUN, json!({"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec}));
}

fn run_spec(task: Task) -> crate::api::MigrationRunSpec {
    crate::api::MigrationRunSpec {
        migration: "m".into(),
        migration_uid: "uid-m".into(),
        task,
        attempt: 1,
        plan: fixtures::spec(),
        inputs: RunInputs::default(),
        window: None,
    }
}

fn order(command: WindowCommand) -> WindowOrder {
    WindowOrder { command, deadline: Some(jiff::Timestamp::UNIX_EPOCH) }
}

fn start(task: Task, name: &str) -> Effect {
    Effect::StartRun(Box::new(StartRun {
        name: name.into(),
        spec: run_spec(task),
        image: "runner".into(),
        timeout_seconds: None,
    }))
}

fn event() -> Effect {
    Effect::Event(Event { warning: true, reason: "TriggerFired".into(), note: "0.2 > 0.05".into() })
}

/// The irreversible effects, each with the path of its target.
fn irreversible() -> [(Effect, &'static str); 6] {
    let workload = fixtures::spec().application.workloads[0].clone();
    let (template, marker) = (Some("uid-m.before".into()), "uid-m.rollback".into());
    [
        (Effect::RemoveFinalizer, MIGRATION),
        (Effect::RemoveRun { name: "m-window-1".into() }, RUN),
        (Effect::OrderWindow { name: "m-window-1".into(), order: order(WindowCommand::BlockWrites) }, RUN),
        (Effect::KeepPods { workload: workload.clone(), template, marker }, WORKLOAD),
        (Effect::SetFlag { value: "v2".into(), marker: "uid-m.to".into() }, FLAG),
        (Effect::Restart { workload, marker: "uid-m.to".into() }, WORKLOAD),
    ]
}

impl Stage {
    async fn apply(&self, effect: Effect) -> Result<(), Error> {
        apply(&self.ctx, &self.live, &self.flag, vec![effect]).await
    }

    async fn flag_write(&self) -> DryRun {
        super::flag::observe(&self.ctx, &self.live).await.unwrap().write
    }
}

#[tokio::test]
async fn an_irreversible_effect_is_written_once_its_target_and_the_migration_are_read() {
    for (effect, target) in irreversible() {
        assert!(effect.irreversible());
        let stage = stage().await;
        let before = stage.api.object(target);
        stage.apply(effect.clone()).await.unwrap();
        assert_ne!(stage.api.object(target), before, "{target}");
    }
    let stage = stage().await;
    for (effect, _) in irreversible().into_iter().skip(2) {
        stage.apply(effect).await.unwrap();
    }
    let flag = stage.api.object(FLAG);
    assert_eq!(
        (&flag["data"]["VERSION"], &flag["metadata"]["annotations"][FLAG_SET_FOR]),
        (&json!("v2"), &json!("uid-m.to"))
    );
    let template = &stage.api.object(WORKLOAD)["spec"]["template"]["metadata"]["annotations"];
    assert_eq!(template[RESTARTED_FOR], "uid-m.to");
    assert_eq!(stage.api.object(RUN)["spec"]["window"]["command"], "BlockWrites");
}

#[tokio::test]
async fn a_target_that_changes_after_it_was_read_is_left_alone() {
    for (effect, target) in irreversible() {
        let stage = stage().await;
        // Another leader writes while this one sleeps between its last read and its write.
        let method = match effect {
            Effect::RemoveRun { .. } => Method::DELETE,
            _ => Method::PATCH,
        };
        stage.api.before(method, target, move |state| state.touch(target));
        let refused = stage.apply(effect).await;
        assert!(matches!(refused, Err(Error::Conflict)), "{target}");
        let mut left = stage.api.object(target);
        assert_eq!(left["metadata"]["labels"]["touched"], "true");
        assert_eq!(left["data"]["VERSION"], if target == FLAG { json!("v1") } else { Value::Null });
        assert!(left["spec"]["template"].take().as_object().is_none_or(serde_json::Map::is_empty));
    }
}

#[tokio::test]
async fn a_flag_that_is_not_what_was_decided_on_is_left_alone() {
    let mut stage = stage().await;
    stage.flag = ObservedFlag::Value { value: "v2".into(), immutable: false, set_for: Some("uid-m.to".into()) };
    let confirmed = Effect::SetFlag { value: "v2".into(), marker: "uid-m.given-up.1".into() };
    assert!(matches!(stage.apply(confirmed).await, Err(Error::Conflict)));
    assert_eq!(stage.api.object(FLAG)["data"]["VERSION"], "v1");
    assert_eq!(stage.api.writes(), Vec::<String>::new());
}

#[tokio::test]
async fn a_migration_that_changed_since_the_decision_fences_all() {
    for (effect, target) in irreversible() {
        let stage = stage().await;
        stage.api.state().touch(MIGRATION);
        let before = stage.api.object(target);
        let refused = stage.apply(effect).await;
        assert!(matches!(refused, Err(Error::Conflict)), "{target}");
        assert_eq!(stage.api.object(target), before);
    }
}

#[tokio::test]
async fn without_the_lease_nothing_is_written() {
    let effects = irreversible().into_iter().map(|(effect, _)| effect);
    for effect in effects.chain([Effect::AddFinalizer, start(Task::Preflight, "m-preflight-1")]) {
        let stage = stage().await;
        stage.elector.release().await;
        stage.api.state().forget_writes();
        assert!(matches!(stage.apply(effect).await, Err(Error::LeaseLost)));
        assert_eq!(stage.api.writes(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn orders_only_move_forward() {
    let stage = stage().await;
    store_run(&stage.api, WindowCommand::Switch);
    let lower = Effect::OrderWindow { name: "m-window-1".into(), order: order(WindowCommand::BlockWrites) };
    stage.apply(lower).await.unwrap();
    assert_eq!(stage.api.object(RUN)["spec"]["window"]["command"], "Switch");
    assert_eq!(stage.api.writes(), Vec::<String>::new());

    let removed = stage.apply(Effect::RemoveRun { name: "m-window-1".into() }).await;
    assert!(matches!(removed, Err(Error::Conflict)), "a window that may be at work is not removed");
    assert_ne!(stage.api.object(RUN), Value::Null);
}

#[tokio::test]
async fn a_run_is_started_once_and_what_belongs_to_others_is_not_adopted() {
    let stage = stage().await;
    let preflight = || start(Task::Preflight, "m-preflight-1");
    stage.apply(preflight()).await.unwrap();
    let run = RUN.replace("m-window-1", "m-preflight-1");
    let made = stage.api.object(&run);
    stage.apply(preflight()).await.unwrap();
    assert_eq!(stage.api.object(&run), made);

    let account = "/api/v1/namespaces/shop/serviceaccounts/m-runner";
    let mut foreign = stage.api.object(account);
    foreign["metadata"]["ownerReferences"][0]["uid"] = "another".into();
    stage.api.store(account, foreign);
    let refused = stage.apply(start(Task::Backup, "m-backup-1")).await;
    assert!(matches!(refused, Err(Error::NotOwned { kind: "ServiceAccount", .. })));
    assert_eq!(stage.api.object(&RUN.replace("m-window-1", "m-backup-1")), Value::Null);
}

#[tokio::test]
async fn after_a_refused_effect_people_are_notified_and_nothing_else_happens() {
    let stage = stage().await;
    stage.api.refuse(Method::PATCH, FLAG, 422);
    let [.., (set_flag, _), (restart, _)] = irreversible();
    let effects =
        vec![set_flag, restart, start(Task::CodeBackup, "m-codebackup-1"), start(Task::Notify, "m-notify-1"), event()];
    let result = apply(&stage.ctx, &stage.live, &stage.flag, effects).await;
    assert!(matches!(&result, Err(Error::Kube(kube::Error::Api(status))) if status.code == 422));
    let run = |name: &str| stage.api.object(&RUN.replace("m-window-1", name));
    assert_eq!(run("m-codebackup-1"), Value::Null);
    assert_ne!(run("m-notify-1"), Value::Null);
    let writes = stage.api.writes();
    assert!(writes.iter().any(|write| write.ends_with("/events")), "{writes:?}");
    assert!(!writes.iter().any(|write| write.contains("/deployments/")), "{writes:?}");
}

#[tokio::test]
async fn a_run_that_cannot_be_removed_holds_up_no_order() {
    let stage = stage().await;
    stage.apply(start(Task::Notify, "m-notify-1")).await.unwrap();
    stage.api.refuse(Method::DELETE, "/m-notify-1", 500);
    let set_flag = Effect::SetFlag { value: "v2".into(), marker: "uid-m.to".into() };
    let effects = vec![Effect::RemoveRun { name: "m-notify-1".into() }, set_flag];
    assert!(apply(&stage.ctx, &stage.live, &stage.flag, effects).await.is_err());
    assert_eq!(stage.api.object(FLAG)["data"]["VERSION"], "v2");
}

#[tokio::test]
async fn a_run_that_another_leader_has_given_an_order_ends_what_was_decided() {
    let stage = stage().await;
    store_run(&stage.api, WindowCommand::BlockWrites);
    let set_flag = Effect::SetFlag { value: "v2".into(), marker: "uid-m.to".into() };
    let effects = vec![Effect::RemoveRun { name: "m-window-1".into() }, set_flag];
    assert!(matches!(apply(&stage.ctx, &stage.live, &stage.flag, effects).await, Err(Error::Conflict)));
    assert_eq!(stage.api.object(FLAG)["data"]["VERSION"], "v1");
}

#[tokio::test]
async fn a_refused_effect_is_in_the_status_until_it_is_applied() {
    let stage = stage().await;
    let mut object = stage.api.object(MIGRATION);
    object["metadata"]["finalizers"] = json!([]);
    stage.api.store(MIGRATION, object);
    stage.api.refuse(Method::PATCH, MIGRATION, 403);
    let ctx = Arc::new(stage.ctx);
    let again = async || {
        let live = serde_json::from_value(stage.api.object(MIGRATION)).unwrap();
        let result = reconcile(Arc::new(kube::core::DeserializeGuard(Ok(live))), ctx.clone()).await;
        let status = stage.api.object(MIGRATION)["status"].take();
        let problems: Vec<Value> = status["problems"].as_array().cloned().unwrap_or_default();
        (result.is_ok(), problems.iter().any(|problem| problem["reason"] == "EffectRefused"))
    };
    assert_eq!(again().await, (false, false));
    assert_eq!(again().await, (false, true));
    let events = |api: &FakeApi| api.writes().iter().filter(|write| write.ends_with("/events")).count();
    let reported = events(&stage.api);
    assert_eq!(again().await, (false, true));
    assert_eq!(events(&stage.api), reported, "one Event for as long as it lasts");
    stage.api.allow(MIGRATION);
    assert!(again().await.0);
    assert_eq!(again().await, (true, false));
}

#[tokio::test]
async fn objects_that_cannot_be_read_are_in_the_status() {
    let stage = stage().await;
    stage.api.refuse(Method::GET, FLAG, 403);
    let ctx = Arc::new(stage.ctx);
    let mut stalled = vec![];
    for _ in 0..4 {
        let live = serde_json::from_value(stage.api.object(MIGRATION)).unwrap();
        let result = reconcile(Arc::new(kube::core::DeserializeGuard(Ok(live))), ctx.clone()).await;
        assert!(result.is_err());
        let conditions = stage.api.object(MIGRATION)["status"]["conditions"].take();
        let conditions = conditions.as_array().cloned().unwrap_or_default();
        stalled.push(conditions.iter().any(|c| c["type"] == "Stalled" && c["reason"] == "ReconcileFailed"));
    }
    assert_eq!(stalled, [false, false, true, true], "a failed read mostly succeeds a second later");
    stage.api.allow(FLAG);
    let live = serde_json::from_value(stage.api.object(MIGRATION)).unwrap();
    reconcile(Arc::new(kube::core::DeserializeGuard(Ok(live))), ctx).await.unwrap();
    let status = stage.api.object(MIGRATION)["status"].take();
    assert!(!status.to_string().contains("ReconcileFailed"), "{status}");
}

#[tokio::test]
async fn the_dry_run_of_the_flag_is_its_write_without_effect() {
    let mut stage = stage().await;
    stage.live.status = Some(CreditMigrationStatus { phase: Some(Phase::Executing), ..Default::default() });
    let before = stage.api.object(FLAG);
    assert_eq!(stage.flag_write().await, DryRun::Accepted);
    assert_eq!((stage.api.object(FLAG), stage.api.writes()), (before, vec![]));
    let tried = stage.api.dry_runs();
    let [.., (set_flag, _), _] = irreversible();
    stage.apply(set_flag).await.unwrap();
    let written = stage.api.object(FLAG);
    assert_eq!(written["metadata"]["annotations"], tried[0]["metadata"]["annotations"]);
    assert_eq!(written["data"]["VERSION"], tried[0]["data"]["VERSION"]);
    // A write in between says nothing of it.
    stage.api.before(Method::PATCH, FLAG, |state| state.touch(FLAG));
    assert_eq!(stage.flag_write().await, DryRun::Untried);
    stage.api.refuse(Method::PATCH, FLAG, 403);
    assert_eq!(stage.flag_write().await, DryRun::Refused("Refused".into()));
}

#[tokio::test]
async fn the_dry_run_of_a_restart_is_its_write_without_effect() {
    let mut stage = stage().await;
    stage.live.status = Some(CreditMigrationStatus { phase: Some(Phase::Executing), ..Default::default() });
    let before = stage.api.object(WORKLOAD);
    let observed = super::observe::observe(&stage.ctx, &stage.live).await.unwrap();
    assert_eq!(observed.workloads[0].write, DryRun::Accepted);
    assert_eq!((stage.api.object(WORKLOAD), stage.api.writes()), (before, vec![]));
    let tried = stage.api.dry_runs().into_iter().find(|patch| patch["spec"] != Value::Null).unwrap();
    let [.., (restart, _)] = irreversible();
    stage.apply(restart).await.unwrap();
    assert_eq!(stage.api.object(WORKLOAD)["spec"]["template"], tried["spec"]["template"]);
    stage.api.refuse(Method::PATCH, WORKLOAD, 422);
    let observed = super::observe::observe(&stage.ctx, &stage.live).await.unwrap();
    let answers = (observed.flag_write, observed.workloads[0].write.clone());
    assert_eq!(answers, (DryRun::Accepted, DryRun::Refused("Refused".into())));
}

/// The API server's answer to a dry run is the same for both: code, reason and no details.
#[tokio::test]
async fn the_dry_run_of_a_webhook_that_denies_is_not_taken_for_one_without_dry_runs() {
    let mut stage = stage().await;
    stage.live.status = Some(CreditMigrationStatus { phase: Some(Phase::Executing), ..Default::default() });
    stage.api.refuse(Method::PATCH, FLAG, 400);
    assert_eq!(stage.flag_write().await, DryRun::Unsupported("BadRequest".into()));
    assert_eq!(stage.api.dry_runs()[1..], [json!({})]);
    stage.api.allow(FLAG);
    stage.live.status = Some(CreditMigrationStatus { phase: Some(Phase::Observing), ..Default::default() });
    stage.api.deny_changes(FLAG);
    assert_eq!(stage.flag_write().await, DryRun::Refused("BadRequest".into()));
    stage.api.allow(FLAG);
    assert_eq!(stage.flag_write().await, DryRun::Accepted);
}

#[tokio::test]
async fn an_idle_migration_tries_the_flag_rarely_and_one_that_is_refused_each_time() {
    let mut stage = stage().await;
    stage.api.refuse(Method::PATCH, FLAG, 403);
    for tries in 1..=3 {
        assert_eq!(stage.flag_write().await, DryRun::Refused("Refused".into()));
        assert_eq!(stage.api.dry_runs().len(), tries);
    }
    stage.api.allow(FLAG);
    for _ in 0..3 {
        assert_eq!(stage.flag_write().await, DryRun::Accepted);
    }
    assert_eq!(stage.api.dry_runs().len(), 4, "the answer is kept");
    // Another write is another question.
    stage.live.status = Some(CreditMigrationStatus { phase: Some(Phase::Observing), ..Default::default() });
    stage.flag_write().await;
    assert_eq!(stage.api.dry_runs().len(), 5);
    stage.live.status = Some(CreditMigrationStatus { phase: Some(Phase::Completed), ..Default::default() });
    assert_eq!((stage.flag_write().await, stage.api.dry_runs().len()), (DryRun::Untried, 5));
}

#[tokio::test]
async fn the_status_is_persisted_before_any_effect() {
    let stage = stage().await;
    let object = Arc::new(kube::core::DeserializeGuard(Ok(stage.live.clone())));
    reconcile(object, Arc::new(stage.ctx)).await.unwrap();
    let writes = stage.api.writes();
    assert_eq!(writes.first(), Some(&format!("PUT {MIGRATION}/status")), "{writes:?}");
    assert!(writes.len() > 1, "{writes:?}");
}

#[rstest::rstest]
#[case::another_leader_was_faster(409)]
#[case::refused(422)]
#[tokio::test]
async fn a_status_that_is_not_persisted_has_no_effect(#[case] code: u16) {
    let stage = stage().await;
    stage.api.refuse(Method::PUT, "/creditmigrations/m", code);
    let object = Arc::new(kube::core::DeserializeGuard(Ok(stage.live.clone())));
    let result = reconcile(object, Arc::new(stage.ctx)).await;
    assert_eq!(matches!(result, Err(Error::Conflict)), code == 409);
    assert!(result.is_err());
    let (events, effects): (Vec<_>, Vec<_>) =
        stage.api.writes().into_iter().filter(|w| !w.ends_with("/status")).partition(|w| w.ends_with("/events"));
    assert_eq!(effects, Vec::<String>::new());
    assert_eq!(events.is_empty(), code == 409, "a refused status is reported");
}
