//! The switch of the application, when pods do not read what was set.

use super::*;

const WINDOW: Task = Task::Window;
const BACK: Task = Task::RollbackWindow;

/// Rolled out on the forward path.
fn settled() -> Scenario {
    let mut s = switching();
    s.rollout(true, 0).settle();
    s
}

/// Rolled out in the rollback.
fn settled_back() -> Scenario {
    let mut s = blocked_for_rollback();
    s.acknowledge(BACK).settle().rollout(true, 0).settle();
    s
}

#[test]
fn what_the_probe_says_of_a_settled_rollout() {
    let case = |name, given, when, effects, wake| Case {
        name,
        given,
        when,
        phase: Phase::Executing,
        step: Step::SwitchApplication,
        reason: "WritesBlocked",
        effects,
        wake: Some(wake),
    };
    let back = |name, given, when, effects, wake| Case {
        phase: Phase::RollingBack,
        step: Step::SwitchBack,
        reason: "RollingBack",
        ..case(name, given, when, effects, wake)
    };
    let again: &[&str] = &["restart shop uid-1.to.2"];
    assert_cases(&[
        case("wrong for 9 s", settled, |s| apply(s.probe(WINDOW, "v1").wait(9)), &[], 1),
        case("wrong for 10 s", settled, |s| apply(s.probe(WINDOW, "v1").wait(10)), again, 40),
        case("some pods", settled, |s| apply(s.probe(WINDOW, "v1, v2").wait(10)), again, 40),
        case("some pods, not for long", settled, |s| apply(s.probe(WINDOW, "v1, v2").wait(1)), &[], 9),
        case("right, then wrong", settled, |s| apply(s.probe(WINDOW, "v2").wait(10).probe(WINDOW, "v1")), again, 40),
        case("never answered", settled, |s| apply(s.wait(30)), &[], 20),
        case("not asked since: right", switching, |s| apply(s.probe(WINDOW, "v2").wait(1).rollout(true, 0)), &[], 49),
        case(
            "not asked since: wrong",
            || {
                let mut s = switching();
                s.probe(WINDOW, "v1").wait(1).rollout(true, 0).settle();
                s
            },
            |s| apply(s.wait(30)),
            &[],
            19,
        ),
        case(
            "the rollout has yet to settle",
            settled,
            |s| apply(s.probe(WINDOW, "v1").rollout(false, 0).settle().wait(30)),
            &[],
            2,
        ),
        case(
            "an old pod is back",
            settled,
            |s| apply(s.probe(WINDOW, "v1").rollout(true, 1).settle().wait(30)),
            &[],
            2,
        ),
        case(
            "the flag is another's: first the flag",
            settled,
            |s| s.probe(WINDOW, "v1").wait(30).flag("v2", Some("uid-0.to")),
            &["flag v2 uid-1.to"],
            2,
        ),
        back("back, wrong for 9 s", settled_back, |s| apply(s.probe(BACK, "v2").wait(9)), &[], 1),
        back(
            "back, wrong for 10 s",
            settled_back,
            |s| apply(s.probe(BACK, "v2").wait(10)),
            &["restart shop uid-1.rollback.2"],
            49,
        ),
        back("back, never answered", settled_back, |s| apply(s.wait(30)), &[], 29),
    ]);
}

#[test]
fn workloads_are_restarted_again_until_the_probe_is_content() {
    let mut s = settled();
    s.probe(WINDOW, "v1").wait(10);
    let d = s.decide();
    assert_eq!(d.status.window.as_ref().unwrap().restarts, 1, "persisted with the effect");
    assert_eq!(events(&d), ["RestartedAgain"]);
    let text = format!("{:?}", d.effects);
    assert!(text.contains("answers \\\"v1\\\", wanted is \\\"v2\\\""), "{text}");
    // A crash before the effect: it comes again, the number does not rise.
    s.status = d.status.clone();
    assert_eq!(actions(&s.decide()), ["restart shop uid-1.to.2"]);
    assert_eq!(s.decide().status.window.unwrap().restarts, 1);
    s.settle();
    assert_eq!(
        s.observed.flag,
        ObservedFlag::Value { value: "v2".into(), immutable: false, set_for: Some("uid-1.to".into()) }
    );

    // The next one is allowed more time, from the end of its rollout.
    s.wait(3).rollout(true, 0).settle();
    s.wait(1).probe(WINDOW, "v1, v2").settle().wait(13);
    assert_eq!(actions(&s.reconcile()), Vec::<String>::new());
    s.wait(1);
    assert_eq!(actions(&s.reconcile()), ["restart shop uid-1.to.3"]);
    s.rollout(true, 0).settle();
    assert_eq!(s.status.step, Some(Step::SwitchApplication), "answers of the pods before do not count");
    s.wait(1).probe(WINDOW, "v2").settle();
    assert_eq!(s.status.step, Some(Step::UnblockWrites));
}

