//! Acts the scenarios outside of cargo's tests: to judge the wire alone, or in a virtual machine.
//!
//! `scenarios [--judge-only] [FILTER...]`

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "the table is what it is run for")]

use std::process::ExitCode;

use reset_collector_tests::{collector::Collector, suite};

fn main() -> anyhow::Result<ExitCode> {
    let (options, filters): (Vec<_>, Vec<_>) =
        std::env::args().skip(1).partition(|argument| argument.starts_with("--"));
    let judge_only = match options.as_slice() {
        [] => false,
        [option] if option == "--judge-only" => true,
        _ => anyhow::bail!("scenarios [--judge-only] [FILTER...]"),
    };
    let collector = if judge_only { None } else { Some(Collector::start(&[], &[])?) };
    let filters: Vec<&str> = filters.iter().map(String::as_str).collect();
    let outcomes = suite::run(if filters.is_empty() { &[""] } else { &filters }, collector.as_ref())?;
    println!("{}", suite::table(&outcomes));
    if let Some(collector) = collector {
        // An emulated machine's clock is no judge of a millisecond.
        match suite::check_times(&outcomes) {
            Ok((median, farthest)) => println!("records lie {median:?} from their packets, {farthest:?} at most"),
            Err(error) => println!("times, which are not judged here: {error:#}"),
        }
        println!("{}", collector.stop()?.1);
    }
    let right = outcomes.iter().all(|outcome| outcome.faults.is_empty());
    Ok(if right { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
