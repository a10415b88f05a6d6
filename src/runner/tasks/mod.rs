//! The tasks: one module per variant of [`Task`](crate::api::Task), named as the variant; `validate` is Validate and
//! Monitor, `follow_up` for DayCheck and WeekReview, `window` for Window and RollbackWindow.
//!
//! Called by the dispatch of [`runner`](crate::runner). Imports all other folders of the runner, and `api`. What two
//! tasks share is there, not in one of them. Only Preflight asks tasks what they would find wrong, and the window sends
//! alerts by `notify`.

pub mod backup;
pub mod cleanup;
pub mod code_backup;
pub mod drop_parked;
pub mod export_key_users;
pub mod findings;
pub mod follow_up;
pub mod notify;
pub mod preflight;
pub mod rehearse;
pub mod rehearse_rollback;
pub mod validate;
pub mod verify_backup;
pub mod window;
