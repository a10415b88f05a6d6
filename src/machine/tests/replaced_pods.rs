//! Which pods a switch replaces, and what happens when those that it starts do not become ready.

use super::{notices::channel, *};
use crate::{
    api::{Audience, Occasion},
    machine::{RolloutFailure, RolloutFailureKind, WorkloadPod},
};

const WINDOW: Task = Task::Window;
const BACK: Task = Task::RollbackWindow;
const TO: Option<&str> = Some("uid-1.to");

impl Scenario {
    /// The pods of the workload: annotation, and when they started.
    fn pods(&mut self, pods: &[(Option<&str>, Option<i64>)]) -> &mut Self {
        let pod = |&(marker, start): &(Option<&str>, Option<i64>)| WorkloadPod {
            restarted_for: marker.map(ToOwned::to_owned),
            started_at: start.map(time),
        };
        let workload = &mut self.observed.workloads[0];
        workload.pods = pods.iter().map(pod).collect();
        let old = workload.pods.iter().filter(|pod| pod.restarted_for != workload.restarted_for).count();
        workload.old_pods = u32::try_from(old).unwrap();
        self
    }

    fn failure(&mut self, kind: RolloutFailureKind, reason: &str) -> &mut Self {
        let why = PodReason::new(reason, "as Kubernetes says");
        self.observed.workloads[0].failure = Some(RolloutFailure { kind, pod: Some("shop-1".into()), why });
        self
    }
}

/// Executing: flag set and restart ordered at 1,000 s; the pods are those of before, started at 0 s.
fn untouched() -> Scenario {
    let mut s = migrated();
    s.now = time(1_000);
    s.status.window.as_mut().unwrap().deadline = Some(time(1_050));
    s.run(WINDOW).written_at = Some(time(1_000));
    s.acknowledge(WINDOW).settle().pods(&[(None, Some(0)), (None, Some(0))]);
    s
}

#[test]
fn a_switch_that_cannot_settle_ends_the_window_early() {
    let cases = [
        (RolloutFailureKind::NoProgress, "ProgressDeadlineExceeded", 0),
        (RolloutFailureKind::ImageInvalid, "InvalidImageName", 0),
        (RolloutFailureKind::CrashLoop, "CrashLoopBackOff", 5),
        (RolloutFailureKind::ContainerNotCreated, "CreateContainerConfigError", 10),
        (RolloutFailureKind::ImageNotPulled, "ImagePullBackOff", 15),
        (RolloutFailureKind::PodsRefused, "FailedCreate", 15),
    ];
    for (kind, reason, after) in cases {
        let mut s = switching();
        s.failure(kind, reason);
        if after > 0 {
            s.settle().wait(after - 1).settle();
            assert_eq!(s.status.phase, Some(Phase::Executing), "{reason}: it may pass by itself");
            assert_eq!(s.status.problems[0].reason, "RolloutFailed");
            s.wait(1);
        }
        let d = s.reconcile();
        let rollback = d.status.rollback.clone().unwrap_or_else(|| panic!("{reason}: it is awaited"));
        assert_eq!((d.status.phase, d.status.step), (Some(Phase::RollingBack), Some(Step::SwitchBack)));
        assert_eq!(rollback.cause, "RolloutFailed");
        let words = format!("pod shop-1 of Deployment shop does not become ready: {reason}: as Kubernetes says");
        assert!(rollback.message.contains(&words), "{}", rollback.message);
        assert_eq!(actions(&d), ["flag v1 uid-1.rollback"], "{reason}");
    }
}

#[test]
fn what_passes_by_itself_ends_no_window() {
    let mut s = switching();
    s.failure(RolloutFailureKind::ImageNotPulled, "ErrImagePull").settle().wait(14).settle();
    s.observed.workloads[0].failure = None;
    s.wait(1).settle();
    assert_eq!(s.status.problems, []);
    s.failure(RolloutFailureKind::ImageNotPulled, "ErrImagePull").settle().wait(14).settle();
    assert_eq!(s.status.phase, Some(Phase::Executing), "it counts from its own start");
}

#[test]
fn failures_of_other_pods_are_not_the_switchs() {
    let before: [(&str, Given); 3] =
        [("blocked", blocking), ("not acknowledged", migrated), ("unblocking", unblocking)];
    for (name, given) in before {
        let mut s = given();
        s.failure(RolloutFailureKind::NoProgress, "ProgressDeadlineExceeded").settle();
        assert_eq!(s.status.phase, Some(Phase::Executing), "{name}");
    }
    // The restart is not ordered yet: what is observed is of the earlier template.
    let mut s = migrated();
    s.acknowledge(WINDOW).failure(RolloutFailureKind::NoProgress, "ProgressDeadlineExceeded");
    assert_eq!(s.decide().status.phase, Some(Phase::Executing));
}

