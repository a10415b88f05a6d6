//! Commands in messages: an on-call engineer copies them. Every decision of every table is checked here.

use std::{cell::RefCell, collections::HashSet};

use super::*;
use crate::shared::command::PLUGIN_COMMANDS;

thread_local! {
    /// What was checked already: a message is in many decisions.
    static CHECKED: RefCell<HashSet<String>> = RefCell::default();
}

/// Panics if a message of the decision has a command that cannot be copied as it stands.
pub(super) fn assert_commands_can_be_copied(d: &Decision) {
    let conditions = d.status.conditions.iter().map(|c| &c.message);
    let steps = d.status.steps.iter().filter_map(|step_status| step_status.message.as_ref());
    let notices = d.status.notices.iter().map(|n| &n.notice.message);
    let checks = d.status.checks.iter().map(|c| &c.message);
    let events = d.effects.iter().filter_map(|e| if let Effect::Event(event) = e { Some(&event.note) } else { None });
    for text in conditions.chain(steps).chain(notices).chain(checks).chain(events) {
        if CHECKED.with_borrow_mut(|tried| tried.insert(text.clone()))
            && let Err(why) = wrong(text)
        {
            panic!("{why} in: {text}");
        }
    }
}

/// Number of the plugin's commands in a text; `Err` says what is wrong with one.
fn wrong(text: &str) -> Result<usize, String> {
    let mut found = 0;
    for (at, _) in text.match_indices("kubectl ") {
        // It ends where prose starts again.
        let command = text[at..].split([';', ')']).next().unwrap_or_default();
        let words: Vec<&str> = command.split_whitespace().collect();
        if words.iter().any(|word| word.starts_with('(')) {
            return Err(format!("prose in: {command}"));
        }
        if words.get(1) != Some(&"creditmigration") {
            if words.get(1..3) != Some(&["-n", "shop"]) {
                return Err(format!("no namespace: {command}"));
            }
            continue;
        }
        if words.get(2..4) != Some(&["-n", "shop"]) {
            return Err(format!("no namespace: {command}"));
        }
        // `PLUGIN_COMMANDS` are parsed by the plugin's own tests.
        let rest = words[4..].join(" ");
        if !PLUGIN_COMMANDS.iter().any(|known| known.replace("NAME", "m") == rest) {
            return Err(format!("not one of the plugin's: {command}"));
        }
        found += 1;
    }
    Ok(found)
}

#[rstest::rstest]
#[case("1 of 2; next: kubectl creditmigration -n shop approve m", Ok(1))]
#[case(
    "next: kubectl creditmigration -n shop keep m; \
     or, to roll back: kubectl creditmigration -n shop rollback m --confirm --reason WHY",
    Ok(2)
)]
#[case("next: kubectl -n shop get pods; see them", Ok(0))]
#[case("no command", Ok(0))]
#[case("next: kubectl creditmigration -n shop approve m to retry", Err("to retry"))]
#[case("next: kubectl creditmigration approve m", Err("no namespace"))]
#[case("next: kubectl creditmigration -n shop aprove m", Err("aprove"))]
#[case("next: kubectl get pods", Err("no namespace"))]
#[case("next: kubectl -n shop get pods (try 1)", Err("prose"))]
fn what_cannot_be_copied_is_found(#[case] text: &str, #[case] expected: Result<usize, &str>) {
    match (wrong(text), expected) {
        (Ok(found), Ok(expected)) => assert_eq!(found, expected),
        (Err(why), Err(part)) => assert!(why.contains(part), "{why}"),
        (found, expected) => panic!("{found:?}, expected {expected:?}"),
    }
}

#[test]
fn each_phase_has_commands_that_can_be_copied() {
    // `decide` panics on one that cannot. What waits for a decision names one.
    for s in each_phase() {
        let (reason, message) = ready(&s.decide().status);
        if ["ApprovalPending", "WritesBlocked", "Progressing", "DecisionDue", "SqlFailed"].contains(&reason.as_str())
            && s.status.phase != Some(Phase::Preparing)
            && s.status.phase != Some(Phase::Failed)
        {
            assert!(wrong(&message).unwrap() > 0, "{reason}: {message}");
        }
    }
}
