//! Approvals: who counts, what for, and what calls them off.

use crate::machine::{SqlAuthor, tests::*};

fn waits(name: &'static str, when: When, reason: &'static str) -> Case {
    Case {
        name,
        given: awaiting,
        when,
        phase: Phase::AwaitingApproval,
        step: Step::Approve,
        reason,
        effects: &[],
        // Then no one is present any more.
        wake: Some(3600),
    }
}

#[test]
fn approvals_that_do_not_suffice() {
    assert_cases(&[
        waits("no approval", no_event, "ApprovalPending"),
        waits("one", |s| apply(s.submit("ann", DecisionKind::Approve)), "ApprovalPending"),
        waits(
            "one, twice",
            |s| apply(s.submit("ann", DecisionKind::Approve).submit("ann", DecisionKind::Approve)),
            "ApprovalPending",
        ),
        waits(
            "the author and one",
            |s| apply(s.submit("author", DecisionKind::Approve).submit("ann", DecisionKind::Approve)),
            "ApprovalPending",
        ),
        waits(
            "a replayed digest, of an older plan",
            |s| apply(s.submit("ann", DecisionKind::Approve).submit_on("bob", DecisionKind::Approve, Some("sha256:x"))),
            "ApprovalPending",
        ),
        waits(
            "no digest",
            |s| apply(s.submit("ann", DecisionKind::Approve).submit_on("bob", DecisionKind::Approve, None)),
            "ApprovalPending",
        ),
        waits(
            "present, not approving",
            |s| {
                let digest = s.status.plan.as_ref().unwrap().digest.clone();
                s.submit("ann", DecisionKind::Approve).submit_on("bob", DecisionKind::Ready, digest.as_deref());
            },
            "ApprovalPending",
        ),
        Case {
            wake: None,
            ..waits(
                "three are needed",
                |s| {
                    s.spec.approval.required = 3;
                    // A new spec has a new digest; here it is as if the evidence had been made for it.
                    let digest = crate::machine::plan_digest("uid-1", &s.spec, &s.status);
                    s.status.plan.as_mut().unwrap().digest = digest;
                    s.submit("ann", DecisionKind::Approve).submit("bob", DecisionKind::Approve);
                },
                "ApprovalPending",
            )
        },
        waits(
            "rejected",
            |s| {
                let digest = s.status.plan.as_ref().unwrap().digest.clone();
                s.submit("ann", DecisionKind::Approve).submit("bob", DecisionKind::Approve).submit_on(
                    "eve",
                    DecisionKind::Reject,
                    digest.as_deref(),
                );
            },
            "Rejected",
        ),
        waits(
            "rejected without a digest",
            |s| {
                s.submit("ann", DecisionKind::Approve)
                    .submit("bob", DecisionKind::Approve)
                    .submit("eve", DecisionKind::Reject);
            },
            "Rejected",
        ),
        waits(
            "names are not authenticated",
            |s| {
                s.submit("ann", DecisionKind::Approve).submit("bob", DecisionKind::Approve);
                s.observed.policy_problem = Some("policy gone".into());
            },
            "DecisionPolicyMissing",
        ),
        waits(
            "the flag is not at from",
            |s| {
                s.submit("ann", DecisionKind::Approve).submit("bob", DecisionKind::Approve);
                s.flag("v2", None);
            },
            "FlagNotAtFrom",
        ),
    ]);
}

#[test]
fn two_people_suffice() {
    let executing = |name, when| Case {
        name,
        given: awaiting,
        when,
        phase: Phase::Executing,
        step: Step::BlockWrites,
        reason: "PreparingWindow",
        effects: &["start m-window-1"],
        wake: Some(600),
    };
    assert_cases(&[
        executing("two", |s| apply(s.submit("ann", DecisionKind::Approve).submit("bob", DecisionKind::Approve))),
        executing("two and the author", |s| {
            s.submit("author", DecisionKind::Approve)
                .submit("ann", DecisionKind::Approve)
                .submit("bob", DecisionKind::Approve);
        }),
        executing("another plan was rejected", |s| {
            s.submit("ann", DecisionKind::Approve).submit("bob", DecisionKind::Approve).submit_on(
                "eve",
                DecisionKind::Reject,
                Some("sha256:x"),
            );
        }),
    ]);
    let mut s = awaiting();
    s.submit("bob", DecisionKind::Approve).submit("ann", DecisionKind::Approve).settle();
    assert_eq!(s.status.approvals.as_deref(), Some("2/2"));
    assert_eq!(s.status.approved_by, ["ann", "bob"]);
    let window = s.run(Task::Window).run.spec.window.clone().unwrap();
    assert_eq!(window.command, crate::api::WindowCommand::Standby, "the pod is started before the window opens");
    assert_eq!(s.status.window, None);
}

