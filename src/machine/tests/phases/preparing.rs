//! Start, the preparing steps, what blocks them in the cluster, and restarts.

use crate::{
    api::{ClockOffset, ExpectedRollout},
    machine::{QuotaShortage, tests::*},
};

fn case(
    name: &'static str,
    given: Given,
    when: When,
    step: Step,
    reason: &'static str,
    effects: &'static [&'static str],
    wake: Option<i64>,
) -> Case {
    Case { name, given, when, phase: Phase::Preparing, step, reason, effects, wake }
}

#[test]
fn steps_follow_each_other() {
    assert_cases(&[
        case("new", Scenario::new, no_event, Step::Preflight, "Progressing", &["start m-preflight-1"], None),
        case(
            "nothing is started before deletion can be delayed",
            Scenario::new,
            |s| s.observed.finalizer = false,
            Step::Preflight,
            "Progressing",
            &["finalizer"],
            None,
        ),
        case("Preflight is under way", preflight, no_event, Step::Preflight, "Progressing", &[], None),
        case(
            "the run is there, its Job is not",
            preflight,
            |s| s.run(Task::Preflight).job = Job::Absent,
            Step::Preflight,
            "Progressing",
            &["start m-preflight-1"],
            None,
        ),
        case(
            "Preflight succeeded",
            preflight,
            |s| apply(s.succeed(Task::Preflight)),
            Step::Baseline,
            "Progressing",
            &["start m-backup-1"],
            None,
        ),
        case(
            "the baseline is reported while the dump is running",
            || at(Step::Baseline),
            |s| {
                apply(s.report(Task::Backup, |s| {
                    (s.phase, s.baseline) = (RunPhase::Running, Some(fixtures::baseline(time(0))))
                }))
            },
            Step::Backup,
            "Progressing",
            &[],
            None,
        ),
        case(
            "baseline and backup are reported at once",
            || at(Step::Baseline),
            |s| apply(s.succeed(Task::Backup)),
            Step::VerifyBackup,
            "Progressing",
            &["start m-verify-1"],
            None,
        ),
        case(
            "Backup succeeded",
            || at(Step::Backup),
            |s| apply(s.succeed(Task::Backup)),
            Step::VerifyBackup,
            "Progressing",
            &["start m-verify-1"],
            None,
        ),
        case(
            "VerifyBackup succeeded",
            || at(Step::VerifyBackup),
            |s| apply(s.succeed(Task::VerifyBackup)),
            Step::ExportKeyUsers,
            "Progressing",
            &["start m-keyusers-1"],
            None,
        ),
        case(
            "ExportKeyUsers succeeded",
            || at(Step::ExportKeyUsers),
            |s| apply(s.succeed(Task::ExportKeyUsers)),
            Step::Rehearse,
            "Progressing",
            &["start m-rehearse-1"],
            None,
        ),
        Case {
            name: "Rehearse succeeded",
            given: rehearsing,
            when: |s| apply(s.succeed(Task::Rehearse)),
            phase: Phase::AwaitingApproval,
            step: Step::Approve,
            reason: "ApprovalPending",
            effects: &[],
            wake: None,
        },
    ]);
}

