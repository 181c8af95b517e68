//! Ratios, limits and weights.

use proptest::prelude::*;

use super::*;
use crate::{
    filter::{EnumSets, tests::plain_reset},
    model::{Cause, Endpoint, Trace},
};

fn all() -> Condition {
    Condition::All(Vec::new())
}

fn sampler(rate: Rate) -> Sampler {
    Sampler::new(Sampling::new(rate, Vec::new()))
}

fn ratio(share: f64) -> Rate {
    Rate::Ratio(Ratio::new(share).unwrap())
}

fn from_port(port: u16, number: u64) -> Reset {
    let peer = Endpoint { port, ..plain_reset().peer };
    Reset { peer, time_unix_ns: number << 30, ..plain_reset() }
}

fn traced(trace_id: [u8; 16], method: TraceMethod) -> Reset {
    let trace =
        Trace { trace_id, span_id: None, method, on_application_span: false, incoming: false, candidates: Vec::new() };
    Reset { trace: Some(trace), ..plain_reset() }
}

/// `share`, kept and sum of weights of that many resets of different connections.
fn sampled(share: f64, count: u64) -> (f64, f64) {
    let mut sampler = sampler(ratio(share));
    let (mut kept, mut weights) = (0.0, 0.0);
    for number in 0..count {
        let mut reset = from_port(number as u16, number >> 16);
        if sampler.decide(&mut reset, 0) == (SampleDecision::Keep { rule: None }) {
            kept += 1.0;
            weights += reset.adjusted_count;
        }
    }
    (kept, weights)
}

#[test]
fn a_ratio_keeps_its_share_and_its_weights_are_unbiased() {
    const COUNT: u64 = 200_000;
    for share in [0.001, 0.05, 0.5, 0.9] {
        let (kept, weights) = sampled(share, COUNT);
        let sigma = (COUNT as f64 * share * (1.0 - share)).sqrt();
        assert!((kept - COUNT as f64 * share).abs() < 3.0 * sigma, "{share}: kept {kept}");
        assert!((weights - COUNT as f64).abs() < 3.0 * sigma / share, "{share}: weights {weights}");
    }
    assert_eq!(sampled(0.0, 1_000), (0.0, 0.0));
    assert_eq!(sampled(1.0, 1_000), (1_000.0, 1_000.0));
}

#[test]
fn one_connection_is_not_dropped_for_ever() {
    let mut sampler = sampler(ratio(0.1));
    let kept = (0..10_000)
        .filter(|second| matches!(sampler.decide(&mut from_port(4_000, *second), 0), SampleDecision::Keep { .. }));
    assert!((900..1_100).contains(&kept.count()));
}

#[test]
fn a_ratio_follows_the_trace_id_as_opentelemetry_does() {
    // T = 0.75 × 2^56 for a ratio of 1/4: the first of the 7 bytes decides.
    let mut sampler = sampler(ratio(0.25));
    let mut verdict = |first: u8, method| {
        let mut trace_id = [0xff; 16];
        trace_id[9..].copy_from_slice(&[first, 0, 0, 0, 0, 0, 0]);
        let mut reset = traced(trace_id, method);
        (matches!(sampler.decide(&mut reset, 0), SampleDecision::Keep { .. }), reset.adjusted_count)
    };
    assert_eq!(verdict(0xc0, TraceMethod::Header), (true, 4.0));
    assert_eq!(verdict(0xbf, TraceMethod::Header), (false, 1.0));
    // An ambiguous trace is none: its id does not decide.
    assert_eq!(verdict(0xc0, TraceMethod::Ambiguous), verdict(0xbf, TraceMethod::Ambiguous));
}

#[test]
fn both_ends_of_a_connection_are_sampled_alike() {
    let mut sampler = sampler(ratio(0.5));
    for port in 0..1_000 {
        let mut sent = from_port(port, 7);
        let mut received = Reset { local: sent.peer, peer: sent.local, ..sent.clone() };
        let is_kept = |verdict| matches!(verdict, SampleDecision::Keep { .. });
        assert_eq!(is_kept(sampler.decide(&mut sent, 0)), is_kept(sampler.decide(&mut received, 0)));
    }
}

