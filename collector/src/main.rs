//! The command line.

#![forbid(unsafe_code)]

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::Result;
use clap::{Parser, Subcommand};
use reset_collector::{
    explain::explain,
    logging,
    run::{self, Options},
    settings::{Destination, Settings},
};

/// Why did this TCP connection die, who did it, and which request did it break?
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// How much the collector says of itself: error, warn, info, debug, trace, or a filter of tracing
    #[arg(long, global = true, env = "RESET_COLLECTOR_LOG", default_value = "info")]
    log_level: String,
    /// Say it in JSON
    #[arg(long, global = true)]
    log_json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Tell of every TCP reset on this host, until ^C
    Run {
        /// The configuration; without one every reset goes to the terminal
        #[arg(long)]
        config: Option<PathBuf>,
        /// The kernel's type information, where /sys/kernel/btf/vmlinux is missing
        #[arg(long, env = "RESET_COLLECTOR_BTF")]
        btf: Option<PathBuf>,
        /// Show what each reset would meet ("kept by filters[1]"), and export nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Tell what a cause, or a reason of the kernel, means; without one, list them
    Explain {
        /// Such as port_closed, or TCP_ABORT_ON_CLOSE
        topic: Option<String>,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Err(error) = logging::start(&arguments.log_level, arguments.log_json) {
        return fail(&error.into());
    }
    match obey(arguments.command) {
        Ok(code) => code,
        Err(error) => fail(&error),
    }
}

fn obey(command: Command) -> Result<ExitCode> {
    match command {
        Command::Run { config: _, btf, dry_run } => {
            let mut settings = Settings::default();
            if let Ok(endpoint) = std::env::var("OTEL_EXPORTER_OTLP_ENDPOINT") {
                settings.export.otlp.push(Destination { endpoint, ..Destination::default() });
            }
            run::run(&settings, &Options { btf, dry_run })?;
        }
        Command::Explain { topic } => match explain(topic.as_deref()) {
            Ok(text) => io::stdout().lock().write_all(text.as_bytes())?,
            Err(error) => return Ok(fail(&error.into())),
        },
    }
    Ok(ExitCode::SUCCESS)
}

/// One message on standard error.
fn fail(error: &anyhow::Error) -> ExitCode {
    // Where standard error is closed there is nobody to tell.
    let _nobody = writeln!(io::stderr().lock(), "error: {error:#}");
    ExitCode::FAILURE
}