#[test]
fn failures_that_may_pass_are_tried_again() {
    assert_cases(&[
        case(
            "Preflight failed",
            preflight,
            |s| apply(s.fail(Task::Preflight, Reason::SecretKeyMissing)),
            Step::Preflight,
            "SecretKeyMissing",
            &[],
            Some(2),
        ),
        case(
            "... and it is not yet time",
            preflight,
            |s| apply(s.fail(Task::Preflight, Reason::SecretKeyMissing).settle().wait(1)),
            Step::Preflight,
            "SecretKeyMissing",
            &[],
            Some(1),
        ),
        case(
            "... and it is time: a fresh run in the place of the old one",
            preflight,
            |s| apply(s.fail(Task::Preflight, Reason::SecretKeyMissing).settle().wait(2)),
            Step::Preflight,
            "SecretKeyMissing",
            &["remove m-preflight-1", "start m-preflight-2"],
            None,
        ),
        case(
            "Preflight is tried for ever, each half minute",
            preflight,
            |s| {
                for _ in 0..20 {
                    s.fail(Task::Preflight, Reason::SecretKeyMissing).settle().wait(30).settle();
                }
                s.fail(Task::Preflight, Reason::SecretKeyMissing);
            },
            Step::Preflight,
            "SecretKeyMissing",
            &[],
            Some(30),
        ),
        case(
            "its Job failed without a report",
            preflight,
            |s| apply(s.lose_job(Task::Preflight)),
            Step::Preflight,
            "PodFailed",
            &[],
            Some(2),
        ),
        case(
            "its Job completed without a report",
            preflight,
            |s| s.run(Task::Preflight).job = Job::Complete,
            Step::Preflight,
            "PodFailed",
            &[],
            Some(2),
        ),
        case(
            "its Job took too long",
            rehearsing,
            |s| s.run(Task::Rehearse).job = Job::Failed { reason: "DeadlineExceeded".into() },
            Step::Rehearse,
            "StepTimeout",
            &[],
            Some(2),
        ),
        case(
            "a failed dump voids the baseline of its snapshot",
            || at(Step::Backup),
            |s| apply(s.fail(Task::Backup, Reason::DumpFailed)),
            Step::Baseline,
            "DumpFailed",
            &[],
            Some(2),
        ),
        case(
            "... both are taken again",
            || at(Step::Backup),
            |s| apply(s.fail(Task::Backup, Reason::DumpFailed).settle().wait(2)),
            Step::Baseline,
            "DumpFailed",
            &["remove m-backup-1", "start m-backup-2"],
            None,
        ),
        case(
            "the object is not what was uploaded",
            || at(Step::VerifyBackup),
            |s| {
                s.succeed(Task::VerifyBackup).report(Task::VerifyBackup, |s| {
                    s.verification = Some(VerificationEvidence { bytes: 10, sha256: "sha256:x".into(), entries: 3 });
                });
            },
            Step::VerifyBackup,
            "BackupAltered",
            &[],
            Some(2),
        ),
        case(
            "the object is cut",
            || at(Step::VerifyBackup),
            |s| {
                s.succeed(Task::VerifyBackup).report(Task::VerifyBackup, |s| {
                    s.verification = Some(VerificationEvidence { bytes: 9, sha256: "sha256:dump".into(), entries: 3 });
                });
            },
            Step::VerifyBackup,
            "BackupAltered",
            &[],
            Some(2),
        ),
        case(
            "success without evidence is none",
            rehearsing,
            |s| apply(s.report(Task::Rehearse, |s| s.phase = RunPhase::Succeeded)),
            Step::Rehearse,
            "Internal",
            &[],
            Some(2),
        ),
    ]);
}

fn exhaust(s: &mut Scenario, task: Task, reason: Reason) {
    for _ in 0..2 {
        s.fail(task, reason).settle().wait(300).settle();
    }
    s.fail(task, reason);
}

