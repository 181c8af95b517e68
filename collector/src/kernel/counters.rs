//! The kernel's counts of resets, whatever becomes of them afterwards.

use aya::maps::{MapData, PerCpuArray};
use probes::{COUNTERS, Cause, Direction, Origin, counter_index};

use crate::kernel::missed_runs::MissedRuns;

/// Counts of resets in the kernel, before any rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts(Vec<u64>);

impl Counts {
    /// The count of one cause, origin and direction.
    pub fn get(&self, cause: Cause, origin: Origin, direction: Direction) -> u64 {
        self.0.get(counter_index(cause, origin, direction) as usize).copied().unwrap_or(0)
    }

    /// By [`counter_index`].
    pub fn as_slice(&self) -> &[u64] {
        &self.0
    }

    /// All together.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Every count that is not 0.
    pub fn iter(&self) -> impl Iterator<Item = (Cause, Origin, Direction, u64)> {
        Cause::ALL.iter().flat_map(move |cause| {
            Origin::ALL.iter().flat_map(move |origin| {
                Direction::ALL.iter().filter_map(move |direction| {
                    let count = self.get(*cause, *origin, *direction);
                    (count != 0).then_some((*cause, *origin, *direction, count))
                })
            })
        })
    }
}

/// The kernel's counters of resets; they outlive the programs.
pub struct Counters {
    pub(super) captured: PerCpuArray<MapData, u64>,
    pub(super) lost: PerCpuArray<MapData, u64>,
    pub(super) suppressed: PerCpuArray<MapData, u64>,
    pub(super) missed_runs: MissedRuns,
}

/// The kernel's counters at one time, since the programs were loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tallies {
    /// Every reset, before any rule.
    pub captured: Counts,
    /// Dropped by the rules in the kernel.
    pub filtered: u64,
    /// Refused by the rate limit.
    pub rate_limited: u64,
    /// For which the ring buffer had no room.
    pub lost: u64,
    /// Missed runs of probes that see resets, by hook: some may have been resets.
    pub missed_runs: Vec<(&'static str, u64)>,
}

impl Counters {
    /// Reads them, what was captured last: the others are never more than that.
    pub fn read(&self) -> Tallies {
        let lost = sum(&self.lost, COUNTERS).total();
        let suppressed = sum(&self.suppressed, 2).0;
        let [filtered, rate_limited] = [0, 1].map(|index| suppressed.get(index).copied().unwrap_or(0));
        let missed_runs = self.missed_runs.read();
        Tallies { captured: sum(&self.captured, COUNTERS), filtered, rate_limited, lost, missed_runs }
    }
}

/// The counters' sums over all CPUs; a count taken back on another CPU wraps and comes right in the sum.
fn sum(map: &PerCpuArray<MapData, u64>, counters: u32) -> Counts {
    let one =
        |index| map.get(&index, 0).map_or(0, |values| values.iter().fold(0u64, |sum, value| sum.wrapping_add(*value)));
    Counts((0..counters).map(one).collect())
}
