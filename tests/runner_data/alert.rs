//! The alert that the window's own pod sends when writes stay blocked.

use std::time::Duration;

use credit_migration::{
    api::{Task, WindowCommand, WindowOrder, WindowProgress, WindowState},
    runner::{report::Progress, tasks::notify::Alert},
};
use serde_json::{Value, json};

use crate::notify::{DELIVERY_DEADLINE, Desk, slack};

fn stuck() -> WindowProgress {
    WindowProgress { stuck: true, switch_acknowledged: true, ..WindowProgress::default() }
}

#[tokio::test]
async fn the_alert_of_a_stuck_window_is_repeated_until_it_is_delivered() {
    let mut desk = Desk::new("Finished", json!([slack("chat", "Team", "ok"), slack("down", "Team", "error")])).await;
    desk.spec.task = Task::RollbackWindow;
    let error = desk.hook("error");
    let alert = Alert::new(&desk.context(&Progress::default()), Duration::ZERO);
    for _ in 0..3 {
        alert.reported(&stuck(), None);
    }
    desk.office.web_until(&error, 1).await;
    // The Secret comes late.
    let ok = desk.hook("ok");
    desk.office.web_until(&ok, 1).await;
    alert.settle(DELIVERY_DEADLINE).await;
    let sent = desk.office.web(&ok);
    assert_eq!((sent.len(), desk.office.web(&error).len()), (1, 2));
    let ids = [&sent[0], &desk.office.web(&error)[0]].map(|r| r["headers"]["idempotency-key"].clone());
    let id = |channel: &str| json!(format!("{}-RollbackWindow-1-stuck.Team.{channel}", desk.spec.migration_uid));
    assert_eq!(ids, [id("chat"), id("down")]);
}

#[tokio::test]
async fn no_alert_while_the_controller_handles_it() {
    let desk = Desk::new("Finished", json!([slack("chat", "Team", "ok")])).await;
    let ok = desk.hook("ok");
    let alert = |grace| Alert::new(&desk.context(&Progress::default()), grace);
    let order = |command| WindowOrder { command, deadline: None };
    let calm = alert(Duration::ZERO);
    // Not stuck.
    calm.reported(&WindowProgress { state: WindowState::Migrated, stuck: false, ..stuck() }, None);
    calm.delivered().await;
    calm.settle(DELIVERY_DEADLINE).await;
    // The rollback that was ordered failed: the controller, which ordered it, notifies.
    let ordered = alert(Duration::ZERO);
    ordered.ordered(&order(WindowCommand::Rollback));
    ordered.reported(&stuck(), None);
    ordered.delivered().await;
    ordered.settle(DELIVERY_DEADLINE).await;
    let cancelled = alert(DELIVERY_DEADLINE);
    cancelled.reported(&stuck(), None);
    cancelled.ordered(&order(WindowCommand::Rollback));
    cancelled.settle(DELIVERY_DEADLINE).await;
    let ended = alert(DELIVERY_DEADLINE);
    ended.reported(&stuck(), None);
    ended.reported(&WindowProgress { state: WindowState::Unblocked, stuck: false, ..stuck() }, None);
    ended.settle(DELIVERY_DEADLINE).await;
    assert_eq!(desk.office.web(&ok).len(), 0);
    // What does not call it off: an order that was there before. The end of the process needs no grace.
    let raised = alert(DELIVERY_DEADLINE);
    raised.ordered(&order(WindowCommand::Switch));
    raised.reported(&stuck(), None);
    raised.settle(DELIVERY_DEADLINE).await;
    assert_eq!(desk.office.web(&ok).len(), 1);
    // Neither does it matter whether the switch was acknowledged: writes are blocked.
    let raised = alert(Duration::ZERO);
    raised.reported(&WindowProgress { switch_acknowledged: false, ..stuck() }, None);
    raised.delivered().await;
    let sent = desk.office.web(&ok);
    assert_eq!(sent.len(), 2);
    let not_begun = |sent: &Value| {
        sent["body"]["text"].as_str().unwrap().contains("still blocked. The switch of the application had not started")
    };
    assert_eq!(sent.iter().filter(|sent| not_begun(sent)).count(), 1, "{sent:?}");
}