#[test]
fn preparation_fails_for_good() {
    let case = |name, given, when, step, reason| Case {
        name,
        given,
        when,
        phase: Phase::Failed,
        step,
        reason,
        effects: &[],
        wake: None,
    };
    assert_cases(&[
        case(
            "SQL that cannot be parsed",
            preflight,
            |s| apply(s.fail(Task::Preflight, Reason::SqlSyntaxError)),
            Step::Preflight,
            "SqlSyntaxError",
        ),
        case(
            "SQL that fails on the copy",
            rehearsing,
            |s| apply(s.fail(Task::Rehearse, Reason::SqlFailed)),
            Step::Rehearse,
            "SqlFailed",
        ),
        case(
            "a rollback that does not restore the old schema",
            rehearsing,
            |s| apply(s.fail(Task::Rehearse, Reason::RollbackNotEqual)),
            Step::Rehearse,
            "RollbackNotEqual",
        ),
        case(
            "the third dump fails",
            || at(Step::Baseline),
            |s| exhaust(s, Task::Backup, Reason::BucketDenied),
            Step::Baseline,
            "BucketDenied",
        ),
        case(
            "the backup is altered for the third time",
            || at(Step::VerifyBackup),
            |s| exhaust(s, Task::VerifyBackup, Reason::BackupAltered),
            Step::VerifyBackup,
            "BackupAltered",
        ),
        case(
            "the third rehearsal fails",
            rehearsing,
            |s| exhaust(s, Task::Rehearse, Reason::ConnectionLost),
            Step::Rehearse,
            "ConnectionLost",
        ),
        case(
            "the rehearsal predicts a longer window than allowed",
            rehearsing,
            |s| {
                apply(
                    s.succeed(Task::Rehearse).report(Task::Rehearse, |s| s.rehearsal = Some(fixtures::rehearsal(60.1))),
                )
            },
            Step::Rehearse,
            "WindowTooShort",
        ),
    ]);
    let mut s = rehearsing();
    s.succeed(Task::Rehearse).report(Task::Rehearse, |s| s.rehearsal = Some(fixtures::rehearsal(60.0))).settle();
    assert_eq!(s.status.phase, Some(Phase::AwaitingApproval), "a window exactly as long as allowed is allowed");
    let mut s = rehearsing();
    s.fail(Task::Rehearse, Reason::SqlFailed);
    let d = s.decide();
    let (_, message) = ready(&d.status);
    assert!(message.contains("what was seen") && message.contains("nothing was changed"), "{message}");
    assert_eq!(events(&d), ["SqlFailed"]);
}

pub(super) fn quota_shortage() -> QuotaShortage {
    let [quota, resource, used, hard, needed] = ["compute", "pods", "10", "10", "1"].map(Into::into);
    QuotaShortage { quota, resource, used, hard, needed }
}

