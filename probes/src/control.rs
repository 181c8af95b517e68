//! What user space tells the programs while they run, and the sizes that both sides count with.

/// The one entry of the map `CONTROL`; each word is written by itself.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Control {
    /// Not 0: the reader sleeps, and the next record must wake it.
    pub reader_sleeps: u32,
    /// 0: no rules. Else its lowest bit says which half of the map `RULES` holds the program.
    pub program: u32,
    /// Between two records at the ceiling, ns; 0 is no ceiling.
    pub interval_ns: u32,
    /// Zero.
    pub reserved: u32,
}

/// Buckets of the ceiling's keys: a power of two, so many that a key seldom shares one with a flood.
pub const BUCKETS: usize = 131_072;
/// Records that may come at once after quiet, at any ceiling above 0.
pub const BURST: u64 = 900_000;
/// A key (a port here, a peer) that is hot has one record for so many of the ceiling's.
pub const SHARE_OF_KEY: u64 = 16;
/// A kind (a cause, direction and namespace) that is hot has one record for so many of the ceiling's.
pub const SHARE_OF_KIND: u64 = 4;
/// What a key's bucket holds: its share of one second.
pub const KEY_BURST_NS: u64 = 1_000_000_000;

/// Ports, a bit each: the one entry of the map `WIRE_PORTS`; user space writes all of it.
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
