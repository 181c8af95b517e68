//! In a flood of SYN segments to closed ports the counts stay exact, and the flood hides no other reset.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "the rate is worth a line")]

use std::time::Duration;

use anyhow::Result;
use reset_collector_tests::{
    flood::Shape,
    require_root,
    storm::{self, Length},
};

/// Well over what the kernel lets through at once after quiet (`probes::control::BURST`), so that the rate limit applies.
const LENGTH: Length = Length { time: Duration::from_secs(5), segments: probes::control::BURST * 3 / 2 };

#[test]
#[ignore = "needs root: run by `make e2e`"]
fn a_port_scan_hides_nothing() -> Result<()> {
    hides_nothing(Shape::Scan)
}

#[test]
#[ignore = "needs root: run by `make e2e`"]
fn a_flood_from_everywhere_hides_nothing() -> Result<()> {
    hides_nothing(Shape::OnePort)
}

fn hides_nothing(shape: Shape) -> Result<()> {
    require_root()?;
    let report = storm::run(shape, LENGTH, &[])?;
    println!(
        "{shape:?}: {} segments, {} resets sent, {} captured; {} of {} slow ones told; {} records of the flood",
        report.segments, report.sent, report.captured, report.slow_told, report.slow_made, report.flood_records
    );
    assert!(report.flood_records < report.sent, "the rate limit was not reached: {report:?}");
    assert_eq!(report.captured, report.sent, "{}", report.said);
    assert_eq!(report.slow_told, report.slow_made, "{}", report.said);
    Ok(())
}
