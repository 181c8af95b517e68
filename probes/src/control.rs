//! What user space sets while the programs run, and the sizes that both sides share.

/// The one entry of the map `CONTROL`; each word is written by itself.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Control {
    /// Not 0: the reader sleeps, and the next record must wake it.
    pub reader_sleeps: u32,
    /// 0: no rules. Else its lowest bit selects the half of the map `RULES` with the program.
    pub program: u32,
    /// Time between two records at the rate limit, ns; 0 for no limit.
    pub interval_ns: u32,
    /// Number of the walk through all files that is under way or was the last one.
    pub walk: u32,
}

/// Buckets of the rate limit's keys: a power of two, large enough that a key seldom shares one with a flood.
pub const BUCKETS: usize = 131_072;
/// Records in a burst after quiet, at any rate limit above 0.
pub const BURST: u64 = 900_000;
/// A key (a local port, a peer) gets one in this many records of the limit.
pub const SHARE_OF_KEY: u64 = 16;
/// A kind (cause, direction, origin and namespace) gets one in this many records of the limit.
pub const SHARE_OF_KIND: u64 = 4;
/// In the last quarter of the burst, a kind that asks for more than one in this many records of the limit gets none.
pub const SHARE_OF_SELDOM: u64 = 64;
/// Capacity of a key's bucket: its share of one second.
pub const KEY_BURST_NS: u64 = 1_000_000_000;

/// Ports, a bit each: the one entry of the map `HTTP_PORTS`; user space writes all of it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports(pub [u64; 1024]);

impl Ports {
    /// No port.
    pub const NONE: Self = Self([0; 1024]);

    /// Adds a port.
    pub const fn add(&mut self, port: u16) {
        self.0[port as usize / 64] |= 1 << (port % 64);
    }

    /// Whether a port is among them.
    #[inline(always)]
    pub fn contains(&self, port: u16) -> bool {
        // The index is below the length: no port is above 65,535.
        self.0.get(port as usize / 64).is_some_and(|word| word >> (port % 64) & 1 != 0)
    }
}
