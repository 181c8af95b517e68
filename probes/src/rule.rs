//! The rules that the kernel applies to a reset before it makes a record: the form of a rule, and how a program of
//! rules is evaluated.
//!
//! The collector compiles filters into these (`collector/src/pushdown.rs`); the probes evaluate them. The same function
//! runs on both sides, so that the collector's tests hold for the kernel. Everything is of fixed size and every loop has
//! a constant bound, for the verifier.

use core::hint::black_box;

/// Rules in a program at most.
pub const MAX_RULES: usize = 32;
/// Port ranges of one end in a rule at most.
pub const MAX_PORT_RANGES: usize = 4;
/// Networks of one end in a rule at most.
pub const MAX_NETWORKS: usize = 2;
/// Reasons in a rule at most.
pub const MAX_REASONS: usize = 4;

/// What becomes of a reset that a rule matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No rule after this one can drop it: a record is made.
    Keep,
    /// No record is made; the reset is counted as filtered.
    Drop,
    /// The kernel cannot decide: a record is made, and user space applies every filter.
    Stop,
}

/// [`Rule::verdict`] of an empty place in a program: the program ends there.
pub const END: u8 = 0;
/// [`Rule::verdict`] for [`Verdict::Keep`].
pub const KEEP: u8 = 1;
/// [`Rule::verdict`] for [`Verdict::Drop`].
pub const DROP: u8 = 2;
/// [`Rule::verdict`] for [`Verdict::Stop`].
pub const STOP: u8 = 3;

/// [`Rule::source`] of the rules for the switches under `capture`.
pub const FROM_CAPTURE: u16 = u16::MAX;

/// Bit of [`Rule::tests`]: the reason must be one of [`Rule::reasons`].
pub const TEST_REASON: u8 = 1 << 0;
/// Bit of [`Rule::tests`]: the network namespace must be [`Rule::network_namespace`].
pub const TEST_NAMESPACE: u8 = 1 << 1;
/// Bit of [`Rule::tests`]: the local port must be in one of [`Rule::local_ports`].
pub const TEST_LOCAL_PORT: u8 = 1 << 2;
/// Bit of [`Rule::tests`]: the peer's port must be in one of [`Rule::peer_ports`].
pub const TEST_PEER_PORT: u8 = 1 << 3;
/// Bit of [`Rule::tests`]: the local address must be in one of [`Rule::local_networks`].
pub const TEST_LOCAL_ADDRESS: u8 = 1 << 4;
/// Bit of [`Rule::tests`]: the peer's address must be in one of [`Rule::peer_networks`].
pub const TEST_PEER_ADDRESS: u8 = 1 << 5;

/// Bit of [`Rule::ip_versions`].
pub const IPV4: u8 = 1;
/// Bit of [`Rule::ip_versions`].
pub const IPV6: u8 = 2;

/// Ports from `low` to `high`, both inside.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "zerocopy", derive(zerocopy::IntoBytes, zerocopy::Immutable))]
pub struct PortRange {
    /// The lowest.
    pub low: u16,
    /// The highest.
    pub high: u16,
}

impl PortRange {
    /// A range that holds no port.
    pub const EMPTY: Self = Self { low: 1, high: 0 };
}

/// The addresses whose bits under `mask` are `value`. Words of an address's 16 bytes as in memory.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "zerocopy", derive(zerocopy::IntoBytes, zerocopy::Immutable))]
pub struct Network {
    /// The bits.
    pub value: [u32; 4],
    /// Which bits count.
    pub mask: [u32; 4],
}

impl Network {
    /// A network that holds no address.
    pub const EMPTY: Self = Self { value: [u32::MAX; 4], mask: [0; 4] };
}

