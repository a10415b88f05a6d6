//! The corpus: databases of many shapes, each through backup, verification, rehearsal, window and rollback, with no
//! false refusal and no false pass. A shape is a file of `tests/corpus`, which starts with what it is; see its README.

use std::{collections::BTreeMap, path::PathBuf};

use credit_migration::{
    api::{Direction, LostRight, RunInputs, Task, WindowCommand as Order, WindowOrder, WindowState as State, sha256},
    runner::{
        clients::rate_limit::RateLimit,
        database::{
            control::{ControlSpec, Sql},
            fingerprint::Fingerprint,
        },
        tasks::window::WindowPlan,
    },
};
use serde_json::Value;

use crate::{
    desk::{Desk, end},
    harness::{DOWN, Outcome, UP, World},
    programs::MAJOR,
};

/// A shape without the sample has its own tables of credits.
const DROP_SAMPLE: &str = "DROP TABLE users, user_credits, credit_transactions, credit_packages, credit_purchases, \
    subscriptions CASCADE";

/// Parts of a shape by their names. What follows a name in its line is the part's own, too.
struct Shape(BTreeMap<String, String>);

impl Shape {
    fn read(text: &str, number: u32) -> Self {
        let text = text.replace("{n}", &number.to_string()).replace("{up}", UP).replace("{down}", DOWN);
        let mut parts: BTreeMap<String, String> = BTreeMap::new();
        let mut name = String::new();
        for line in text.lines() {
            match line.strip_prefix("--! ") {
                Some(head) => {
                    let (first, rest) = head.split_once(' ').unwrap_or((head, ""));
                    name = first.to_owned();
                    parts.insert(name.clone(), rest.to_owned() + "\n");
                }
                None if !name.is_empty() => parts.get_mut(&name).unwrap().extend([line, "\n"]),
                None => {}
            }
        }
        Self(parts)
    }

    fn part(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|text| text.trim())
    }

    fn sql(&self, name: &str, default: &str) -> String {
        self.part(name).unwrap_or(default).to_owned()
    }

    /// The first line of a part, and the rest.
    fn split(&self, name: &str) -> Option<(&str, &str)> {
        self.part(name).map(|text| text.split_once('\n').unwrap_or((text, "")))
    }
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

/// The step has ended as the shape says: `refused STEP REASON words`. `true` if nothing is to follow.
fn ended(shape: &Shape, step: &str, outcome: &Outcome) -> bool {
    let refused = shape.split("refused").and_then(|(line, _)| line.strip_prefix(step)).map(str::trim);
    match (refused, &outcome.result) {
        (None, Ok(_)) => false,
        (None, Err(failure)) => panic!("{step}: {failure} {:?}", outcome.noted.get("findings")),
        (Some(words), Ok(message)) => panic!("{step} passed, not refused with {words}: {message}"),
        (Some(words), Err(failure)) => {
            let (reason, words) = words.split_once(' ').unwrap_or((words, ""));
            let text = format!("{failure} {:?}", outcome.noted.get("findings"));
            assert!(text.contains(reason) && text.contains(words), "{step}: {text} lacks {reason} {words}");
            true
        }
    }
}

/// Databases that are large are made once: see the README.
fn is_left_out(shape: &Shape) -> bool {
    let since = shape.part("since").map_or(0, |major| major.parse().unwrap());
    *MAJOR < since || shape.part("whole").is_some() && std::env::var_os("CORPUS").is_none_or(|part| part != "whole")
}

