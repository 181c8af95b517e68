//! The text of an address, written into the stack: every record carries four of them, and the standard library's
//! formatter costs more than all other attributes together.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Longest text: eight groups of four digits and seven colons.
const MAX_LENGTH: usize = 39;

/// The text of an address as RFC 5952 wants it (the same as its `Display`).
#[derive(Clone, Copy)]
pub struct AddressText {
    bytes: [u8; MAX_LENGTH],
    length: usize,
}

impl AddressText {
    /// The text of this address.
    pub fn new(address: IpAddr) -> Self {
        let mut text = Self { bytes: [0; MAX_LENGTH], length: 0 };
        match address {
            IpAddr::V4(address) => text.push_v4(address),
            IpAddr::V6(address) => text.push_v6(address),
        }
        text
    }

    /// The text's bytes, ASCII.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        str::from_utf8(self.as_bytes()).unwrap_or_default()
    }

    fn push(&mut self, byte: u8) {
        self.bytes[self.length] = byte;
        self.length += 1;
    }

    fn push_v4(&mut self, address: Ipv4Addr) {
        for (index, octet) in address.octets().into_iter().enumerate() {
            if index > 0 {
                self.push(b'.');
            }
            if octet >= 100 {
                self.push(b'0' + octet / 100);
            }
            if octet >= 10 {
                self.push(b'0' + octet / 10 % 10);
            }
            self.push(b'0' + octet % 10);
        }
    }

    fn push_v6(&mut self, address: Ipv6Addr) {
        if let Some(mapped) = address.to_ipv4_mapped() {
            for byte in *b"::ffff:" {
                self.push(byte);
            }
            return self.push_v4(mapped);
        }
        let groups = address.segments();
        let (zeros, zeros_length) = longest_zeros(&groups);
        let mut index = 0;
        while index < groups.len() {
            if zeros_length > 1 && index == zeros {
                self.push(b':');
                self.push(b':');
                index += zeros_length;
                continue;
            }
            if index > 0 && (zeros_length < 2 || index != zeros + zeros_length) {
                self.push(b':');
            }
            self.push_group(groups[index]);
            index += 1;
        }
    }

    fn push_group(&mut self, group: u16) {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let digits = (16 - (group | 1).leading_zeros()).div_ceil(4);
        for place in (0..digits).rev() {
            self.push(DIGITS[usize::from(group >> (4 * place) & 0xf)]);
        }
    }
}

/// Start and length of the first longest run of zero groups.
fn longest_zeros(groups: &[u16; 8]) -> (usize, usize) {
    let (mut best, mut best_length, mut length) = (0, 0, 0);
    for (index, group) in groups.iter().enumerate() {
        length = if *group == 0 { length + 1 } else { 0 };
        if length > best_length {
            (best, best_length) = (index + 1 - length, length);
        }
    }
    (best, best_length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn edges_read_as_the_standard_library_writes_them() {
        for text in ["0.0.0.0", "255.255.255.255", "10.0.100.9", "::", "::1", "1::", "fe80::1:0:0:1", "::ffff:1.2.3.4"]
        {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(AddressText::new(address).as_str(), text);
        }
        let longest: IpAddr = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff".parse().unwrap();
        assert_eq!(AddressText::new(longest).as_str(), longest.to_string());
    }

    proptest! {
        #[test]
        fn v4_as_display(bits: u32) {
            let address = IpAddr::V4(Ipv4Addr::from_bits(bits));
            let text = AddressText::new(address);
            prop_assert_eq!(text.as_str(), address.to_string());
        }

        #[test]
        fn v6_as_display(groups: [u16; 8], zero: u8) {
            let groups: [u16; 8] = std::array::from_fn(|i| if zero >> i & 1 == 1 { 0 } else { groups[i] });
            let address = IpAddr::V6(Ipv6Addr::from(groups));
            let text = AddressText::new(address);
            prop_assert_eq!(text.as_str(), address.to_string());
        }
    }
}
