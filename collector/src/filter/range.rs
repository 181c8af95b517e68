//! Sets of ports, numbers and networks: what the conditions on them test, and how they compare.

use std::{fmt, net::IpAddr};

/// A set of ports as ranges, both ends inside, sorted and apart from each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ports(Vec<(u16, u16)>);

impl Ports {
    /// The union of these ranges; a range whose end is below its start is empty.
    pub fn new(mut ranges: Vec<(u16, u16)>) -> Self {
        ranges.retain(|(low, high)| low <= high);
        ranges.sort_unstable();
        let mut merged: Vec<(u16, u16)> = Vec::with_capacity(ranges.len());
        for (low, high) in ranges {
            match merged.last_mut() {
                Some(last) if u32::from(low) <= u32::from(last.1) + 1 => last.1 = last.1.max(high),
                _ => merged.push((low, high)),
            }
        }
        Self(merged)
    }

    /// The ranges, lowest first.
    pub fn ranges(&self) -> &[(u16, u16)] {
        &self.0
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Every port in the set, lowest first.
    pub fn iter(&self) -> impl Iterator<Item = u16> {
        self.0.iter().flat_map(|(low, high)| *low..=*high)
    }

    /// Whether the port is in the set.
    pub fn contains(&self, port: u16) -> bool {
        match self.0.as_slice() {
            [(low, high)] => *low <= port && port <= *high,
            ranges => {
                let after = ranges.partition_point(|(low, _)| *low <= port);
                after > 0 && port <= ranges[after - 1].1
            }
        }
    }

    /// Whether the set has every port of `other`.
    pub fn covers(&self, other: &Self) -> bool {
        other.0.iter().all(|(low, high)| self.0.iter().any(|(from, to)| from <= low && high <= to))
    }

    /// Whether the sets share no port.
    pub fn excludes(&self, other: &Self) -> bool {
        other.0.iter().all(|(low, high)| self.0.iter().all(|(from, to)| to < low || high < from))
    }

    /// The ports that are in both sets.
    pub fn intersection(&self, other: &Self) -> Self {
        let mut ranges = Vec::new();
        for (low, high) in &self.0 {
            ranges.extend(other.0.iter().map(|(from, to)| (*low.max(from), *high.min(to))));
        }
        Self::new(ranges)
    }

    /// Every port that is not in the set.
    pub fn complement(&self) -> Self {
        let mut ranges = Vec::with_capacity(self.0.len() + 1);
        let mut next = 0_u32;
        for (low, high) in &self.0 {
            if u32::from(*low) > next {
                ranges.push((next as u16, low - 1));
            }
            next = u32::from(*high) + 1;
        }
        if let Ok(next) = u16::try_from(next) {
            ranges.push((next, u16::MAX));
        }
        Self(ranges)
    }
}

/// A range of numbers. Infinite ends are open ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NumberRange {
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
    /// Whether the lower end itself is inside.
    pub low_inside: bool,
    /// Whether the upper end itself is inside.
    pub high_inside: bool,
}

impl NumberRange {
    /// Every number.
    pub const ALL: Self = Self { low: f64::NEG_INFINITY, high: f64::INFINITY, low_inside: true, high_inside: true };

    /// One number.
    pub const fn one(number: f64) -> Self {
        Self { low: number, high: number, low_inside: true, high_inside: true }
    }

    /// Whether the number is inside.
    pub fn contains(&self, number: f64) -> bool {
        (number > self.low || (self.low_inside && number == self.low))
            && (number < self.high || (self.high_inside && number == self.high))
    }

    /// Whether no number is inside.
    pub fn is_empty(&self) -> bool {
        self.low > self.high || (self.low == self.high && !(self.low_inside && self.high_inside))
    }

    /// Whether every number of `other` is inside.
    pub fn covers(&self, other: &Self) -> bool {
        other.is_empty()
            || ((self.low < other.low || (self.low == other.low && (self.low_inside || !other.low_inside)))
                && (self.high > other.high || (self.high == other.high && (self.high_inside || !other.high_inside))))
    }

    /// Whether no number is in both.
    pub fn excludes(&self, other: &Self) -> bool {
        self.is_empty()
            || other.is_empty()
            || self.high < other.low
            || other.high < self.low
            || (self.high == other.low && !(self.high_inside && other.low_inside))
            || (other.high == self.low && !(other.high_inside && self.low_inside))
    }
}

/// A network: the addresses that share its first bits. A network of IPv4 never contains an address of IPv6, nor the reverse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    value: u128,
    mask: u128,
    ipv4: bool,
}

impl Network {
    /// The network of this address and prefix length; `None` where the length is too long. Bits after the prefix are
    /// cleared. An IPv4-mapped IPv6 network is an IPv4 network, as its addresses are.
    pub fn new(address: IpAddr, prefix: u8) -> Option<Self> {
        let (value, ipv4, width) = match address {
            IpAddr::V4(address) => (u128::from(address.to_bits()), true, 32),
            IpAddr::V6(address) => match address.to_ipv4_mapped() {
                Some(mapped) if prefix >= 96 => return Self::new(IpAddr::V4(mapped), prefix - 96),
                _ => (address.to_bits(), false, 128),
            },
        };
        let host_bits = u32::from(u8::checked_sub(width, prefix)?);
        let all = if ipv4 { u128::from(u32::MAX) } else { u128::MAX };
        let mask = all & u128::MAX.checked_shl(host_bits).unwrap_or(0);
        Some(Self { value: value & mask, mask, ipv4 })
    }

