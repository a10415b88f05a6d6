//! What people should know before they approve: rights that the application loses, what else uses the tables.

use super::*;
use crate::api::{
    Finding, LeftOut, LeftOutKind, LeftOutObjects, LostRight, Occasion, RehearsalEvidence, StatementStatistics,
    TableUser, TableUserKind, TableUsers,
};

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

#[test]
fn what_else_uses_the_tables_is_reported_with_the_approval() {
    let view = TableUser { kind: TableUserKind::View, name: "public.v".into(), table: Some("public.users".into()) };
    let users = TableUsers::new(vec![view], StatementStatistics::Read);
    let mut s = preflight();
    s.spec.notifications.channels = serde_json::from_value(serde_json::json!([
        {"name": "chat", "audiences": ["Team"], "slack": {"urlSecretRef": {"name": "a", "key": "b"}}}
    ]))
    .unwrap();
    s.report(Task::Preflight, |status| {
        status.findings = vec![Finding {
            name: Finding::TABLE_USERS.to_owned(),
            reason: None,
            holds_both_versions: None,
            left_out: LeftOutObjects::default(),
            users: users.clone(),
            message: String::new(),
        }];
    });
    s.succeed(Task::Preflight).settle();
    assert_eq!(s.status.table_users, Some(users));
    let mut asked = rehearsing();
    asked.spec = s.spec.clone();
    asked.status.table_users.clone_from(&s.status.table_users);
    asked.succeed(Task::Rehearse).settle();
    let notice = asked.status.notices.iter().find(|n| n.notice.occasion == Occasion::ApprovalDue).unwrap();
    let text = "; other users of the tables (1): public.v (View, public.users); to read the plan";
    assert!(notice.notice.message.contains(text), "{}", notice.notice.message);
    // Another preparation reads them again.
    asked.observed.generation += 1;
    assert_eq!(asked.decide().status.table_users, None);
}