#[test]
fn approvals_are_counted_and_the_next_command_is_named() {
    let mut s = awaiting();
    s.submit("ann", DecisionKind::Approve).submit("author", DecisionKind::Approve).settle();
    assert_eq!(s.status.approvals.as_deref(), Some("1/2"));
    let digest = s.status.plan.as_ref().unwrap().digest.clone().unwrap();
    let (_, message) = ready(&s.status);
    assert_eq!(message, format!("1 of 2 people approved {digest}; next: kubectl creditmigration -n shop approve m"));
    assert!(digest.starts_with("sha256:") && digest.len() == 71, "{digest}");
}

/// A window was opened on the approvals of ann and bob, and ended without effect 0.5 s after a full second.
fn in_vain() -> Scenario {
    let mut s = blocking();
    s.now += jiff::SignedDuration::from_millis(500);
    s.state(Task::Window, WindowState::RolledBack).fail(Task::Window, Reason::LockTimeout).settle();
    assert_eq!(s.status.phase, Some(Phase::AwaitingApproval));
    s
}

/// A decision as the API server dates it: whole seconds, cut off.
fn submit_at(s: &mut Scenario, by: &str, millis: i64) {
    s.now += jiff::SignedDuration::from_millis(millis);
    s.submit(by, DecisionKind::Approve);
    s.observed.decisions.last_mut().unwrap().at = Time::from_second(s.now.as_second()).unwrap();
}

#[test]
fn approvals_around_the_end_of_a_window_without_effect() {
    let cases: &[(&str, i64, &str)] = &[
        ("before it, in its second", -300, "0/2"),
        ("in the same moment", 0, "0/2"),
        ("after it, in its second: in doubt it does not count", 300, "0/2"),
        ("in the next second", 500, "1/2"),
        ("later", 1700, "1/2"),
    ];
    for (name, millis, counted) in cases {
        let mut s = in_vain();
        submit_at(&mut s, "eve", *millis);
        s.wait(5).settle();
        assert_eq!(s.status.approvals.as_deref(), Some(*counted), "{name}");
        let (_, message) = ready(&s.status);
        let void = if *counted == "0/2" { "(ann, bob, eve)" } else { "(ann, bob)" };
        assert!(message.contains(&format!("no longer count {void}: approve again; next:")), "{name}: {message}");
        // No one is left out for ever.
        s.submit("eve", DecisionKind::Approve).submit("ann", DecisionKind::Approve).settle();
        assert_eq!((s.status.step, ready(&s.status).0.as_str()), (Some(Step::Schedule), "PresencePending"), "{name}");
        s.confirm_presence().settle();
        assert_eq!(s.status.phase, Some(Phase::Executing), "{name}");
    }
    // The API server's clock is ahead: what was said before is known by having been seen.
    let mut s = blocking();
    for d in &mut s.observed.decisions {
        d.at = s.now + seconds(30);
    }
    s.state(Task::Window, WindowState::RolledBack).fail(Task::Window, Reason::LockTimeout).settle();
    assert_eq!(s.status.approvals.as_deref(), Some("0/2"));
}

