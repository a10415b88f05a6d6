//! Logging, and the one place that reads the wall clock.
//!
//! # Log lines
//! One JSON object per line: `timestamp`, `level`, `message`, `target`, the fields of the call, and the fields of the
//! spans around it. All of them are at the top level, and each key is there once: a field of the call wins over one of
//! a span, an inner span over an outer one. The cause of a failure is always in `error`.
//!
//! Spans identify the subject of a line: [`migration_span`] in the controller, [`task_span`] in a runner. They have the
//! level of errors, so that no setting of `RUST_LOG` takes their fields from the lines that remain.

use std::{fmt, io};

use serde::Serialize;
use serde_json::{Map, Value};
use tracing::{Event, Span, Subscriber, error_span, field};
use tracing_subscriber::{
    EnvFilter,
    fmt::{
        FmtContext, FormatEvent, MakeWriter,
        format::{Format, Json, JsonFields, Writer},
    },
    registry::LookupSpan,
};

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
    let _ = tracing_subscriber::util::SubscriberInitExt::try_init(subscriber(filter, io::stderr));
}

/// Writes the lines that this filter lets through.
fn subscriber<W>(filter: EnvFilter, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    tracing_subscriber::fmt()
        .json()
        .event_format(Flat(tracing_subscriber::fmt::format().json().flatten_event(true).with_current_span(false)))
        .with_env_filter(filter)
        .with_writer(writer)
        .finish()
}

/// Span of what the controller does for one migration: `namespace`, `migration`.
pub fn migration_span(namespace: &str, migration: &str) -> Span {
    error_span!("migration", namespace, migration)
}

/// Span of a runner's whole work: `namespace`, `run`; once the run is known also `migration`, `task`, `attempt`, by
/// [`record_task`].
pub fn task_span(namespace: &str, run: &str) -> Span {
    error_span!("task", namespace, run, migration = field::Empty, task = field::Empty, attempt = field::Empty)
}

/// Gives the current [`task_span`] the rest of its fields.
pub fn record_task(migration: &str, task: impl fmt::Debug, attempt: u32) {
    Span::current().record("migration", migration).record("task", field::debug(task)).record("attempt", attempt);
}

/// Lines with the fields of spans in addition to those of the call.
struct Flat(Format<Json>);

/// A line, in this order.
#[derive(Serialize)]
struct Line {
    timestamp: Value,
    level: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<Value>,
    #[serde(flatten)]
    fields: Map<String, Value>,
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> FormatEvent<S, JsonFields> for Flat {
    fn format_event(
        &self,
        context: &FmtContext<'_, S, JsonFields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut nested = String::new();
        self.0.format_event(context, Writer::new(&mut nested), event)?;
        let mut fields: Map<String, Value> = serde_json::from_str(&nested).map_err(|_| fmt::Error)?;
        let spans = fields.remove("spans").and_then(|spans| spans.as_array().cloned()).unwrap_or_default();
        let mut line = Line {
            timestamp: fields.remove("timestamp").unwrap_or_default(),
            level: fields.remove("level").unwrap_or_default(),
            message: fields.remove("message"),
            fields,
        };
        // The library writes them from the outermost on, each with its own name.
        for span in spans.into_iter().rev() {
            let Value::Object(of_span) = span else { continue };
            for (key, value) in of_span.into_iter().filter(|(key, _)| key != "name") {
                line.fields.entry(key).or_insert(value);
            }
        }
        writeln!(writer, "{}", serde_json::to_string(&line).map_err(|_| fmt::Error)?)
    }
}
