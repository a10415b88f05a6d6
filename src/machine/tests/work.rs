//! How far the long part of a task is.

use super::*;
use crate::api::{Activity, WorkProgress, WorkUnit};

fn at(done: u64) -> Option<WorkProgress> {
    Some(WorkProgress { work: Activity::Restore, unit: WorkUnit::Bytes, done, total: Some(9), at: time(0) })
}

#[test]
fn the_work_of_a_present_run_is_shown_until_it_ends() {
    let mut s = rehearsing();
    assert_eq!(s.settle().status.work, None);
    let report = |s: &mut Scenario, done| {
        s.report(Task::Rehearse, |run| (run.phase, run.work) = (RunPhase::Running, at(done))).settle();
    };
    report(&mut s, 3);
    assert_eq!(s.status.work, at(3));
    report(&mut s, 4);
    assert_eq!(s.status.work, at(4));
    // Its pod can report nothing any more.
    s.lose_job(Task::Rehearse).settle();
    assert_eq!(s.status.work, None);
    s.wait(400).settle();
    report(&mut s, 1);
    assert_eq!(s.status.work, at(1));
    s.succeed(Task::Rehearse).settle();
    assert_eq!(s.status.work, None);
}