/// Each thing that can be in the way, and what its message must name.
pub(super) const VIOLATIONS: &[(&str, When, &str)] = &[
    ("SqlMissing", |s| s.observed.up = ObservedSql::Missing, "ConfigMap sql has no key up (spec.migration.up)"),
    ("SqlMissing", |s| s.observed.down = ObservedSql::Missing, "ConfigMap sql has no key down (spec.migration.down)"),
    ("SqlMissing", |s| s.observed.up = ObservedSql::of(None, true), "(spec.migration.up) is not UTF-8 text"),
    ("FlagConfigMapMissing", |s| s.observed.flag = ObservedFlag::ConfigMapMissing, "shop --from-literal=VERSION=v1"),
    ("FlagKeyMissing", |s| s.observed.flag = ObservedFlag::KeyMissing, "ConfigMap shop has no key VERSION"),
    (
        "FlagConfigMapImmutable",
        |s| s.observed.flag = ObservedFlag::Value { value: "v1".into(), immutable: true, set_for: None },
        "ConfigMap shop is immutable",
    ),
    (
        "FlagWriteRefused",
        |s| s.observed.flag_write = DryRun::Refused("policy freeze denied the request".into()),
        "ConfigMap shop cannot be changed, the API server refuses the write that switches the flag: policy freeze \
         denied the request; next: kubectl -n shop get validatingadmissionpolicies,validatingwebhookconfigurations",
    ),
    ("FlagNotAtFrom", |s| s.flag("v2", None), "key VERSION of ConfigMap shop is \"v2\", expected \"v1\""),
    (
        "RollbackNotEnabled",
        |s| s.observed.rollback_enabled = None,
        "key ENABLE_ROLLBACK of ConfigMap shop is missing, expected \"true\"",
    ),
    (
        "RollbackNotEnabled",
        |s| s.observed.rollback_enabled = Some("false".into()),
        "key ENABLE_ROLLBACK of ConfigMap shop is \"false\", expected \"true\"",
    ),
    ("WorkloadMissing", |s| s.observed.workloads[0].exists = false, "Deployment shop is missing"),
    ("WorkloadMissing", |s| s.observed.workloads.clear(), "Deployment shop is missing"),
    (
        "WorkloadDoesNotReadFlag",
        |s| s.observed.workloads[0].reads_flag = false,
        "no container of Deployment shop reads key VERSION",
    ),
    (
        "WorkloadPaused",
        |s| s.observed.workloads[0].paused = true,
        "spec.paused of Deployment shop is true, expected false: a restart replaces no pod; \
         next: kubectl -n shop rollout resume deployment/shop",
    ),
    (
        "WorkloadWriteRefused",
        |s| s.observed.workloads[0].write = DryRun::Refused("policy freeze denied the request".into()),
        "Deployment shop cannot be restarted, the API server refuses the write: policy freeze denied the request; \
         next: kubectl -n shop get validatingadmissionpolicies,validatingwebhookconfigurations",
    ),
    (
        "WorkloadNotSettled",
        |s| s.observed.workloads[0].unsettled = Some("of 2 wanted replicas 2 are updated and 1 are available".into()),
        "Deployment shop is not settled: of 2 wanted replicas 2 are updated and 1 are available; \
         next: kubectl -n shop rollout status deployment/shop",
    ),
    (
        "ForeignPods",
        |s| s.observed.workloads[0].foreign_pods = ["a", "b", "c", "d"].map(Into::into).into(),
        "4 pods (limit 0) match the selector of Deployment shop and are of no ReplicaSet of its own: a, b, c and 1 \
         more; no restart replaces them; delete them, or give them other labels; \
         next: kubectl -n shop get pods --show-labels a b c",
    ),
    (
        "WindowTooShort",
        |s| s.observed.workloads[0].rollout = Some(ExpectedRollout::new("shop", 8, 1, 45, 30)),
        "shop 390 s (8 pods, 1 at once, 45 s each until available, up to 30 s to end); \
         spec.window.maxDuration is 60",
    ),
    (
        "QuotaExceeded",
        |s| s.observed.quota_shortages = Ok(vec![quota_shortage()]),
        "ResourceQuota compute has no room for a pod of the rollout: pods used is 10, hard is 10, 1 more are needed; \
         next: kubectl -n shop describe resourcequota compute",
    ),
    (
        "QuotaNotReadable",
        |s| s.observed.quota_shortages = Err("resourcequotas is forbidden".into()),
        "the operator cannot read the namespace's ResourceQuotas: resourcequotas is forbidden; next: helm upgrade",
    ),
    (
        "ControllerClockSkew",
        |s| s.observed.server_clock = Some(ClockOffset { at_least: seconds(5), at_most: seconds(6) }),
        "the API server's clock is 5.0 s ahead of the controller's (limit 2 s)",
    ),
    (
        "DecisionPolicyMissing",
        |s| s.observed.policy_problem = Some("ValidatingAdmissionPolicy x is missing".into()),
        "ValidatingAdmissionPolicy x is missing; without it neither names nor reports are authenticated; \
         next: helm upgrade",
    ),
];

#[test]
fn what_stands_in_the_way_is_named_and_nothing_begins() {
    for (reason, harm, text) in VIOLATIONS {
        let mut s = Scenario::new();
        harm(&mut s);
        let first = s.reconcile();
        let (found, message) = ready(&first.status);
        assert_eq!(
            (found.as_str(), s.status.phase, s.status.step),
            (*reason, Some(Phase::Preparing), Some(Step::Preflight))
        );
        assert!(message.contains(text), "{reason}: {message}");
        assert!(message.contains("next: "), "{reason}: no next command in {message}");
        assert_eq!(actions(&first), Vec::<String>::new(), "{reason}");
        assert_eq!(events(&first), [*reason]);
        assert!(events(&s.reconcile()).is_empty(), "{reason}: reported once, not each time");
        // Fixed, it continues by itself.
        let healthy = Scenario::new().observed;
        s.observed = healthy;
        assert_eq!(actions(&s.reconcile()), ["start m-preflight-1"], "{reason}");
    }
}

