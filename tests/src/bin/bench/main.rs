//! Figures, no verdicts: what the collector costs and how fast it is, on this machine, as ratios of things measured in
//! the same run. `tests/bench/run` builds what is measured and calls this.
//!
//! `bench TARGET-DIRECTORY [PART...]`: of `kernel`, `wire`, `start`, `idle`, `cost`, `storm`, `criterion`, `export`

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "the report is what it is run for")]

mod kernel;
mod outside;
mod rest;
mod storms;
mod table;
mod wire;

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, Result, bail};
use table::Report;

const PARTS: [&str; 8] = ["kernel", "wire", "start", "idle", "cost", "storm", "criterion", "export"];

fn main() -> Result<()> {
    reset_collector_tests::require_root()?;
    let mut arguments = std::env::args().skip(1);
    let target = PathBuf::from(arguments.next().context("bench TARGET-DIRECTORY [PART...]")?);
    let chosen: Vec<String> = arguments.collect();
    let parts: Vec<&str> = if chosen.is_empty() { PARTS.to_vec() } else { chosen.iter().map(String::as_str).collect() };
    let work = target.join("bench");
    let mut report = Report::default();
    report.say(&format!("# Figures\n\n{}", machine()?));
    let number = AtomicU32::new(0);
    let configuration = |text: &str| configuration(&work, &number, text);
    for part in parts {
        match part {
            "kernel" => kernel::measure(&mut report, &work.join("probe").to_string_lossy(), &configuration)?,
            "wire" => wire::measure(&mut report, &configuration)?,
            "start" => rest::first_capture(&mut report)?,
            "idle" => rest::idle(&mut report)?,
            "cost" => rest::cost(&mut report, &configuration)?,
            "storm" => storms::measure(&mut report, &configuration)?,
            "criterion" => outside::criterion(&mut report, &target)?,
            "export" => outside::export(&mut report, &work.join("export.log"))?,
            other => bail!("{other} is not one of {PARTS:?}"),
        }
        report.say(&format!("Load of the machine after this: {}.", load()?));
        // What there is so far stays, should a later part fail.
        std::fs::write(target.join("bench.md"), report.text())?;
    }
    Ok(())
}

/// Writes a configuration where the collector finds it; its path.
fn configuration(directory: &Path, number: &AtomicU32, text: &str) -> Result<String> {
    let file = directory.join(format!("{}.yaml", number.fetch_add(1, Ordering::Relaxed)));
    std::fs::write(&file, text)?;
    Ok(file.to_string_lossy().into_owned())
}

fn machine() -> Result<String> {
    let cpus = std::fs::read_to_string("/proc/cpuinfo")?;
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|(_, model)| model);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let cores = std::thread::available_parallelism()?;
    Ok(format!("{}, {cores} cores, Linux {}", model.unwrap_or("a processor without a name"), kernel.trim()))
}

/// Other programs on the machine make figures worse: the load of the last minute says how far they may be trusted.
fn load() -> Result<String> {
    Ok(std::fs::read_to_string("/proc/loadavg")?.split(' ').next().unwrap_or_default().to_owned())
}
