//! A window on another schema than the one that was rehearsed.

use crate::machine::tests::*;

#[test]
fn a_schema_that_changed_since_the_rehearsal_is_rehearsed_again() {
    // Found on standby, and by the transaction of the SQL.
    for (before_the_order, mut s) in [(true, approved()), (false, blocking())] {
        assert_eq!(s.run(Task::Window).run.spec.inputs.schema_sha256.as_deref(), Some("sha256:schema"));
        if !before_the_order {
            s.state(Task::Window, WindowState::RolledBack);
        }
        s.fail(Task::Window, Reason::SchemaDrifted);
        let d = s.reconcile();
        assert_eq!((d.status.phase, d.status.step), (Some(Phase::Preparing), Some(Step::Preflight)));
        assert_eq!((&d.status.rehearsal, &d.status.backup, &d.status.plan), (&None, &None, &None));
        assert_eq!(d.status.writes, Some(crate::api::Writes::Open));
        for reason in ["SchemaDrifted", "PreparationRestarted"] {
            assert!(events(&d).contains(&reason), "{:?}", events(&d));
        }
        s.settle();
        assert!(s.observed.run(Task::Preflight, 2).is_some(), "it is prepared again");
    }
}