#[test]
fn what_stands_in_the_way_later_is_named_in_each_step() {
    for (reason, harm, text) in VIOLATIONS.iter().filter(|v| v.0 != "SqlMissing") {
        for step in [Step::Baseline, Step::Backup, Step::VerifyBackup, Step::Rehearse, Step::Approve] {
            let mut s = at(step);
            harm(&mut s);
            let d = s.decide();
            let (found, message) = ready(&d.status);
            assert_eq!((found.as_str(), d.status.step), (*reason, Some(step)));
            assert!(message.contains(text), "{reason}: {message}");
        }
    }
}

#[test]
fn changed_inputs_restart_the_preparation() {
    let changes: [(&str, When); 3] = [
        ("up", |s| s.observed.up = ObservedSql::Present("sha256:other".into())),
        ("down", |s| s.observed.down = ObservedSql::Present("sha256:other".into())),
        ("spec", |s| s.observed.generation = 2),
    ];
    for (what, change) in changes {
        for given in [|| at(Step::Baseline), || at(Step::VerifyBackup), rehearsing, awaiting] {
            let mut s = given();
            let step = s.status.step;
            s.submit("ann", DecisionKind::Approve).settle();
            s.observed.runner_image = "image:2".into();
            change(&mut s);
            let d = s.reconcile();
            let st = &d.status;
            assert_eq!((st.phase, st.step), (Some(Phase::Preparing), Some(Step::Preflight)), "{what} in {step:?}");
            assert!(actions(&d).contains(&"start m-preflight-2".to_owned()), "{what} in {step:?}: {:?}", actions(&d));
            assert!(
                st.baseline.is_none() && st.backup.is_none() && st.verification.is_none() && st.rehearsal.is_none(),
                "{what} in {step:?}: old evidence stays"
            );
            assert!(st.approved_by.is_empty() && st.approvals.is_none(), "{what} in {step:?}: old approvals stay");
            assert_eq!(st.plan.as_ref().unwrap().digest, None);
            assert_eq!(st.runner_image.as_deref(), Some("image:2"), "a new start takes the present image");
            assert!(events(&d).contains(&"PreparationRestarted"));
        }
    }
    // Not in Preflight's first moments: there is no evidence to void.
    let mut s = Scenario::new();
    s.observed.up = ObservedSql::Missing;
    s.settle();
    s.observed.up = ObservedSql::Present("sha256:up".into());
    assert!(!events(&s.decide()).contains(&"PreparationRestarted"));
    // SQL that is gone voids too: the rehearsal was of something that is no longer there.
    let mut s = rehearsing();
    s.observed.down = ObservedSql::Missing;
    let d = s.decide();
    assert_eq!((d.status.step, ready(&d.status).0.as_str()), (Some(Step::Preflight), "SqlMissing"));
}

#[test]
fn runs_of_superseded_evidence_are_ended() {
    for (step, run) in [
        (Step::Baseline, "remove m-backup-1"),
        (Step::Backup, "remove m-backup-1"),
        (Step::VerifyBackup, "remove m-verify-1"),
        (Step::ExportKeyUsers, "remove m-keyusers-1"),
        (Step::Rehearse, "remove m-rehearse-1"),
    ] {
        let mut s = at(step);
        s.observed.up = ObservedSql::Present("sha256:other".into());
        let d = s.reconcile();
        assert!(actions(&d).contains(&run.to_owned()), "{step:?} goes on with the old plan: {:?}", actions(&d));
    }
    // The second time round nothing takes the new runs for the old ones.
    let mut s = awaiting();
    s.observed.up = ObservedSql::Present("sha256:other".into());
    s.settle();
    for task in [Task::Preflight, Task::Backup, Task::VerifyBackup, Task::ExportKeyUsers, Task::Rehearse] {
        assert_eq!((s.run(task).run.spec.attempt, s.run(task).job.clone()), (2, Job::Active), "{task:?}");
        s.succeed(task).settle();
    }
    assert_eq!(s.status.phase, Some(Phase::AwaitingApproval));
}