#[rstest::rstest]
#[tokio::test]
async fn a_shape_goes_there_and_back(#[files("tests/corpus/*.sql")] file: PathBuf) {
    let text = std::fs::read_to_string(file).unwrap();
    if is_left_out(&Shape::read(&text, 0)) {
        return;
    }
    let mut world = World::new().await;
    let shape = Shape::read(&text, world.number);
    if shape.part("alone").is_some() {
        world.owner().await.batch_execute(DROP_SAMPLE).await.unwrap();
    }
    if let Some(sql) = shape.part("root") {
        world.alter(sql).await;
    }
    if let Some(sql) = shape.part("owner") {
        world.owner().await.batch_execute(sql).await.unwrap();
    }
    if let Some(json) = shape.part("plan") {
        let mut plan = serde_json::to_value(&world.spec.plan).unwrap();
        merge(&mut plan, serde_json::from_str(json).unwrap());
        world.spec.plan = serde_json::from_value(plan).unwrap();
    }
    world.sql(&shape.sql("up", UP), &shape.sql("down", DOWN));
    if ended(&shape, "Preflight", &world.run(Task::Preflight).await) {
        return;
    }
    world.backed_up().await;
    assert!(!ended(&shape, "VerifyBackup", &world.run(Task::VerifyBackup).await));
    let rehearsed = world.run(Task::Rehearse).await;
    if ended(&shape, "Rehearse", &rehearsed) {
        return;
    }
    let evidence = &rehearsed.noted["rehearsal"];
    let names: Vec<&str> =
        evidence["leftOut"].as_array().into_iter().flatten().map(|object| object["name"].as_str().unwrap()).collect();
    let expected: Vec<&str> = shape.part("left-out").map(|text| text.lines().collect()).unwrap_or_default();
    assert_eq!(names, expected, "left out of the copy");
    not_passed(&mut world, &shape).await;

    let mut live = world.target().connect("test").await.unwrap();
    let before = Fingerprint::take(&mut live, &RateLimit::new(None), |_, _| {}).await.unwrap();
    let plan = plan(&world, &shape, evidence);
    window(&world, &plan, Order::UnblockWrites, State::Unblocked).await;
    if ended(&shape, "RehearseRollback", &world.run(Task::RehearseRollback).await) {
        return;
    }
    window(&world, &WindowPlan { direction: Direction::Rollback, ..plan }, Order::Rollback, State::RolledBack).await;
    let differences =
        before.differences(&Fingerprint::take(&mut live, &RateLimit::new(None), |_, _| {}).await.unwrap());
    assert!(differences.is_empty(), "after the rollback: {}", differences.join("; "));
}

/// A down SQL that forgets a part of the shape is refused: `wrong REASON words`, and what is run after the down SQL.
async fn not_passed(world: &mut World, shape: &Shape) {
    let Some((line, sql)) = shape.split("wrong") else { return };
    let (reason, words) = line.split_once(' ').unwrap();
    let (up, down) = (shape.sql("up", UP), shape.sql("down", DOWN));
    world.sql(&up, &format!("{down};\n{sql}"));
    let refused = world.run(Task::Rehearse).await;
    let text = format!("{} {}", refused.failure().reason, refused.failure());
    assert!(text.contains(reason) && text.contains(words), "wrong: {text} lacks {reason} {words}");
    world.sql(&up, &down);
}

fn plan(world: &World, shape: &Shape, evidence: &Value) -> WindowPlan {
    let read = |name: &str, text: String| Sql::read(name, text);
    let (up, down) = (shape.sql("up", UP), shape.sql("down", DOWN));
    let rights: Vec<LostRight> = serde_json::from_value(evidence["rightsLost"].clone()).unwrap_or_default();
    WindowPlan {
        control_spec: ControlSpec {
            rehearsed_schema: Some(evidence["schema"]["sha256"].as_str().unwrap().to_owned()),
            approved_rights_lost: rights,
            ..world.control_spec()
        },
        direction: Direction::Forward,
        attempt: 1,
        inputs: RunInputs {
            up_sha256: sha256(up.as_bytes()),
            down_sha256: sha256(down.as_bytes()),
            ..RunInputs::default()
        },
        up: read("up SQL", up),
        down: read("down SQL", down),
        order: WindowOrder { command: Order::Standby, deadline: None },
        poll: std::time::Duration::from_millis(10),
    }
}

/// A window from its start to this order, and how it ends.
async fn window(world: &World, plan: &WindowPlan, last: Order, state: State) {
    let desk = Desk::new();
    let task = desk.start_on(world.target(), plan);
    desk.order(Order::BlockWrites);
    let reached = if plan.direction == Direction::Forward { State::Migrated } else { State::Blocked };
    tokio::select! {
        outcome = desk.until("comparison", |progress, _| progress.state == reached
            && (progress.comparison.is_some() || plan.direction == Direction::Rollback)) => drop(outcome),
        () = async { while !task.is_finished() { tokio::task::yield_now().await } } => {}
    }
    if !task.is_finished() {
        desk.order(Order::Switch);
        desk.until("acknowledgement", |progress, _| progress.switch_acknowledged).await;
        desk.order(last);
    }
    let outcome = end(task).await;
    assert_eq!((outcome.progress.state, outcome.failure), (state, None), "{:?}", plan.direction);
}