#[test]
fn a_rollback_whose_pods_fail_is_reported_at_once_and_goes_on() {
    let mut s = blocked_for_rollback();
    s.spec.notifications.channels = vec![channel("chat", Audience::Team)];
    s.acknowledge(BACK).settle();
    let d = s.failure(RolloutFailureKind::ImageNotPulled, "ErrImagePull").reconcile();
    assert!(events(&d).contains(&"RolloutFailed"), "{:?}", events(&d));
    let (_, message) = ready(&d.status);
    assert!(message.contains("ErrImagePull: as Kubernetes says"), "{message}");
    for wait in [0, 30, 600] {
        s.wait(wait).settle();
        assert_eq!((s.status.phase, s.status.step), (Some(Phase::RollingBack), Some(Step::SwitchBack)));
        assert_eq!(s.status.writes, Some(crate::api::Writes::Blocked), "both versions may serve");
        let alert = |n: &&crate::api::NoticeStatus| n.notice.message.contains("both versions may serve");
        let alerts: Vec<_> = s.status.notices.iter().filter(alert).collect();
        assert_eq!(alerts.len(), 1, "once");
        assert_eq!(alerts[0].notice.occasion, Occasion::ManualInterventionRequired);
    }
}

#[test]
fn a_rollback_in_the_window_keeps_the_pods_that_cannot_have_read_the_new_value() {
    const KEEP: &str = "keep shop - uid-1.rollback";
    const REPLACE: &str = "restart shop uid-1.rollback";
    type Pods = &'static [(Option<&'static str>, Option<i64>)];
    let cases: [(&str, Pods, &str); 8] = [
        ("no pod was started", &[(None, Some(0)), (None, Some(0))], KEEP),
        ("a pod of the new template crashes", &[(None, Some(0)), (None, Some(0)), (TO, None)], KEEP),
        ("the last start that is early enough", &[(None, Some(0)), (None, Some(990))], KEEP),
        ("a container was restarted in its pod", &[(None, Some(0)), (None, Some(991))], REPLACE),
        ("a start is not known", &[(None, Some(0)), (None, None)], REPLACE),
        ("a pod was replaced already", &[(None, Some(0)), (TO, Some(1_001))], REPLACE),
        ("templates differ", &[(None, Some(0)), (Some("uid-0.to"), Some(0))], REPLACE),
        ("no pod is left", &[], REPLACE),
    ];
    for (name, pods, expected) in cases {
        let mut s = untouched();
        s.pods(pods).submit("ann", DecisionKind::Abort);
        assert_eq!(actions(&s.reconcile()), ["flag v1 uid-1.rollback"], "{name}: the flag comes first");
        assert_eq!(actions(&s.reconcile()), [expected], "{name}");
    }
}

#[test]
fn a_rollback_that_keeps_its_pods_is_over_when_they_are_seen_once_more() {
    let mut s = untouched();
    s.spec.application.version_probe = None;
    s.submit("ann", DecisionKind::Abort).settle();
    s.observed.workloads[0].unsettled = None;
    s.settle();
    assert_eq!(s.status.step, Some(Step::SwitchBack), "the kubelet may report a restart a moment later");
    s.wait(5);
    assert_eq!(actions(&s.reconcile()), ["order m-window-1 Rollback"]);

    // With a probe its fresh answer decides, and one of the new version replaces all pods.
    let mut s = untouched();
    s.submit("ann", DecisionKind::Abort).settle();
    s.observed.workloads[0].unsettled = None;
    s.settle().wait(1).probe(WINDOW, "v1, v2").settle().wait(10);
    assert_eq!(actions(&s.reconcile()), ["restart shop uid-1.rollback.2"]);
}

#[test]
fn pods_are_kept_only_with_the_marker_of_the_rollback_and_no_pod_of_the_new_template() {
    let mut s = untouched();
    s.spec.application.version_probe = None;
    s.submit("ann", DecisionKind::Abort).reconciled();
    s.observed.workloads[0].unsettled = None;
    // As if the forward restart had never been written: without the marker it could still arrive.
    s.observed.workloads[0].restarted_for = None;
    assert_eq!(actions(&s.decide()), ["keep shop - uid-1.rollback"]);
    s.reconciled().pods(&[(None, Some(0)), (None, Some(0)), (TO, None)]).wait(60).settle();
    assert_eq!(s.status.step, Some(Step::SwitchBack), "a pod of the new template is left");
    s.pods(&[(None, Some(0)), (None, Some(0))]).settle().wait(5).settle();
    assert_eq!(s.status.step, Some(Step::RollbackSql));
}

#[test]
fn after_the_window_every_pod_is_replaced() {
    let mut s = blocked_for_rollback();
    let until = s.now;
    s.status.window.as_mut().unwrap().unswitched_until = Some(until);
    s.pods(&[(None, Some(-100)), (None, Some(-100))]).acknowledge(BACK).reconciled();
    assert_eq!(actions(&s.reconcile()), ["restart shop uid-1.rollback"]);
}

#[test]
fn when_the_flag_was_not_set_yet_is_known_by_the_api_servers_clock_alone() {
    let mut s = migrated();
    s.run(WINDOW).written_at = Some(time(7));
    s.acknowledge(WINDOW).wait(5).reconciled();
    assert_eq!(s.status.window.as_ref().unwrap().unswitched_until, Some(time(7)));
    // A later report, and the next pod, do not move it.
    s.run(WINDOW).written_at = Some(time(200));
    s.settle();
    assert_eq!(s.status.window.as_ref().unwrap().unswitched_until, Some(time(7)));
}