#[test]
fn whatever_people_approve_is_in_the_digest() {
    let s = awaiting();
    let digest = |s: &Scenario, uid: &str| crate::machine::plan_digest(uid, &s.spec, &s.status);
    let first = digest(&s, "uid-1");
    assert!(first.is_some());
    let changes: [(&str, When); 9] = [
        ("spec", |s| s.spec.approval.required = 3),
        ("up", |s| s.status.plan.as_mut().unwrap().up_sha256 = "x".into()),
        ("down", |s| s.status.plan.as_mut().unwrap().down_sha256 = "x".into()),
        ("image", |s| s.status.runner_image = Some("image:2".into())),
        ("backup", |s| s.status.backup.as_mut().unwrap().sha256 = "x".into()),
        ("object", |s| s.status.backup.as_mut().unwrap().object = "x".into()),
        ("verification", |s| s.status.verification.as_mut().unwrap().sha256 = "x".into()),
        ("rehearsal", |s| s.status.rehearsal.as_mut().unwrap().tables_equal = 4),
        ("no rehearsal", |s| s.status.rehearsal = None),
    ];
    for (what, change) in changes {
        let mut s = awaiting();
        change(&mut s);
        assert_ne!(digest(&s, "uid-1"), first, "{what}");
    }
    assert_ne!(digest(&s, "uid-2"), first, "UID");
    assert_eq!(digest(&awaiting(), "uid-1"), first, "the same evidence gives the same digest");
}

#[test]
fn evidence_that_does_not_fit_its_digest_restarts_the_preparation() {
    let mut s = awaiting();
    s.submit("ann", DecisionKind::Approve).submit("bob", DecisionKind::Approve);
    s.status.rehearsal.as_mut().unwrap().tables_equal = 4;
    let d = s.decide();
    assert_eq!((d.status.phase, d.status.step), (Some(Phase::Preparing), Some(Step::Preflight)));
    assert!(events(&d).contains(&"PreparationRestarted"));
}

#[test]
fn cancelled_before_the_window() {
    let cancelled = |name, given: Given, when: When, step, effects| Case {
        name,
        given,
        when,
        phase: Phase::Cancelled,
        step,
        reason: "Aborted",
        effects,
        wake: None,
    };
    assert_cases(&[
        cancelled(
            "in Preflight",
            preflight,
            |s| apply(s.submit("author", DecisionKind::Abort)),
            Step::Preflight,
            &["remove m-preflight-1"],
        ),
        cancelled(
            "in Rehearse",
            rehearsing,
            |s| apply(s.submit("ann", DecisionKind::Abort)),
            Step::Rehearse,
            &["remove m-rehearse-1"],
        ),
        cancelled(
            "waiting for approval",
            awaiting,
            |s| apply(s.submit("ann", DecisionKind::Abort)),
            Step::Approve,
            &[],
        ),
        cancelled(
            "in an unauthenticated name: a forged stop is the lesser harm",
            awaiting,
            |s| s.submit("ann", DecisionKind::Abort).observed.policy_problem = Some("gone".into()),
            Step::Approve,
            &[],
        ),
        cancelled(
            "Rollback means the same here",
            awaiting,
            |s| apply(s.submit("ann", DecisionKind::Rollback)),
            Step::Approve,
            &[],
        ),
        cancelled(
            "approved, the pod is being started",
            approved,
            |s| apply(s.submit("ann", DecisionKind::Abort)),
            Step::BlockWrites,
            &["remove m-window-1"],
        ),
        cancelled(
            "approved, the pod is ready in the same moment",
            approved,
            |s| apply(s.state(Task::Window, WindowState::Ready).submit("ann", DecisionKind::Abort)),
            Step::BlockWrites,
            &["remove m-window-1"],
        ),
    ]);
}

#[test]
fn a_rejected_plan_stays_rejected() {
    let mut s = blocking();
    let digest = s.status.plan.as_ref().unwrap().digest.clone();
    s.submit_on("eve", DecisionKind::Reject, digest.as_deref());
    s.wait(1).state(Task::Window, WindowState::RolledBack).fail(Task::Window, Reason::LockTimeout).settle();
    s.wait(2).submit("ann", DecisionKind::Approve).submit("bob", DecisionKind::Approve).settle();
    assert_eq!((s.status.phase, ready(&s.status).0.as_str()), (Some(Phase::AwaitingApproval), "Rejected"));
}

#[test]
fn a_reject_without_a_digest_says_that_no_change_of_the_plan_helps() {
    let mut s = awaiting();
    s.submit("eve", DecisionKind::Reject);
    let message = ready(&s.decide().status).1;
    assert!(message.starts_with("eve rejected every plan of this migration; next: "), "{message}");
    assert!(message.contains("creditmigration -n shop abort m; then create"), "{message}");
    let mut s = awaiting();
    let digest = s.status.plan.as_ref().unwrap().digest.clone();
    s.submit_on("eve", DecisionKind::Reject, digest.as_deref());
    let message = ready(&s.decide().status).1;
    assert!(message.ends_with("; next: change the plan, or abort it"), "{message}");
}

