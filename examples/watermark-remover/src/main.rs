//! The service: see the library for what it does, `README.md` for its settings.

use std::{error::Error, process::ExitCode, sync::Arc, time::Duration};

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use watermark_remover::{config::Settings, http};

/// Endpoints are taken out of a Kubernetes service a moment after SIGTERM was sent: serve those requests too.
const KEEP_ACCEPTING: Duration = Duration::from_secs(1);
/// Past this, requests still in flight are cut off.
const GIVE_UP: Duration = Duration::from_secs(6);

#[tokio::main]
async fn main() -> ExitCode {
    match serve(&Settings::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(settings: &Settings) -> Result<(), Box<dyn Error>> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    // The level first, so that `grep ^ERROR` finds errors; the time is added by the collector of the log.
    tracing_subscriber::fmt().without_time().with_ansi(false).with_env_filter(filter).init();

    let app = Arc::new(http::App::new(settings)?);
    let holding = app.clone();
    tokio::spawn(async move { holding.hold_idle_sessions().await });
    let listener = tokio::net::TcpListener::bind(settings.listen).await?;
    tracing::info!(version = %settings.credit_system_version, listen = %settings.listen, "serving");

    let serve = axum::serve(listener, http::router(app)).with_graceful_shutdown(stopped_for(KEEP_ACCEPTING));
    tokio::select! {
        result = serve => result?,
        () = stopped_for(GIVE_UP) => tracing::warn!("requests still in flight after the grace period were cut off"),
    }
    Ok(())
}

/// Waits for SIGTERM or SIGINT, and then for `delay`.
async fn stopped_for(delay: Duration) {
    let stop = async |kind| match signal(kind) {
        Ok(mut stream) => stream.recv().await,
        Err(error) => {
            tracing::error!(%error, "cannot listen for signals");
            std::future::pending().await
        }
    };
    tokio::select! {
        _ = stop(SignalKind::terminate()) => {}
        _ = stop(SignalKind::interrupt()) => {}
    }
    tokio::time::sleep(delay).await;
}
