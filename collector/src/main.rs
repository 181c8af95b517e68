//! The command line.

#![forbid(unsafe_code)]

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use reset_collector::{
    app::{
        check, demo,
        explain::explain,
        run::{self, Options},
    },
    config::{self, Config, ConfigErrors, environment},
    host::report,
    kernel::KERNEL_BTF,
    pushdown,
    telemetry::logging::{self, Log},
};

/// Why did this TCP connection die, who did it, and which request did it break?
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Log level (error, warn, info, debug, trace) or tracing filter
    #[arg(long, global = true, env = "RESET_COLLECTOR_LOG", default_value = "info")]
    log_level: String,
    /// Log as JSON
    #[arg(long, global = true)]
    log_json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Capture TCP resets and export them (Ctrl-C to stop)
    Run {
        /// Configuration file; without one every reset is printed
        #[arg(long)]
        config: Option<PathBuf>,
        /// BTF of the running kernel, if /sys/kernel/btf/vmlinux is missing
        #[arg(long, env = "RESET_COLLECTOR_BTF")]
        btf: Option<PathBuf>,
        /// Print the outcome of each reset ("kept by filters[1]") and export nothing
        #[arg(long)]
        dry_run: bool,
        /// Allow core dumps; they hold tokens and what was read of other processes
        #[arg(long)]
        core_dumps: bool,
    },
    /// Provoke a reset of each cause in private namespaces and show that each is captured (as root)
    Demo {
        /// BTF of the running kernel, if /sys/kernel/btf/vmlinux is missing
        #[arg(long, env = "RESET_COLLECTOR_BTF")]
        btf: Option<PathBuf>,
    },
    /// Hold a socket of the demo until killed
    #[command(name = DEMO_OWNER, hide = true)]
    Hold,
    /// Validate a configuration and report what this host supports
    Check {
        /// Configuration file; without one the defaults
        #[arg(long)]
        config: Option<PathBuf>,
        /// BTF of the running kernel, if /sys/kernel/btf/vmlinux is missing
        #[arg(long, env = "RESET_COLLECTOR_BTF")]
        btf: Option<PathBuf>,
        /// Output format
        #[arg(long, value_enum, default_value_t = Format::Text)]
        format: Format,
    },
    /// Print the JSON Schema of the configuration
    Schema,
    /// Check the health endpoint of a running collector (for HEALTHCHECK)
    Health {
        /// Its `admin.endpoint`
        #[arg(long, default_value = "127.0.0.1:9464")]
        endpoint: SocketAddr,
    },
    /// Explain a cause, a kernel reason, an error, an attribute or a drop reason; without a topic, list them
    Explain {
        /// For example port_closed, ECONNRESET or connection reset by peer
        topic: Vec<String>,
    },
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Format {
    Text,
    Json,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let log = match logging::start(&arguments.log_level, arguments.log_json) {
        Ok(log) => log,
        Err(error) => {
            // Without a log this is the last resort; where standard error is closed as well, the exit code remains.
            let _written = writeln!(io::stderr().lock(), "error: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = execute(arguments.command, &log).unwrap_or_else(|error| fail(&log, &error));
    log.drain();
    code
}

fn execute(command: Command, log: &Log) -> Result<ExitCode> {
    match command {
        Command::Run { config, btf, dry_run, core_dumps } => {
            let read = match configuration(config.as_deref()) {
                Ok(read) => read,
                Err(error) => return Ok(refuse(log, &error)),
            };
            read.warnings.iter().for_each(|warning| tracing::warn!(event = "configuration_warning", "{warning}"));
            run::run(&read.settings, &Options { config, btf, dry_run, core_dumps }, log)?;
        }
        Command::Demo { btf } => return demo(btf),
        Command::Hold => demo::hold(),
        Command::Health { endpoint } => return health(endpoint),
        Command::Check { config, btf, format } => return check_host_and_file(log, config.as_deref(), btf, format),
        Command::Schema => io::stdout().lock().write_all(check::schema().as_bytes())?,
        Command::Explain { topic } => match explain(Some(topic.join(" ")).filter(|topic| !topic.is_empty()).as_deref())
        {
            Ok(text) => io::stdout().lock().write_all(text.as_bytes())?,
            Err(error) => return Ok(fail(log, &error.into())),
        },
    }
    Ok(ExitCode::SUCCESS)
}

/// The configuration of a file, or the defaults; where it has no destination, with the environment's. Refused where `run`
/// could not use it on this host.
fn configuration(path: Option<&Path>) -> Result<Config> {
    let mut config = path.map_or_else(|| Ok(Config::default()), config::load)?;
    if config.settings.export.otlp.is_empty() {
        config.settings.export.otlp = environment::read(|name| std::env::var(name).ok())?.destinations;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let _inside = runtime.enter();
    check::preflight(&config)?;
    Ok(config)
}

/// What the configuration means and what this host offers, on standard output.
fn check_host_and_file(log: &Log, path: Option<&Path>, btf: Option<PathBuf>, format: Format) -> Result<ExitCode> {
    let checked = match configuration(path) {
        Ok(config) => Ok(config),
        Err(error) => match error.downcast::<ConfigErrors>() {
            Ok(errors) => Err(errors),
            Err(other) => return Ok(refuse(log, &other)),
        },
    };
    let program = |config: &Config| {
        pushdown::compile(&config.settings.capture, &config.settings.filters, &pushdown::KernelFacts::default())
    };
    let host = report::examine(btf.as_deref().unwrap_or(Path::new(KERNEL_BTF)));
    let text = match (&checked, format) {
        (Ok(config), Format::Text) => format!("{}\n{}", check::text(config, &program(config))?, host.text()),
        (Ok(config), Format::Json) => check::json(Ok((config, &program(config))), &host.json()),
        (Err(errors), Format::Text) => return Ok(refuse(log, &anyhow::anyhow!("{errors}"))),
        (Err(errors), Format::Json) => check::json(Err(errors), &host.json()),
    };
    io::stdout().lock().write_all(text.as_bytes())?;
    // A file is checked for any host, as in CI; without one it is this host that is checked.
    Ok(match checked.is_ok() {
        false => ExitCode::from(EXIT_CONFIG),
        true if path.is_some() || host.is_complete() => ExitCode::SUCCESS,
        true => ExitCode::FAILURE,
    })
}

fn demo(btf: Option<PathBuf>) -> Result<ExitCode> {
    let mut options = demo::Options::new(DEMO_OWNER)?;
    if let Some(btf) = btf {
        options.btf = btf;
    }
    let outcome = demo::run(&options, &mut io::stdout().lock(), &mut io::stderr().lock())?;
    Ok(if outcome.is_success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One request over plain HTTP/1.1, bounded in time.
fn health(endpoint: SocketAddr) -> Result<ExitCode> {
    const TIMEOUT: Duration = Duration::from_secs(5);
    let ask = || -> io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&endpoint, TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        write!(stream, "GET /healthz HTTP/1.1\r\nHost: {endpoint}\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.take(64 << 10).read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = ask().with_context(|| format!("no response from {endpoint}: is admin.endpoint set to it?"))?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    io::stdout().lock().write_all(body.as_bytes())?;
    let is_healthy = head.split_ascii_whitespace().nth(1) == Some("200");
    Ok(if is_healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The hidden command that the demo runs itself by.
const DEMO_OWNER: &str = "demo-owner";

/// Exit code for a configuration that cannot be used.
const EXIT_CONFIG: u8 = 2;

/// One message on standard error: the configuration cannot be used.
fn refuse(log: &Log, error: &anyhow::Error) -> ExitCode {
    fail(log, error);
    ExitCode::from(EXIT_CONFIG)
}

/// One message on standard error.
fn fail(log: &Log, error: &anyhow::Error) -> ExitCode {
    let text = format!("{error:#}");
    // A configuration's mistakes begin with their severity each.
    let prefix = if text.starts_with("error: ") { "" } else { "error: " };
    log.print(&format!("{prefix}{text}\n"));
    ExitCode::FAILURE
}
