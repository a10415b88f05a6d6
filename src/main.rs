//! Command line of the operator's image: `controller`, `runner`, `crd`, `check-install`. No logic.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use credit_migration::{api, controller, runner, telemetry};

#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Watch CreditMigrations and carry them through.
    Controller(controller::ControllerOptions),
    /// Carry out the task of this pod's MigrationRun.
    Runner,
    /// Print the CustomResourceDefinitions as YAML.
    Crd,
    /// Check that the kinds are served and decisions are guarded.
    CheckInstall(controller::InstallCheck),
}

#[tokio::main]
async fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    // A second call would be the only way to fail.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    match Cli::parse().command {
        Command::Controller(options) => {
            telemetry::init_logging();
            controller::run(options).await?;
        }
        Command::Runner => {
            telemetry::init_logging();
            return Ok(runner::run().await);
        }
        Command::Crd => print!("{}", api::crds_yaml()?),
        Command::CheckInstall(options) => println!("{}", controller::check_install(&options).await?),
    }
    Ok(ExitCode::SUCCESS)
}
