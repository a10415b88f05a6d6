//! Logging, and the one place that reads the wall clock.

use tracing_subscriber::EnvFilter;

use crate::shared::time::Time;

/// The time now. Everything else gets time as a parameter, so that tests can set it.
#[allow(clippy::disallowed_methods)]
pub fn now() -> Time {
    Time::now()
}

/// Starts logging: one JSON object per line on standard error, level by `RUST_LOG` (default `info`).
///
/// A second call does nothing.
pub fn init_logging() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let _ = tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .try_init();
}
