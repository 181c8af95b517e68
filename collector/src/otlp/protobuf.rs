//! The protobuf wire format, as much of it as OTLP needs: fields appended to a byte buffer.
//!
//! Knows no message; see [`crate::otlp::encode`]. Every function writes a whole field with its key.

/// Wire type of varints.
const VARINT: u32 = 0;
/// Wire type of eight bytes.
const FIXED64: u32 = 1;
/// Wire type of bytes with their length before them.
const LENGTH: u32 = 2;
/// Wire type of four bytes.
const FIXED32: u32 = 5;

/// Longest varint, bytes.
pub const MAX_VARINT_LEN: usize = 10;

/// Bytes that this number takes as a varint.
pub const fn varint_length(number: u64) -> usize {
    ((64 - (number | 1).leading_zeros()) as usize).div_ceil(7)
}

/// A bare varint.
#[inline]
pub fn varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// The varint that these bytes begin with, and how many bytes it takes; `None` if it does not end.
pub fn read_varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut number = 0;
    for (index, byte) in bytes.iter().take(MAX_VARINT_LEN).enumerate() {
        number |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Some((number, index + 1));
        }
    }
    None
}

/// The key of a field whose content is bytes, a text or a message.
pub const fn length_key(field: u32) -> u64 {
    (field << 3 | LENGTH) as u64
}

/// A whole number (int32, int64, uint32, uint64, enum).
#[inline]
pub fn integer(out: &mut Vec<u8>, field: u32, number: u64) {
    varint(out, u64::from(field << 3 | VARINT));
    varint(out, number);
}

/// A fixed64.
#[inline]
pub fn fixed64(out: &mut Vec<u8>, field: u32, number: u64) {
    varint(out, u64::from(field << 3 | FIXED64));
    out.extend_from_slice(&number.to_le_bytes());
}

/// A fixed32.
pub fn fixed32(out: &mut Vec<u8>, field: u32, number: u32) {
    varint(out, u64::from(field << 3 | FIXED32));
    out.extend_from_slice(&number.to_le_bytes());
}

/// A double.
pub fn double(out: &mut Vec<u8>, field: u32, number: f64) {
    fixed64(out, field, number.to_bits());
}

/// Bytes or a text.
#[inline]
pub fn bytes(out: &mut Vec<u8>, field: u32, content: &[u8]) {
    length(out, field, content.len());
    out.extend_from_slice(content);
}

/// The key and length of a message (or text) whose `length` bytes the caller writes next.
#[inline]
pub fn length(out: &mut Vec<u8>, field: u32, length: usize) {
    varint(out, length_key(field));
    varint(out, length as u64);
}

/// Bytes that [`length`] and its content take.
pub const fn field_length(field: u32, content: usize) -> usize {
    varint_length(length_key(field)) + varint_length(content as u64) + content
}

/// A message whose length is known only when it has been written: two bytes are kept for the length, which fits
/// 128 to 16,383 bytes; other lengths move the content.
pub fn message(out: &mut Vec<u8>, field: u32, write: impl FnOnce(&mut Vec<u8>)) {
    const KEPT: usize = 2;
    varint(out, length_key(field));
    let length_at = out.len();
    out.extend_from_slice(&[0; KEPT]);
    write(out);
    let content = out.len() - length_at - KEPT;
    let needed = varint_length(content as u64);
    if needed != KEPT {
        let start = length_at + KEPT;
        out.resize(start + content + needed.saturating_sub(KEPT), 0);
        out.copy_within(start..start + content, length_at + needed);
        out.truncate(length_at + needed + content);
    }
    let mut rest = content;
    for (index, byte) in out[length_at..length_at + needed].iter_mut().enumerate() {
        *byte = rest as u8 & 0x7f | if index + 1 < needed { 0x80 } else { 0 };
        rest >>= 7;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_message_takes_the_shortest_length() {
        for content in [0, 1, 127, 128, 16_383, 16_384, 300_000] {
            let mut out = vec![7];
            message(&mut out, 6, |out| out.extend((0..content).map(|byte| byte as u8)));
            out.push(9);
            let mut expected = vec![7];
            bytes(&mut expected, 6, &(0..content).map(|byte| byte as u8).collect::<Vec<_>>());
            expected.push(9);
            assert_eq!(out, expected, "content of {content} bytes");
            assert_eq!(out.len(), 2 + field_length(6, content));
        }
    }

    proptest! {
        #[test]
        fn varints_read_back(number: u64) {
            let mut out = Vec::new();
            varint(&mut out, number);
            prop_assert_eq!(out.len(), varint_length(number));
            prop_assert_eq!(read_varint(&out), Some((number, out.len())));
        prop_assert_eq!(read_varint(&out[..out.len() - 1]), None);
        prop_assert_eq!(prost::encoding::decode_varint(&mut out.as_slice()).unwrap(), number);
        }
    }
}
