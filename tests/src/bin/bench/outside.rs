//! What other programs have measured before this one runs: criterion's benches of the collector's crate, and the
//! exporter's measurement against a sink.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::table::{Report, median};

/// What criterion has written under `target/criterion`: each function's least and median time for one element.
///
/// # Errors
/// A file is there and is not criterion's.
pub(crate) fn criterion(report: &mut Report, target: &Path) -> Result<()> {
    let mut rows = Vec::new();
    for group in directories(&target.join("criterion"))? {
        for file in samples(&group)? {
            let of = file.with_file_name("benchmark.json");
            let (sample, benchmark) = (json(&file)?, json(&of)?);
            let elements = benchmark["throughput"]["Elements"].as_f64().unwrap_or(1.0);
            let numbers = |name: &str| sample[name].as_array().into_iter().flatten().filter_map(Value::as_f64);
            let each: Vec<f64> =
                numbers("times").zip(numbers("iters")).map(|(ns, rounds)| ns / rounds / elements).collect();
            let least = each.iter().copied().fold(f64::INFINITY, f64::min);
            let name = benchmark["full_id"].as_str().context("full_id")?;
            rows.push(vec![
                format!("`{name}`"),
                format!("{least:.0}"),
                format!("{:.0}", median(&each)),
                format!("{:.0}", 1e9 / least),
            ]);
        }
    }
    rows.sort();
    report.table(
        "In the collector, one core: ns for one reset, span or decision (criterion)",
        &["", "ns, least sample", "ns, median sample", "a second, at the least"],
        &rows,
    );
    Ok(())
}

/// The sample files below a directory, each of a benchmark's newest run.
fn samples(directory: &Path) -> Result<Vec<std::path::PathBuf>> {
    let mut found = Vec::new();
    for inner in directories(directory)? {
        let file = inner.join("sample.json");
        if inner.ends_with("new") && file.exists() {
            found.push(file);
        } else {
            found.extend(samples(&inner)?);
        }
    }
    Ok(found)
}

fn directories(of: &Path) -> Result<Vec<std::path::PathBuf>> {
    let Ok(entries) = std::fs::read_dir(of) else { return Ok(Vec::new()) };
    let paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    Ok(paths.into_iter().filter(|path| path.is_dir()).collect())
}

fn json(file: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    serde_json::from_str(&text).with_context(|| file.display().to_string())
}

/// The exporter's lines: `Grpc Gzip on disk: N records/s, …`.
///
/// # Errors
/// The file cannot be read.
pub(crate) fn export(report: &mut Report, said: &Path) -> Result<()> {
    let text = std::fs::read_to_string(said).with_context(|| said.display().to_string())?;
    let row = |line: &str| -> Option<Vec<String>> {
        let (what, figures) = line.split_once(": ")?;
        let mut figures = figures.split(", ");
        let wall = figures.next()?.strip_suffix(" records/s")?;
        let cost = figures.next()?.strip_suffix(" CPU s per million")?;
        let core = figures.next()?.strip_suffix(" records/s/core")?;
        Some([what, wall, core, cost].map(str::to_owned).to_vec())
    };
    let rows: Vec<_> = text.lines().filter_map(row).collect();
    report.table(
        "Export to a sink in another process, records of twenty attributes",
        &["", "records a second", "records a second of processor time", "processor seconds per million"],
        &rows,
    );
    Ok(())
}