/// Both have approved, and the window waits for its people; the application has a template.
fn approved_application() -> Scenario {
    let mut s = Scenario::new();
    s.observed.workloads[0].template_sha256 = Some("sha256:one".into());
    s.settle();
    for task in [Task::Preflight, Task::Backup, Task::VerifyBackup, Task::ExportKeyUsers, Task::Rehearse] {
        s.wait(1).succeed(task).settle();
    }
    s.submit("ann", DecisionKind::Approve).submit("bob", DecisionKind::Approve).settle();
    assert_eq!((s.status.phase, s.status.step), (Some(Phase::AwaitingApproval), Some(Step::Schedule)));
    s
}

#[test]
fn another_application_than_the_approved_one_voids_the_approvals() {
    let mut s = approved_application();
    let approved = s.status.plan.clone().unwrap();
    s.observed.workloads[0].template_sha256 = Some("sha256:two".into());
    let d = s.reconcile();
    let plan = s.status.plan.clone().unwrap();
    assert_ne!(plan.digest, approved.digest);
    assert_eq!((s.status.step, s.status.approvals.as_deref()), (Some(Step::Approve), Some("0/2")));
    assert!(events(&d).contains(&"ApplicationChanged"), "{:?}", events(&d));
    let (reason, message) = ready(&s.status);
    assert_eq!(reason, "ApprovalPending");
    assert!(message.contains("the pod template of shop has changed"), "{message}");
    assert!(s.status.rehearsal.is_some(), "the SQL was rehearsed all the same");
    assert!(!events(&s.reconcile()).contains(&"ApplicationChanged"), "once");
    // As it was: the approvals of that plan count again, for it is what was approved.
    s.observed.workloads[0].template_sha256 = Some("sha256:one".into());
    s.settle();
    assert_eq!(s.status.plan.clone().unwrap().digest, approved.digest);
    assert_eq!(s.status.step, Some(Step::Schedule));
}

#[test]
fn another_application_starts_no_window() {
    let mut s = approved_application();
    s.confirm_presence().settle();
    assert_eq!(s.status.phase, Some(Phase::Executing));
    s.observed.workloads[0].template_sha256 = Some("sha256:two".into());
    let d = s.state(Task::Window, WindowState::Ready).reconcile();
    assert_eq!((s.status.phase, s.status.step), (Some(Phase::AwaitingApproval), Some(Step::Approve)));
    assert!(actions(&d).iter().all(|a| !a.starts_with("order")), "{:?}", actions(&d));
    assert!(events(&d).contains(&"WindowNotStarted") && events(&d).contains(&"ApplicationChanged"), "{:?}", events(&d));
}

#[test]
fn a_workload_that_is_missing_is_not_another_application() {
    let mut s = approved_application();
    let workloads = s.observed.workloads.clone();
    s.observed.workloads.clear();
    s.settle();
    assert_eq!(ready(&s.status).0, "WorkloadMissing");
    s.observed.workloads = workloads;
    s.settle();
    assert_eq!((s.status.step, s.status.approvals.as_deref()), (Some(Step::Schedule), Some("2/2")));
}

#[test]
fn who_wrote_the_sql_does_not_approve_it() {
    let mut s = awaiting();
    let by = |author: Option<&str>| SqlAuthor { config_map: "sql".into(), author: author.map(Into::into) };
    s.observed.sql_authors = vec![by(Some("ann"))];
    s.submit("ann", DecisionKind::Approve).submit("bob", DecisionKind::Approve).settle();
    assert_eq!(s.status.approvals.as_deref(), Some("1/2"));
    assert_eq!(s.status.approved_by, ["bob"]);
    // Not known: that is said, and any two approve.
    s.observed.sql_authors = vec![by(None)];
    s.observed.decisions.pop();
    let message = ready(&s.settle().status).1;
    assert!(message.contains("who wrote ConfigMap sql is not known: label it creditmigration.io/sql"), "{message}");
}