#[test]
fn the_first_rule_that_matches_decides() {
    let port_closed = EnumSets { causes: 1 << Cause::PortClosed as u32, ..EnumSets::ALL };
    let rules = vec![
        Rule { condition: Condition::Facts(port_closed), rate: ratio(0.0) },
        Rule { condition: all(), rate: ratio(1.0) },
    ];
    let mut sampler = Sampler::new(Sampling::new(ratio(1.0), rules));
    let mut verdict = |cause| sampler.decide(&mut Reset { cause, ..plain_reset() }, 0).to_string();
    assert_eq!(verdict(Cause::PortClosed), "sampled out by sampling.rules[0]");
    assert_eq!(verdict(Cause::LingerZero), "kept by sampling.rules[1]");
}

#[test]
fn a_summary_tells_what_a_limit_suppressed() {
    let limit = RateLimit { per_second: 1.0, burst: 1.0, group_by: vec![Key::Record(Attribute::PeerPort)] };
    let mut sampler = sampler(Rate::PerSecond(limit));
    let verdicts: Vec<_> = (0..1_206).map(|_| sampler.decide(&mut from_port(1, 0), 5).to_string()).collect();
    assert_eq!(verdicts[0], "kept by sampling.default");
    assert_eq!(verdicts[1], "held for a summary by sampling.default");
    assert_eq!(verdicts[2], "sampled out by sampling.default");
    assert!(
        matches!(sampler.decide(&mut from_port(2, 0), 5), SampleDecision::Keep { .. }),
        "another key has its own limit"
    );
    assert_eq!(sampler.held(), 1);
    assert!(sampler.due_summaries(5 + SUMMARY_INTERVAL_NS - 1).is_empty());
    let summaries = sampler.due_summaries(5 + SUMMARY_INTERVAL_NS);
    assert_eq!(summaries.len(), 1);
    assert_eq!(summaries[0].sentence(), "1,205 more resets like this in 10 s");
    assert_eq!((summaries[0].reset.adjusted_count, summaries[0].suppressed), (1_205.0, 1_205));
    assert_eq!(sampler.held(), 0);
    assert!(sampler.drain().is_empty());
}

proptest! {
    #[test]
    fn a_limit_is_never_exceeded_and_nothing_is_lost(
        gaps_ms in prop::collection::vec(0_u64..400, 1..300), per_second in 1_u32..20, burst in 1_u32..10,
    ) {
        let limit = RateLimit { per_second: per_second.into(), burst: burst.into(), group_by: Vec::new() };
        let mut sampler = sampler(Rate::PerSecond(limit));
        let (mut now, mut kept_at, mut weights, mut held) = (0, Vec::new(), 0.0, 0);
        for gap in &gaps_ms {
            now += gap * 1_000_000;
            for summary in sampler.due_summaries(now) {
                weights += summary.reset.adjusted_count;
                held -= 1;
            }
            let mut reset = plain_reset();
            match sampler.decide(&mut reset, now) {
                SampleDecision::Keep { .. } => {
                    kept_at.push(now);
                    weights += reset.adjusted_count;
                }
                SampleDecision::Held { .. } => held += 1,
                SampleDecision::SampledOut { .. } => {}
            }
            prop_assert_eq!(sampler.held(), held);
        }
        weights += sampler.drain().iter().map(|summary| summary.reset.adjusted_count).sum::<f64>();
        prop_assert_eq!(weights, gaps_ms.len() as f64);
        for (first, from) in kept_at.iter().enumerate() {
            for (last, to) in kept_at.iter().enumerate().skip(first) {
                let allowed = f64::from(per_second) * (to - from) as f64 / 1e9 + f64::from(burst);
                prop_assert!((last - first + 1) as f64 <= allowed + 1e-6);
            }
        }
    }
}