/// One rule: every test must hold.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "zerocopy", derive(zerocopy::IntoBytes, zerocopy::Immutable))]
pub struct Rule {
    /// A bit for each [`crate::Cause`] by number.
    pub causes: u32,
    /// [`reason_key`] of the reasons, under [`TEST_REASON`]; unused places repeat another.
    pub reasons: [u32; MAX_REASONS],
    /// Inode, under [`TEST_NAMESPACE`].
    pub network_namespace: u32,
    /// Under [`TEST_LOCAL_ADDRESS`].
    pub local_networks: [Network; MAX_NETWORKS],
    /// Under [`TEST_PEER_ADDRESS`].
    pub peer_networks: [Network; MAX_NETWORKS],
    /// Under [`TEST_LOCAL_PORT`].
    pub local_ports: [PortRange; MAX_PORT_RANGES],
    /// Under [`TEST_PEER_PORT`].
    pub peer_ports: [PortRange; MAX_PORT_RANGES],
    /// A bit for each [`crate::State`] by number; bit 0 is the unknown one.
    pub states: u16,
    /// The filter that the rule came from, counted from 0, or [`FROM_CAPTURE`].
    pub source: u16,
    /// A bit for each [`crate::Direction`] by number.
    pub directions: u8,
    /// A bit for each [`crate::Origin`] by number.
    pub origins: u8,
    /// [`IPV4`], [`IPV6`] or both.
    pub ip_versions: u8,
    /// `TEST_` bits: which of the tests beyond the bit sets are made.
    pub tests: u8,
    /// `TEST_` bits: which of those must fail instead of hold.
    pub negated: u8,
    /// [`END`], [`KEEP`], [`DROP`] or [`STOP`].
    pub verdict: u8,
    /// Zero.
    pub reserved: [u8; 2],
}

const _: () = assert!(core::mem::size_of::<Rule>() == 196);

impl Rule {
    /// The empty place at the end of a program.
    pub const END: Self = Self {
        causes: u32::MAX,
        reasons: [0; MAX_REASONS],
        network_namespace: 0,
        local_networks: [Network::EMPTY; MAX_NETWORKS],
        peer_networks: [Network::EMPTY; MAX_NETWORKS],
        local_ports: [PortRange::EMPTY; MAX_PORT_RANGES],
        peer_ports: [PortRange::EMPTY; MAX_PORT_RANGES],
        states: u16::MAX,
        source: 0,
        directions: u8::MAX,
        origins: u8::MAX,
        ip_versions: u8::MAX,
        tests: 0,
        negated: 0,
        verdict: END,
        reserved: [0; 2],
    };
}

/// What the kernel knows of a reset when it decides.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// [`reason_key`], or `u32::MAX` when the kernel gave none.
    pub reason: u32,
    /// Inode, 0 when not known.
    pub network_namespace: u32,
    /// The 16 bytes of the record's address as in memory.
    pub local_address: [u32; 4],
    /// The other end's.
    pub peer_address: [u32; 4],
    /// Port of this host's end.
    pub local_port: u16,
    /// Port of the other end.
    pub peer_port: u16,
    /// [`crate::Cause`] by number.
    pub cause: u8,
    /// [`crate::State`] by number, 0 when not known.
    pub state: u8,
    /// [`crate::Direction`] by number.
    pub direction: u8,
    /// [`crate::Origin`] by number.
    pub origin: u8,
    /// 4 or 6: by the addresses, so that an IPv4-mapped connection is 4.
    pub ip_version: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

/// A reason's number and the enum that it counts in, as one number.
pub const fn reason_key(number: u16, is_drop_reason: bool) -> u32 {
    number as u32 | (is_drop_reason as u32) << 16
}

/// The verdict of a program, and the index of the rule that gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What becomes of the reset.
    pub verdict: Verdict,
    /// Index in the program.
    pub rule: u32,
}

/// The first rule that matches; `None` where none does, and a record is made. The probes walk the rules by `bpf_loop`,
/// in the same order.
#[inline(always)]
pub fn evaluate(rules: &[Rule; MAX_RULES], facts: &Facts) -> Option<Outcome> {
    let mut index = 0;
    while index < MAX_RULES {
        let rule = &rules[index];
        if rule.verdict == END {
            return None;
        }
        if matches(rule, facts) {
            let verdict = match rule.verdict {
                KEEP => Verdict::Keep,
                DROP => Verdict::Drop,
                _ => Verdict::Stop,
            };
            return Some(Outcome { verdict, rule: index as u32 });
        }
        index += 1;
    }
    None
}

