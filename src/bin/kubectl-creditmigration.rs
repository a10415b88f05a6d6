//! `kubectl creditmigration`: a person's word on a migration, from the command line.

use std::process::ExitCode;

use clap::Parser;
use credit_migration::plugin;

#[tokio::main]
async fn main() -> ExitCode {
    // A second call would be the only way to fail.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    match plugin::run(plugin::Cli::parse()).await {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
