//! The command line.

#![forbid(unsafe_code)]

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Result;
use clap::{Parser, Subcommand};
use reset_collector::{
    check,
    config::{self, Config},
    environment,
    explain::explain,
    logging, pushdown,
    run::{self, Options},
    settings::Settings,
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
    /// Say whether a configuration can be used, what of it the kernel filters, and what this host lacks
    Check {
        /// The configuration; without one the defaults
        #[arg(long)]
        config: Option<PathBuf>,
        /// For a person, or for a program
        #[arg(long, value_enum, default_value_t = Format::Text)]
        format: Format,
    },
    /// Print the JSON Schema of the configuration
    Schema,
    /// Tell what a cause, or a reason of the kernel, means; without one, list them
    Explain {
        /// Such as port_closed, or TCP_ABORT_ON_CLOSE
        topic: Option<String>,
    },
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Format {
    Text,
    Json,
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
        Command::Run { config, btf, dry_run } => {
            let settings = match settings(config.as_deref()) {
                Ok(settings) => settings,
                Err(error) => return Ok(refuse(&error)),
            };
            run::run(&settings, &Options { config, btf, dry_run })?;
        }
        Command::Check { config, format } => return check_host_and_file(config.as_deref(), format),
        Command::Schema => io::stdout().lock().write_all(check::schema().as_bytes())?,
        Command::Explain { topic } => match explain(topic.as_deref()) {
            Ok(text) => io::stdout().lock().write_all(text.as_bytes())?,
            Err(error) => return Ok(fail(&error.into())),
        },
    }
    Ok(ExitCode::SUCCESS)
}

/// The settings of a file, or the defaults; where they name no destination, the environment's.
fn settings(path: Option<&Path>) -> Result<Settings> {
    let mut settings = match path {
        None => Settings::default(),
        Some(path) => {
            let config = config::load(path)?;
            config.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
            config.settings
        }
    };
    if settings.export.otlp.is_empty() {
        settings.export.otlp = environment::read(|name| std::env::var(name).ok())?.destinations;
    }
    Ok(settings)
}

/// What is wrong with a file, on standard error.
fn check_host_and_file(path: Option<&Path>, format: Format) -> Result<ExitCode> {
    let checked = match path {
        Some(path) => config::load(path),
        None => Ok(Config { settings: settings(None)?, warnings: Vec::new() }),
    };
    let program = |config: &Config| {
        pushdown::compile(&config.settings.capture, &config.settings.filters, &pushdown::Knowledge::default())
    };
    let text = match (&checked, format) {
        (Ok(config), Format::Text) => check::text(config, &program(config)),
        (Ok(config), Format::Json) => check::json(Ok((config, &program(config)))),
        (Err(errors), Format::Text) => return Ok(refuse(&anyhow::anyhow!("{errors}"))),
        (Err(errors), Format::Json) => check::json(Err(errors)),
    };
    io::stdout().lock().write_all(text.as_bytes())?;
    Ok(if checked.is_ok() { ExitCode::SUCCESS } else { ExitCode::from(EXIT_CONFIG) })
}

/// Exit code for a configuration that cannot be used.
const EXIT_CONFIG: u8 = 2;

/// One message on standard error: the configuration cannot be used.
fn refuse(error: &anyhow::Error) -> ExitCode {
    fail(error);
    ExitCode::from(EXIT_CONFIG)
}

/// One message on standard error.
fn fail(error: &anyhow::Error) -> ExitCode {
    // Where standard error is closed there is nobody to tell.
    let _nobody = writeln!(io::stderr().lock(), "error: {error:#}");
    ExitCode::FAILURE
}