#[test]
fn no_restart_has_the_number_of_an_earlier_one() {
    // Stopped after a second restart: the rollback in the same window continues counting ...
    let mut s = settled();
    s.probe(WINDOW, "v1").wait(10).settle().submit("ann", DecisionKind::Abort).settle();
    assert_eq!(s.observed.workloads[0].restarted_for.as_deref(), Some("uid-1.rollback.2"));
    // ... and so does a rollback that is started again.
    let mut s = settled_back();
    s.probe(BACK, "v2").wait(10).settle();
    s.fail(BACK, Reason::SqlFailed).settle();
    assert_eq!(s.status.phase, Some(Phase::RollbackFailed));
    s.wait(1).submit("bob", DecisionKind::Rollback).settle().state(BACK, WindowState::Blocked).settle();
    s.acknowledge(BACK).settle().rollout(true, 0).settle();
    assert_eq!(s.observed.workloads[0].restarted_for.as_deref(), Some("uid-1.rollback.2"));
    s.probe(BACK, "v2").wait(15).settle();
    assert_eq!(s.observed.workloads[0].restarted_for.as_deref(), Some("uid-1.rollback.3"));
}

#[test]
fn without_a_probe_the_rollout_decides() {
    let mut s = switching();
    s.spec.application.version_probe = None;
    s.rollout(true, 0).settle();
    assert_eq!(s.status.step, Some(Step::UnblockWrites));
    assert_eq!(s.status.window.unwrap().restarts, 0);
}

#[test]
fn what_allowed_unblocking_is_checked_again() {
    // While balances are compared a pod of the old version answers.
    let mut s = switched();
    s.wait(1).probe(WINDOW, "v1, v2").compared(WINDOW, 0).settle();
    assert_eq!(s.status.step, Some(Step::SwitchApplication));
    assert!(!s.status.window.as_ref().unwrap().unblocking);
    s.wait(1).probe(WINDOW, "v2").settle();
    assert!(s.status.window.as_ref().unwrap().unblocking);
}

#[test]
fn what_was_switched_is_checked_until_writes_are_unblocked() {
    let mut s = switched();
    s.flag("v1", None);
    let d = s.reconcile();
    assert_eq!((d.status.step, actions(&d)), (Some(Step::SwitchApplication), vec!["flag v2 uid-1.to".to_owned()]));
    s.compared(Task::Window, 0).rollout(true, 1).settle();
    assert!(!s.status.window.as_ref().unwrap().unblocking, "an old pod is back");
    s.rollout(true, 0).settle().wait(1).probe(Task::Window, "v2").settle();
    assert!(s.status.window.as_ref().unwrap().unblocking);
}

#[test]
fn the_probes_word_is_dated_by_the_runners_clock_alone() {
    let mut s = switching();
    // A runner whose clock is an hour ahead, and whose last answer is from before the rollout.
    let ahead = s.now + seconds(3_600);
    s.progress(Task::Window, |w| (w.observed_version, w.observed_at) = (Some("v2".into()), Some(ahead)));
    s.rollout(true, 0).settle();
    assert_eq!(s.status.step, Some(Step::SwitchApplication));
    s.progress(Task::Window, |w| w.observed_at = Some(ahead + seconds(1))).settle();
    assert_eq!(s.status.step, Some(Step::UnblockWrites));
}
