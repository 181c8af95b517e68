//! Storms: with the defaults, with nothing withheld in the kernel, and from everywhere.

use std::time::Duration;

use anyhow::Result;
use reset_collector_tests::{
    flood::Shape,
    storm::{self, Length},
};

use crate::table::Report;

const STORM: Length = Length { time: Duration::from_secs(20), segments: 0 };

/// Measures and reports.
///
/// # Errors
/// A storm cannot be made.
pub(crate) fn measure(report: &mut Report, configuration: &dyn Fn(&str) -> Result<String>) -> Result<()> {
    let no_rate_limit = "capture: { max_records_per_second: null }";
    let mut rows = Vec::new();
    for (name, shape, text) in [
        ("port scan, defaults", Shape::Scan, "{}"),
        ("SYN flood of one port, defaults", Shape::OnePort, "{}"),
        ("port scan, no rate limit in the kernel", Shape::Scan, no_rate_limit),
    ] {
        let file = configuration(text)?;
        let storm = storm::run(shape, STORM, &["--config", &file])?;
        let mib = |bytes: u64| format!("{:.1}", bytes as f64 / f64::from(1 << 20));
        rows.push(vec![
            name.to_owned(),
            format!("{:.0}", storm.segments as f64 / storm.elapsed.as_secs_f64()),
            storm.sent.to_string(),
            storm.captured.to_string(),
            format!("{} of {}", storm.slow_told, storm.slow_made),
            storm.flood_records.to_string(),
            format!("{:.1} %", storm.processor_share() * 100.0),
            format!("{} → {}", mib(storm.before.resident_bytes), mib(storm.after.resident_bytes)),
        ]);
    }
    report.table(
        &format!("A storm of {} s, every record printed as JSON into a pipe", STORM.time.as_secs()),
        &[
            "storm",
            "segments a second",
            "resets sent",
            "captured",
            "slow stream told",
            "records of the flood",
            "collector, of one core",
            "MiB resident",
        ],
        &rows,
    );
    Ok(())
}