#[test]
fn the_runners_image_is_pinned() {
    let mut s = preflight();
    s.observed.runner_image = "image:2".into();
    s.succeed(Task::Preflight);
    let d = s.reconcile();
    let image = d.effects.iter().find_map(|e| if let Effect::StartRun(r) = e { Some(r.image.clone()) } else { None });
    assert_eq!(image.as_deref(), Some("image:1"));
    // What comes after the window needs tasks that the present operator knows; the rollback is as it was approved.
    let mut s = unblocking();
    s.observed.runner_image = "image:2".into();
    s.wait(1).state(Task::Window, WindowState::Unblocked).succeed(Task::Window).settle();
    s.wait(20);
    let image = |d: Decision| {
        d.effects.iter().find_map(|e| if let Effect::StartRun(r) = e { Some(r.image.clone()) } else { None })
    };
    assert_eq!(image(s.decide()).as_deref(), Some("image:2"));
    s.submit("ann", DecisionKind::Rollback);
    assert_eq!(image(s.decide()).as_deref(), Some("image:1"));
}

#[test]
fn a_run_carries_what_earlier_ones_found() {
    let mut s = at(Step::ExportKeyUsers);
    s.succeed(Task::ExportKeyUsers);
    let d = s.decide();
    let Some(Effect::StartRun(start)) = d.effects.iter().find(|e| matches!(e, Effect::StartRun(_))) else {
        panic!("{:?}", d.effects)
    };
    assert_eq!(start.timeout_seconds, Some(21_600));
    assert_eq!((start.spec.migration.as_str(), start.spec.migration_uid.as_str()), ("m", "uid-1"));
    assert_eq!((start.spec.task, start.spec.attempt, &start.spec.plan), (Task::Rehearse, 1, &s.spec));
    assert_eq!(start.spec.inputs.up_sha256, "sha256:up");
    assert_eq!(start.spec.inputs.down_sha256, "sha256:down");
    assert_eq!(start.spec.inputs.backup_object.as_deref(), Some("s3://b/o"));
    assert_eq!(start.spec.inputs.backup_sha256.as_deref(), Some("sha256:dump"));
    assert_eq!(start.spec.window, None);
}

#[test]
fn tag_and_branch_of_the_code() {
    let coded = || {
        let mut s = Scenario::new();
        s.spec.code = serde_json::from_value(serde_json::json!({
            "repository": "ssh://git@git/shop.git", "commit": "c0ffee", "secretRef": {"name": "git"},
        }))
        .unwrap();
        s.settle();
        s.succeed(Task::Preflight).settle();
        assert_eq!(s.status.step, Some(Step::CodeBackup));
        s
    };
    let evidence = |commit: &str| crate::api::CodeBackupEvidence {
        repository: "ssh://git@git/shop.git".into(),
        commit: commit.into(),
        tag: "pre-credit-migration-v1".into(),
        branch: "backup/pre-credit-migration".into(),
        verified_at: time(0),
    };
    let mut s = coded();
    s.succeed(Task::CodeBackup).report(Task::CodeBackup, |r| r.code_backup = Some(evidence("c0ffee"))).settle();
    assert_eq!(s.status.step, Some(Step::Baseline));
    assert_eq!(s.status.code_backup, Some(evidence("c0ffee")));
    // Of another commit it is no evidence.
    let mut s = coded();
    s.succeed(Task::CodeBackup).report(Task::CodeBackup, |r| r.code_backup = Some(evidence("other"))).settle();
    assert_eq!((s.status.step, s.status.code_backup.clone()), (Some(Step::CodeBackup), None));
    // The tag is there on another commit: an operator must decide.
    let mut s = coded();
    s.fail(Task::CodeBackup, Reason::RefElsewhere).settle();
    assert_eq!((s.status.phase, ready(&s.status).0.as_str()), (Some(Phase::Failed), "RefElsewhere"));
}
