//! The tasks, one module per variant of [`Task`](crate::api::Task). Called by the dispatch of [`runner`](crate::runner).

pub mod window;