/// Whether every test of one rule holds.
///
/// Each test is calculated to a number and decided by one branch: results gathered in booleans would double the paths that
/// the verifier follows with each of them.
#[inline(always)]
pub fn matches(rule: &Rule, facts: &Facts) -> bool {
    // 4 and 6 become the bits IPV4 and IPV6.
    let ip_version = facts.ip_version.wrapping_shr(1).wrapping_sub(1);
    let listed = bit(rule.causes, facts.cause)
        & bit(rule.states as u32, facts.state)
        & bit(rule.directions as u32, facts.direction)
        & bit(rule.origins as u32, facts.origin);
    if listed == 0 || rule.ip_versions & ip_version == 0 {
        return false;
    }
    if rule.tests == 0 {
        return true;
    }
    holds(rule, TEST_REASON, || distance_to_reasons(&rule.reasons, facts.reason))
        && holds(rule, TEST_NAMESPACE, || (rule.network_namespace ^ facts.network_namespace) as u64)
        && holds(rule, TEST_LOCAL_PORT, || outside_ports(&rule.local_ports, facts.local_port))
        && holds(rule, TEST_PEER_PORT, || outside_ports(&rule.peer_ports, facts.peer_port))
        && holds(rule, TEST_LOCAL_ADDRESS, || distance_to_networks(&rule.local_networks, &facts.local_address))
        && holds(rule, TEST_PEER_ADDRESS, || distance_to_networks(&rule.peer_networks, &facts.peer_address))
}

/// Whether a test is not made, or holds: its distance is 0, or is not where it is negated.
#[inline(always)]
fn holds(rule: &Rule, test: u8, distance: impl FnOnce() -> u64) -> bool {
    if rule.tests & test == 0 {
        return true;
    }
    // The highest bit of either is set where there is a distance.
    let distance = distance();
    let is_apart = black_box(distance | distance.wrapping_neg());
    let negated = (rule.negated as u64) << (63 - test.trailing_zeros());
    (is_apart ^ negated) >> 63 == 0
}

#[inline(always)]
fn bit(set: u32, number: u8) -> u32 {
    // The mask keeps the shift in range whatever the number is: no panic path for the verifier to follow.
    set >> (number & 31) & 1
}

/// 0 where the reason is one of these.
#[inline(always)]
fn distance_to_reasons(reasons: &[u32; MAX_REASONS], reason: u32) -> u64 {
    let first = either_is_zero(reasons[0] ^ reason, reasons[1] ^ reason);
    let second = either_is_zero(reasons[2] ^ reason, reasons[3] ^ reason);
    either_is_zero(first, second) as u64
}

/// 0 where one of the two is 0.
#[inline(always)]
fn either_is_zero(left: u32, right: u32) -> u32 {
    let product = black_box(left as u64 * right as u64);
    (product | product >> 32) as u32
}

/// 0 where the port lies in one of the ranges.
#[inline(always)]
fn outside_ports(ranges: &[PortRange; MAX_PORT_RANGES], port: u16) -> u64 {
    outside(&ranges[0], port) & outside(&ranges[1], port) & outside(&ranges[2], port) & outside(&ranges[3], port)
}

/// 1 where the port lies outside the range, else 0: one of the differences has its sign bit set.
#[inline(always)]
fn outside(range: &PortRange, port: u16) -> u64 {
    let (low, high, port) = (range.low as u64, range.high as u64, port as u64);
    black_box(port.wrapping_sub(low) | high.wrapping_sub(port)) >> 63
}

/// 0 where the address lies in one of the networks.
#[inline(always)]
fn distance_to_networks(networks: &[Network; MAX_NETWORKS], address: &[u32; 4]) -> u64 {
    distance(&networks[0], address) as u64 * distance(&networks[1], address) as u64
}

#[inline(always)]
fn distance(network: &Network, address: &[u32; 4]) -> u32 {
    black_box(
        ((address[0] & network.mask[0]) ^ network.value[0])
            | ((address[1] & network.mask[1]) ^ network.value[1])
            | ((address[2] & network.mask[2]) ^ network.value[2])
            | ((address[3] & network.mask[3]) ^ network.value[3]),
    )
}
