//! The running kernel's own description of its types (BTF): where members lie, what enumerators are called, how many
//! arguments a tracepoint has.
//!
//! Reads the format of Documentation/bpf/btf.rst and nothing more of it than is needed here; aya keeps its own walk
//! private. A file that is cut short or wrong is an error, never a panic.

use std::{
    collections::{HashMap, hash_map::RandomState},
    fs,
    hash::BuildHasher,
    io,
    path::Path,
};

use probes::field::Place;

/// Why the kernel's types could not be read.
#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    /// The file cannot be read.
    #[error(
        "cannot read the kernel's type information {path}: {source} (a kernel built with CONFIG_DEBUG_INFO_BTF=y has it)"
    )]
    Unreadable {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The file is not BTF.
    #[error("{path} is not BTF of this machine's byte order: {what} at byte {at}")]
    Malformed {
        /// The file.
        path: String,
        /// What is wrong.
        what: &'static str,
        /// Where.
        at: usize,
    },
}

const MAGIC: u16 = 0xeb9f;
const HEADER_LEN: usize = 24;
const TYPE_LEN: usize = 12;
/// Deepest nesting of anonymous members that is followed.
const MAX_DEPTH: u32 = 16;

mod kind {
    pub(super) const INT: u32 = 1;
    pub(super) const POINTER: u32 = 2;
    pub(super) const ARRAY: u32 = 3;
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const ENUM: u32 = 6;
    pub(super) const TYPEDEF: u32 = 8;
    pub(super) const VOLATILE: u32 = 9;
    pub(super) const CONST: u32 = 10;
    pub(super) const RESTRICT: u32 = 11;
    pub(super) const FUNC: u32 = 12;
    pub(super) const FUNC_PROTO: u32 = 13;
    pub(super) const VAR: u32 = 14;
    pub(super) const DATASEC: u32 = 15;
    pub(super) const DECL_TAG: u32 = 17;
    pub(super) const TYPE_TAG: u32 = 18;
    pub(super) const ENUM64: u32 = 19;
}

/// The types of a kernel.
#[derive(Debug)]
pub struct Types {
    bytes: Vec<u8>,
    strings: usize,
    /// Byte of each type, by its id; id 0 is void.
    types: Vec<usize>,
    /// First of the types of a name, by the name's hash: a hundred thousand copies of names would stay in the heap as holes.
    named: HashMap<u64, u32>,
    hasher: RandomState,
}

impl Types {
    /// Reads a file such as `/sys/kernel/btf/vmlinux`.
    pub fn from_file(path: &Path) -> Result<Self, BtfError> {
        let name = path.display().to_string();
        let bytes = fs::read(path).map_err(|source| BtfError::Unreadable { path: name.clone(), source })?;
        Self::parse(bytes).map_err(|(what, at)| BtfError::Malformed { path: name, what, at })
    }

    /// Reads the bytes of such a file; an error says what is wrong and at which byte.
    pub fn parse(bytes: Vec<u8>) -> Result<Self, (&'static str, usize)> {
        let word = |at| read_u32(&bytes, at).ok_or(("the header is cut short", at));
        if bytes.get(..2) != Some(&MAGIC.to_ne_bytes()[..]) {
            return Err(("no magic number", 0));
        }
        let header = word(4)? as usize;
        if header < HEADER_LEN {
            return Err(("the header is too short", 4));
        }
        let (first, length) = (word(8)? as usize, word(12)? as usize);
        let (strings, strings_len) = (word(16)? as usize, word(20)? as usize);
        let section = |offset: usize, length: usize| header.checked_add(offset)?.checked_add(length);
        let end = section(first, length).filter(|end| *end <= bytes.len()).ok_or(("the types are cut short", 8))?;
        section(strings, strings_len).filter(|end| *end <= bytes.len()).ok_or(("the strings are cut short", 16))?;
        let mut types = Self {
            strings: header + strings,
            types: vec![0],
            named: HashMap::new(),
            hasher: RandomState::new(),
            bytes,
        };
        types.index(header + first, end)?;
        Ok(types)
    }

    fn index(&mut self, start: usize, end: usize) -> Result<(), (&'static str, usize)> {
        let mut at = start;
        while at < end {
            let (kind, count) = self.kind_at(at).ok_or(("a type is cut short", at))?;
            let extra = match kind {
                kind::INT | kind::VAR | kind::DECL_TAG => 4,
                kind::ARRAY => 12,
                kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => count * 12,
                kind::ENUM | kind::FUNC_PROTO => count * 8,
                1..=19 => 0,
                _ => return Err(("a type of a kind that is not known", at)),
            };
            let id = self.types.len() as u32;
            self.types.push(at);
            if matches!(kind, kind::STRUCT | kind::ENUM | kind::ENUM64 | kind::TYPEDEF) {
                let name = self.name_at(at);
                if !name.is_empty() {
                    let hash = self.hasher.hash_one(name);
                    self.named.entry(hash).or_insert(id);
                }
            }
            at += TYPE_LEN + extra;
        }
        Ok(())
    }