    /// The lowest address of the network.
    pub fn base(&self) -> IpAddr {
        if self.ipv4 { IpAddr::V4((self.value as u32).into()) } else { IpAddr::V6(self.value.into()) }
    }

    /// Whether the address is in the network.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.holds(Self::bits(address))
    }

    /// Whether the address with these [`Network::bits`] is in the network.
    pub fn holds(&self, (bits, is_ipv4): (u128, bool)) -> bool {
        self.ipv4 == is_ipv4 && bits & self.mask == self.value
    }

    /// An address as it is compared: its bits, and whether it is IPv4.
    pub fn bits(address: IpAddr) -> (u128, bool) {
        match address {
            IpAddr::V4(address) => (u128::from(address.to_bits()), true),
            IpAddr::V6(address) => (address.to_bits(), false),
        }
    }

    /// Whether every address of `other` is in this network.
    pub fn covers(&self, other: &Self) -> bool {
        self.ipv4 == other.ipv4 && self.mask & other.mask == self.mask && other.value & self.mask == self.value
    }

    /// Whether it is a network of IPv4.
    pub fn is_ipv4(&self) -> bool {
        self.ipv4
    }

    /// Value and mask of the 16 bytes that an address has in the kernel's record, where IPv4 comes after `::ffff:`.
    /// `None` for an IPv6 network so wide that these bytes would let IPv4 addresses in.
    pub fn mapped(&self) -> Option<(u128, u128)> {
        const MAPPED: u128 = 0xffff << 32;
        if self.ipv4 {
            return Some((self.value | MAPPED, self.mask | (u128::MAX << 32)));
        }
        (MAPPED & self.mask != self.value || self.mask.count_ones() > 96).then_some((self.value, self.mask))
    }
}

impl fmt::Display for Network {
    /// As it is written in a file; a network of one address without its prefix length.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (address, width) =
            if self.ipv4 { (IpAddr::V4((self.value as u32).into()), 32) } else { (IpAddr::V6(self.value.into()), 128) };
        match self.mask.count_ones() {
            prefix if prefix == width => write!(formatter, "{address}"),
            prefix => write!(formatter, "{address}/{prefix}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn network(text: &str) -> Network {
        let (address, prefix) = text.split_once('/').unwrap();
        Network::new(address.parse().unwrap(), prefix.parse().unwrap()).unwrap()
    }

    #[test]
    fn networks_hold_their_own_family() {
        let cases = [
            ("10.0.0.0/8", "10.255.0.1", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("0.0.0.0/0", "1.2.3.4", true),
            ("0.0.0.0/0", "::1", false),
            ("::/0", "1.2.3.4", false),
            ("::/0", "fe80::1", true),
            ("fd00::/8", "fdff::1", true),
            ("::ffff:10.0.0.0/104", "10.1.1.1", true),
            ("::ffff:10.0.0.0/104", "11.1.1.1", false),
        ];
        for (text, address, expected) in cases {
            assert_eq!(network(text).contains(address.parse().unwrap()), expected, "{text} {address}");
        }
        assert_eq!(Network::new("10.0.0.0".parse().unwrap(), 33), None);
        assert_eq!(Network::new("::".parse().unwrap(), 129), None);
    }

    #[test]
    fn wide_ipv6_networks_are_not_masks() {
        assert_eq!(network("::/0").mapped(), None);
        assert_eq!(network("::/80").mapped(), None);
        assert_eq!(network("::/96").mapped(), Some((0, u128::MAX << 32)));
        assert!(network("fd00::/8").mapped().is_some());
        assert_eq!(network("0.0.0.0/0").mapped(), Some((0xffff << 32, u128::MAX << 32)));
    }

    #[test]
    fn displays_as_written() {
        for text in ["10.0.0.0/8", "fd00::/8", "0.0.0.0/0"] {
            assert_eq!(network(text).to_string(), text);
        }
        assert_eq!(network("192.0.2.1/32").to_string(), "192.0.2.1");
    }

    proptest! {
        #[test]
        fn ports_are_a_set(mine in prop::collection::vec((0_u16..20, 0_u16..20), 0..4),
                           theirs in prop::collection::vec((0_u16..20, 0_u16..20), 0..4), port in 0_u16..22) {
            let inside = |ranges: &[(u16, u16)]| ranges.iter().any(|(low, high)| *low <= port && port <= *high);
            let (a, b) = (Ports::new(mine.clone()), Ports::new(theirs.clone()));
            prop_assert_eq!(a.contains(port), inside(&mine));
            prop_assert_eq!(a.complement().contains(port), !inside(&mine));
            prop_assert_eq!(a.intersection(&b).contains(port), a.contains(port) && b.contains(port));
            prop_assert!(!(a.covers(&b) && b.contains(port)) || a.contains(port));
            prop_assert!(!(a.excludes(&b) && a.contains(port) && b.contains(port)));
        }

        #[test]
        fn number_ranges_compare(a in (0..6_i8, 0..6_i8, any::<bool>(), any::<bool>()),
                                 b in (0..6_i8, 0..6_i8, any::<bool>(), any::<bool>()), number in 0..6_i8) {
            let range = |(low, high, low_inside, high_inside): (i8, i8, bool, bool)| NumberRange {
                low: low.into(), high: high.into(), low_inside, high_inside };
            let (a, b, number) = (range(a), range(b), f64::from(number));
            prop_assert!(!(a.is_empty() && a.contains(number)));
            prop_assert!(!(a.covers(&b) && b.contains(number)) || a.contains(number));
            prop_assert!(!(a.excludes(&b) && a.contains(number) && b.contains(number)));
        }
    }
}
