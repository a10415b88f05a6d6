//! Command line of the operator's image: `controller`, `runner`, `crd`.

use clap::{Parser, Subcommand};
use credit_migration::api;
use kube::CustomResourceExt;

#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print the CustomResourceDefinitions as YAML.
    Crd,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    match Cli::parse().command {
        Command::Crd => {
            for crd in [api::CreditMigration::crd(), api::MigrationDecision::crd(), api::MigrationRun::crd()] {
                println!("---\n{}", serde_yaml_ng::to_string(&crd)?.trim_end());
            }
        }
    }
    Ok(())
}
