//! The command line.

#![forbid(unsafe_code)]

fn main() -> anyhow::Result<std::process::ExitCode> {
    match std::env::args().nth(1).as_deref() {
        Some("demo-holder") => {
            reset_collector::demo::hold();
            Ok(std::process::ExitCode::SUCCESS)
        }
        _ => {
            let mut options = reset_collector::demo::Options::new("demo-holder")?;
            if std::env::args().nth(1).as_deref() == Some("json") {
                options.console = reset_collector::settings::Console::Json;
            }
            let outcome = reset_collector::demo::run(&options, &mut std::io::stdout(), &mut std::io::stderr())?;
            Ok(if outcome.is_success() { std::process::ExitCode::SUCCESS } else { std::process::ExitCode::FAILURE })
        }
    }
}
