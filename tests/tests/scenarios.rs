//! Every reset on the wire has its record, with the right words; and there is no record without a packet.

#![forbid(unsafe_code)]
use reset_collector_tests::{collector::Collector, require_root, scenario, suite};

/// There are at least so many ways to make a reset in the list.
const MIN_SCENARIOS: usize = 100;

#[test]
#[ignore = "needs root: run by `make e2e`"]
fn every_reset_has_its_record() -> anyhow::Result<()> {
    require_root()?;
    let filter = std::env::var("RESET_TESTS_SCENARIOS").unwrap_or_default();
    let collector = Collector::start(&[], &[])?;
    let outcomes = suite::run(&[&filter], Some(&collector))?;
    println!("{}", suite::table(&outcomes));
    let skipped: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.skipped.as_ref()).collect();
    assert!(skipped.is_empty() || !reset_collector_tests::in_ci(), "skipped in CI: {skipped:?}");
    // Every line that was printed is a record, also those of the host around the scenarios.
    collector.all_records()?;
    let (status, said) = collector.stop()?;
    assert!(status.success(), "the collector ended with {status}: {said}");
    let wrong = outcomes.iter().filter(|outcome| !outcome.faults.is_empty()).count();
    assert_eq!(wrong, 0, "{wrong} acts went wrong: see the table");
    let (median, farthest) = suite::check_times(&outcomes)?;
    println!("records lie {median:?} from their packets in the median, {farthest:?} at most");
    Ok(())
}

#[test]
fn every_cause_has_a_scenario() -> anyhow::Result<()> {
    let scenarios = scenario::list()?;
    assert!(scenarios.len() >= MIN_SCENARIOS, "{} scenarios", scenarios.len());
    let named: Vec<&str> = scenarios.iter().flat_map(|one| &one.due).flat_map(|due| due.cause.split('|')).collect();
    // `unknown` is what is never due.
    let without = ["unknown"];
    for cause in probes::Cause::ALL {
        let word = cause.word();
        assert_eq!(named.contains(&word), !without.contains(&word), "{word}");
    }
    Ok(())
}
