//! Rights that the application loses by the up SQL.

use super::*;
use crate::api::{LeftOut, LeftOutKind, LeftOutObjects, LostRight, Occasion, RehearsalEvidence};

#[test]
fn lost_rights_are_reported_with_the_approval_and_the_window_knows_them() {
    let lost = vec![LostRight {
        role: "app".into(),
        object: "TABLE public.users".into(),
        privileges: vec!["INSERT".into(), "SELECT".into()],
    }];
    let trigger =
        LeftOut { kind: LeftOutKind::Superuser, name: "event trigger watch".into(), owner: None, needs: None };
    let left_out = LeftOutObjects::new(vec![trigger]);
    let channels = serde_json::json!([
        {"name": "chat", "audiences": ["Team"], "slack": {"urlSecretRef": {"name": "a", "key": "b"}}}
    ]);
    for channels in [serde_json::json!([]), channels] {
        let mut s = rehearsing();
        s.spec.notifications.channels = serde_json::from_value(channels).unwrap();
        s.succeed(Task::Rehearse)
            .report(Task::Rehearse, |status| {
                status.rehearsal = Some(RehearsalEvidence {
                    left_out: left_out.clone(),
                    rights_lost: lost.clone(),
                    ..fixtures::rehearsal(20.0)
                });
            })
            .settle();
        let reported = "roles of the application lose 2 rights; to keep them add to the up SQL: GRANT INSERT, SELECT \
            ON TABLE public.users TO app;";
        let passed = s.status.conditions.iter().find(|c| c.type_ == "RehearsalPassed").unwrap();
        assert!(passed.message.contains(reported), "{}", passed.message);
        if !s.spec.notifications.channels.is_empty() {
            let asked = s.status.notices.iter().find(|n| n.notice.occasion == Occasion::ApprovalDue).unwrap();
            for part in [reported, "event trigger watch"] {
                assert!(asked.notice.message.contains(part), "{}", asked.notice.message);
            }
            return;
        }
        s.confirm_presence().wait(1).submit("ann", DecisionKind::Approve).submit("bob", DecisionKind::Approve).settle();
        assert_eq!(s.run(Task::Window).run.spec.inputs.rights_lost, lost);
    }
}