    fn word(&self, at: usize) -> Option<u32> {
        read_u32(&self.bytes, at)
    }

    fn kind_at(&self, at: usize) -> Option<(u32, usize)> {
        let info = self.word(at + 4)?;
        Some((info >> 24 & 0x1f, (info & 0xffff) as usize))
    }

    fn name_at(&self, at: usize) -> &[u8] {
        let Some(offset) = self.word(at) else { return &[] };
        let rest = self.bytes.get(self.strings + offset as usize..).unwrap_or(&[]);
        &rest[..rest.iter().position(|byte| *byte == 0).unwrap_or(rest.len())]
    }

    fn at(&self, id: u32) -> Option<usize> {
        self.types.get(id as usize).copied().filter(|at| *at != 0)
    }

    /// The first structure, enum or typedef of a name.
    fn find(&self, name: &str) -> Option<u32> {
        let id = *self.named.get(&self.hasher.hash_one(name.as_bytes()))?;
        // Two names of one hash: one in a billion kernels, whose hooks then say that they cannot run.
        (self.name_at(self.at(id)?) == name.as_bytes()).then_some(id)
    }

    /// Through typedefs and qualifiers to the type itself.
    fn resolve(&self, mut id: u32) -> Option<usize> {
        for _ in 0..MAX_DEPTH {
            let at = self.at(id)?;
            match self.kind_at(at)?.0 {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                    id = self.word(at + 8)?
                }
                _ => return Some(at),
            }
        }
        None
    }

    /// Where the member at a dotted path lies in a struct; `None` where this kernel has none such.
    pub fn place(&self, structure: &str, path: &str) -> Option<Place> {
        let mut at = self.at(self.find(structure)?)?;
        let mut bits = 0u32;
        let mut width = 0;
        for name in path.split('.') {
            let (offset, size, member) = self.member(at, name.as_bytes(), 0)?;
            bits = bits.checked_add(offset)?;
            width = size;
            at = self.resolve(member)?;
        }
        let byte = u16::try_from(bits / 8).ok()?;
        let shift = (bits % 8) as u8;
        // A bit field must lie in one byte: all fields read here do.
        (u32::from(shift) + width <= 8 || width == 0).then(|| Place::new(byte, shift, width as u8))
    }

    /// Bit offset, width and type of a member, also in anonymous members.
    fn member(&self, at: usize, name: &[u8], depth: u32) -> Option<(u32, u32, u32)> {
        let (kind, count) = self.kind_at(at)?;
        if !matches!(kind, kind::STRUCT | kind::UNION) || depth > MAX_DEPTH {
            return None;
        }
        let packed = self.word(at + 4)? >> 31 != 0;
        for number in 0..count {
            let member = at + TYPE_LEN + number * 12;
            let (type_id, raw) = (self.word(member + 4)?, self.word(member + 8)?);
            let (offset, width) = if packed { (raw & 0x00ff_ffff, raw >> 24) } else { (raw, 0) };
            let found = self.name_at(member);
            if found == name {
                return Some((offset, width, type_id));
            }
            if found.is_empty()
                && let Some(inner) = self.resolve(type_id)
                && let Some((inside, width, type_id)) = self.member(inner, name, depth + 1)
            {
                return Some((offset + inside, width, type_id));
            }
        }
        None
    }

    /// Names and values of an enum, without the common prefix given; empty where this kernel has none such.
    pub fn enumerators(&self, name: &str, prefix: &str) -> Vec<(u32, String)> {
        let Some(at) = self.find(name).and_then(|id| self.at(id)) else { return Vec::new() };
        let Some((kind, count)) = self.kind_at(at) else { return Vec::new() };
        let step = if kind == kind::ENUM64 { 12 } else { 8 };
        (0..count)
            .filter_map(|number| {
                let item = at + TYPE_LEN + number * step;
                let text = String::from_utf8_lossy(self.name_at(item)).into_owned();
                Some((self.word(item + 4)?, text.strip_prefix(prefix).unwrap_or(&text).to_owned()))
            })
            .collect()
    }

    /// Whether the kernel has a function of this name that programs can be attached to.
    pub fn has_function(&self, name: &str) -> bool {
        self.types.iter().any(|at| {
            self.kind_at(*at).is_some_and(|(kind, _)| kind == kind::FUNC) && self.name_at(*at) == name.as_bytes()
        })
    }

    /// BTF in which every type has the id that it has here, and nothing but the typedefs and functions of these names says
    /// what it is.
    pub fn skeleton(&self, names: &[String]) -> Vec<u8> {
        /// A kind without further bytes, for what is left out.
        const FORWARD: u32 = 7;
        let mut strings = vec![0];
        let mut types = Vec::with_capacity(self.types.len() * TYPE_LEN);
        for at in self.types.iter().skip(1) {
            let kind = self.kind_at(*at).map_or(0, |(kind, _)| kind);
            let name = Some(self.name_at(*at)).filter(|_| matches!(kind, kind::TYPEDEF | kind::FUNC));
            let words = match name.filter(|name| names.iter().any(|wanted| wanted.as_bytes() == *name)) {
                Some(name) => {
                    let offset = strings.len() as u32;
                    strings.extend(name.iter().chain(&[0]));
                    [offset, kind << 24, 0]
                }
                None => [0, FORWARD << 24, 0],
            };
            types.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
        }
        let mut bytes = MAGIC.to_ne_bytes().to_vec();
        bytes.extend([1, 0]);
        let header = [HEADER_LEN, 0, types.len(), types.len(), strings.len()];
        bytes.extend(header.iter().flat_map(|word| (*word as u32).to_ne_bytes()));
        bytes.extend(types);
        bytes.extend(strings);
        bytes
    }

    /// How many arguments a tracepoint has; `None` where this kernel has no such tracepoint.
    pub fn tracepoint_arguments(&self, name: &str) -> Option<usize> {
        let id = self.find(&format!("btf_trace_{name}"))?;
        let pointer = self.resolve(id)?;
        if self.kind_at(pointer)?.0 != kind::POINTER {
            return None;
        }
        let (kind, count) = self.kind_at(self.resolve(self.word(pointer + 8)?)?)?;
        // The first is the tracepoint's own data.
        (kind == kind::FUNC_PROTO).then(|| count.saturating_sub(1))
    }
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

    #[test]
    fn reads_this_kernel() {
        let types = Types::from_file(Path::new(VMLINUX)).expect("this kernel has BTF");
        assert_eq!(types.place("sock", "__sk_common.skc_daddr").map(Place::byte), Some(0));
        let state = types.place("sock", "__sk_common.skc_state").expect("skc_state");
        let family = types.place("sock", "__sk_common.skc_family").expect("skc_family");
        assert_eq!(state.byte(), family.byte() + 2, "skc_state follows the 16-bit skc_family");
        assert!(types.place("sk_buff", "ip_summed").is_some_and(|place| place.width() == 2));
        assert!(types.place("sock", "no_such_member").is_none());
        assert!(types.place("no_such_struct", "x").is_none());
        assert_eq!(types.tracepoint_arguments("tcp_receive_reset"), Some(1));
        assert_eq!(types.tracepoint_arguments("no_such_tracepoint"), None);
        assert!(types.has_function("tcp_v4_send_reset") && !types.has_function("no_such_function"));
        assert!(!types.has_function("sock"), "a structure is no function");
        assert!(types.enumerators("skb_drop_reason", "SKB_DROP_REASON_").iter().any(|(_, name)| name == "NO_SOCKET"));
    }

    #[test]
    fn a_skeleton_keeps_ids_and_names() {
        let types = Types::from_file(Path::new(VMLINUX)).expect("this kernel has BTF");
        let names = ["btf_trace_tcp_receive_reset", "bpf_iter_task", "no_such_name"].map(str::to_owned);
        let skeleton = Types::parse(types.skeleton(&names)).expect("BTF");
        assert_eq!(skeleton.types.len(), types.types.len());
        let typedef = |types: &Types| types.find(&names[0]);
        assert!(typedef(&types).is_some());
        assert_eq!(typedef(&skeleton), typedef(&types));
        assert!(skeleton.has_function("bpf_iter_task") && !skeleton.has_function("tcp_v4_send_reset"));
        assert_eq!(skeleton.tracepoint_arguments("tcp_receive_reset"), None, "what it is a typedef of is left out");
    }

    #[test]
    fn refuses_what_is_cut_short_at_any_byte() {
        let whole = fs::read(VMLINUX).expect("this kernel has BTF");
        let lengths = (0..64).chain((64..whole.len()).step_by(whole.len() / 40)).filter(|length| *length < whole.len());
        for length in lengths {
            assert!(Types::parse(whole[..length].to_vec()).is_err(), "{length} bytes of BTF were taken for whole");
        }
    }

    #[test]
    fn survives_any_bytes() {
        let mut whole = fs::read(VMLINUX).expect("this kernel has BTF");
        whole.truncate(1 << 16);
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..200 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let at = (state >> 33) as usize % whole.len();
            whole[at] ^= (state >> 24) as u8;
            // Whatever it says, it returns.
            if let Ok(types) = Types::parse(whole.clone()) {
                let _place = types.place("sock", "__sk_common.skc_daddr");
            }
        }
    }
}
