//! `kubectl creditmigration`: plan, decide on and follow credit migrations, from the command line.

use std::{io::Write as _, process::ExitCode};

use clap::Parser;
use credit_migration::plugin;

fn main() -> ExitCode {
    // A second call would be the only way to fail.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let mut words = std::env::args();
    if words.next().is_some_and(|name| name.ends_with(plugin::completion::COMPLETION_PROGRAM)) {
        let _ = writeln!(std::io::stdout(), "{}", plugin::completion::answer(&words.collect::<Vec<_>>()));
        return ExitCode::SUCCESS;
    }
    carry_out()
}

#[tokio::main]
async fn carry_out() -> ExitCode {
    let exit = match plugin::run(plugin::PluginCli::parse()).await {
        Ok(answer) => {
            if !answer.text.is_empty() {
                // `println!` would panic if the reader has ended, as `head` does.
                let _ = writeln!(std::io::stdout(), "{}", answer.text);
            }
            answer.exit
        }
        Err(error) => {
            eprintln!("error: {error}");
            error.exit()
        }
    };
    ExitCode::from(exit as u8)
}
