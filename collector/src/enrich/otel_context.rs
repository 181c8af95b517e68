//! The resource that a process publishes for readers outside of it: OpenTelemetry's process context (OTEP 4719).
//!
//! A mapping named `OTEL_CTX` starts with a header that points at a protobuf message somewhere in the process's memory.
//! All of it is the process's own claim and may change or lie at any time: it is copied, bounded and checked.
//!
//! A read of another process's memory waits for whatever backs the page: of a file on FUSE for as long as the process that
//! serves it likes, and no signal ends that. So only mappings that `/proc/PID/maps` shows as anonymous or as a memfd are
//! read, the header and the message both. A process that replaces such a mapping at the very moment can still make the
//! read hang; it then costs one of the few threads that read contexts ([`crate::enrich::reader_thread`]).

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    ops::Range,
    os::unix::fs::FileExt,
    sync::OnceLock,
};

use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, KeyValue, any_value},
    resource::v1::Resource,
};
use prost::Message;

use crate::enrich::{
    ResourceValue,
    environ::{MAX_KEY, MAX_VALUE},
};
use crate::text::sanitize;

/// Length of the header: signature, version, size, time of publication, pointer.
const HEADER_LEN: usize = 32;
const SIGNATURE: &[u8; 8] = b"OTEL_CTX";
/// The version of the header that the OTEP settled on.
const VERSION: u32 = 2;
/// Longest message accepted; the profiler of OpenTelemetry accepts as much.
const MAX_PAYLOAD: u32 = 64 << 10;
/// Reads of one mapping until its writer leaves it alone.
const MAX_ATTEMPTS: usize = 3;
/// Mappings of that name that are looked at; there should be one.
const MAX_MAPPINGS: usize = 4;
/// Bytes of `/proc/PID/maps` that are read; some 150,000 mappings, beyond the kernel's default of 65,530.
const MAX_MAPS: u64 = 16 << 20;
/// Longest line of it that is kept: a path has 4,096 bytes at most.
const MAX_LINE: u64 = 8 << 10;
/// Attributes taken from a context, and elements of a list.
const MAX_ATTRIBUTES: usize = 128;

/// Why a published context was not taken.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// The memory could not be read, or not where the header points.
    #[error("the published context could not be read: {0}")]
    Read(#[from] io::Error),
    /// Not `OTEL_CTX`, or another version.
    #[error("not a process context of version {VERSION}")]
    Foreign,
    /// The message is empty or larger than accepted.
    #[error("a message of {0} bytes; 1 to {MAX_PAYLOAD} are accepted")]
    Size(u32),
    /// The header points to memory that is not readable, or that a file system may have to serve.
    #[error("the header points out of the process's own memory")]
    Unsafe,
    /// The process was changing it whenever it was read.
    #[error("changing while read, {MAX_ATTEMPTS} times")]
    Changing,
    /// The message is no resource.
    #[error("the message is no resource: {0}")]
    Malformed(#[from] prost::DecodeError),
}

/// The message in the mapping: OTEP 4719, `opentelemetry.proto.processcontext.v1development.ProcessContext`. Its second
/// field, attributes that are not the resource's, is not read.
#[derive(Clone, PartialEq, Message)]
struct ProcessContext {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
}

/// The attributes that a process publishes, `None` where it publishes none; the error is the last mapping's when none of
/// them could be taken. `maps` opens `/proc/PID/maps`; `memory` is `/proc/PID/mem`, which stays bound to the memory that the
/// process had when it was opened, whatever becomes of the pid.
pub fn read<R: Read>(
    maps: impl Fn() -> io::Result<R>,
    memory: &File,
) -> Result<Option<Vec<(String, ResourceValue)>>, ContextError> {
    let mut error = None;
    for mapping in context_mappings(maps()?)? {
        match read_mapping(&maps, memory, &mapping) {
            Ok(payload) => match decode(&payload) {
                Ok(attributes) => return Ok(Some(attributes)),
                Err(malformed) => error = Some(malformed.into()),
            },
            Err(refused) => error = Some(refused),
        }
    }
    error.map_or(Ok(None), Err)
}

/// Calls with each line of a mapping table until it returns `false`.
fn for_each_line(maps: impl Read, mut visitor: impl FnMut(&[u8]) -> bool) -> io::Result<()> {
    let mut maps = BufReader::with_capacity(64 << 10, maps.take(MAX_MAPS));
    let mut line = Vec::new();
    loop {
        line.clear();
        if maps.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)? == 0 || !visitor(&line) {
            return Ok(());
        }
    }
}

/// The mappings named OTEL_CTX in the text of `/proc/PID/maps`.
fn context_mappings(maps: impl Read) -> io::Result<Vec<Range<u64>>> {
    let mut found = Vec::new();
    for_each_line(maps, |line| {
        found.extend(context_mapping(line));
        found.len() < MAX_MAPPINGS
    })?;
    Ok(found)
}

/// Whether one readable mapping that no file system serves holds all of these addresses.
fn is_safe(maps: impl Read, wanted: &Range<u64>) -> io::Result<bool> {
    let mut safe = false;
    for_each_line(maps, |line| {
        let found = std::str::from_utf8(line).ok().and_then(Mapping::parse);
        safe = found.is_some_and(|mapping| {
            mapping.is_safe() && mapping.range.start <= wanted.start && wanted.end <= mapping.range.end
        });
        !safe
    })?;
    Ok(safe)
}

/// The addresses of a mapping if its line names it OTEL_CTX: by memfd_create, by prctl, or by both.
fn context_mapping(line: &[u8]) -> Option<Range<u64>> {
    // Most lines of most processes end here.
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let line = line.strip_suffix(b" (deleted)").unwrap_or(line);
    if !line.ends_with(b"OTEL_CTX") && !line.ends_with(b"OTEL_CTX]") {
        return None;
    }
    let mapping = Mapping::parse(std::str::from_utf8(line).ok()?)?;
    let named = matches!(mapping.name, "[anon:OTEL_CTX]" | "[anon_shmem:OTEL_CTX]" | "/memfd:OTEL_CTX");
    let holds_header = mapping.range.end.checked_sub(mapping.range.start)? >= HEADER_LEN as u64;
    (named && holds_header && !mapping.permissions.contains('x') && mapping.is_safe()).then_some(mapping.range)
}

/// A line of `/proc/PID/maps`.
struct Mapping<'a> {
    range: Range<u64>,
    permissions: &'a str,
    device: &'a str,
    inode: u64,
    name: &'a str,
}

impl<'a> Mapping<'a> {
    /// `None` also where the name has a space, which no name that matters has.
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split_ascii_whitespace();
        let (range, permissions, _offset, device) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let (start, end) = range.split_once('-')?;
        let range = u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?;
        let (inode, name) = (fields.next()?.parse().ok()?, fields.next().unwrap_or_default());
        fields.next().is_none().then_some(Self { range, permissions, device, inode, name })
    }

    /// Readable, and backed by memory alone: anonymous, or of the kernel's own tmpfs, where memfds are. The name is no
    /// proof: a file can have any.
    fn is_safe(&self) -> bool {
        let anonymous = self.device == "00:00" && self.inode == 0;
        self.permissions.starts_with('r') && (anonymous || Some(self.device) == memfd_device())
    }
}

/// The device of the kernel's own tmpfs, as in `/proc/PID/maps`.
fn memfd_device() -> Option<&'static str> {
    static DEVICE: OnceLock<Option<String>> = OnceLock::new();
    let find = || {
        let memfd = rustix::fs::memfd_create("device", rustix::fs::MemfdFlags::CLOEXEC).ok()?;
        let device = rustix::fs::fstat(&memfd).ok()?.st_dev;
        Some(format!("{:02x}:{:02x}", rustix::fs::major(device), rustix::fs::minor(device)))
    };
    DEVICE.get_or_init(find).as_deref()
}

/// The message of one mapping, whole: read between two equal headers.
fn read_mapping<R: Read>(
    maps: impl Fn() -> io::Result<R>,
    memory: &File,
    mapping: &Range<u64>,
) -> Result<Vec<u8>, ContextError> {
    let address = mapping.start;
    for _ in 0..MAX_ATTEMPTS {
        let mut before = [0; HEADER_LEN];
        memory.read_exact_at(&mut before, address)?;
        let header = Header::parse(&before).ok_or(ContextError::Foreign)?;
        if header.published_ns == 0 {
            continue; // being written
        }
        let payload = read_payload(&maps, memory, mapping, &header);
        let mut after = [0; HEADER_LEN];
        memory.read_exact_at(&mut after, address)?;
        if after == before {
            // Only now is a bad size or pointer what the process published, and not half of a change.
            return payload;
        }
    }
    Err(ContextError::Changing)
}

fn read_payload<R: Read>(
    maps: impl Fn() -> io::Result<R>,
    memory: &File,
    mapping: &Range<u64>,
    header: &Header,
) -> Result<Vec<u8>, ContextError> {
    if !(1..=MAX_PAYLOAD).contains(&header.size) {
        return Err(ContextError::Size(header.size));
    }
    let end = header.payload.checked_add(header.size.into()).ok_or(ContextError::Unsafe)?;
    let wanted = header.payload..end;
    let beside_header = mapping.start <= wanted.start && wanted.end <= mapping.end;
    if !beside_header && !is_safe(maps()?, &wanted)? {
        return Err(ContextError::Unsafe);
    }
    let mut payload = vec![0; header.size as usize];
    memory.read_exact_at(&mut payload, header.payload)?;
    Ok(payload)
}

struct Header {
    size: u32,
    published_ns: u64,
    payload: u64,
}

impl Header {
    /// `None` when it is no header of this version.
    fn parse(bytes: &[u8; HEADER_LEN]) -> Option<Self> {
        let (signature, rest) = bytes.split_first_chunk::<8>()?;
        let (version, rest) = rest.split_first_chunk::<4>()?;
        let (size, rest) = rest.split_first_chunk::<4>()?;
        let (published_ns, rest) = rest.split_first_chunk::<8>()?;
        let payload = rest.first_chunk::<8>()?;
        (signature == SIGNATURE && u32::from_ne_bytes(*version) == VERSION).then_some(Self {
            size: u32::from_ne_bytes(*size),
            published_ns: u64::from_ne_bytes(*published_ns),
            payload: u64::from_ne_bytes(*payload),
        })
    }
}

/// The attributes of a message. Publishers from before the OTEP was final put a bare resource there, under the same
/// version; neither form reads as the other.
fn decode(payload: &[u8]) -> Result<Vec<(String, ResourceValue)>, prost::DecodeError> {
    let resource = match ProcessContext::decode(payload) {
        Ok(context) => context.resource.unwrap_or_default(),
        Err(error) => Resource::decode(payload).map_err(|_| error)?,
    };
    Ok(resource.attributes.into_iter().take(MAX_ATTRIBUTES).filter_map(attribute).collect())
}

fn attribute(pair: KeyValue) -> Option<(String, ResourceValue)> {
    let value = match pair.value?.value? {
        any_value::Value::IntValue(number) => ResourceValue::Integer(number),
        any_value::Value::ArrayValue(array) => {
            ResourceValue::List(array.values.into_iter().take(MAX_ATTRIBUTES).map(text).collect::<Option<_>>()?)
        }
        other => ResourceValue::Text(text(AnyValue { value: Some(other) })?),
    };
    let key = sanitize(pair.key.as_bytes(), MAX_KEY);
    (!key.is_empty()).then_some((key, value))
}

/// A single value as text; `None` for bytes, maps and lists of lists, which a resource has no use for.
fn text(value: AnyValue) -> Option<String> {
    Some(match value.value? {
        any_value::Value::StringValue(text) => sanitize(text.as_bytes(), MAX_VALUE),
        any_value::Value::BoolValue(truth) => truth.to_string(),
        any_value::Value::IntValue(number) => number.to_string(),
        any_value::Value::DoubleValue(number) => number.to_string(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicBool, Ordering},
        thread,
    };

    use opentelemetry_proto::tonic::common::v1::ArrayValue;

    use super::*;

    const AT: u64 = 0x1000;
    const PAYLOAD_AT: u64 = 0x3000;
    const MAPS: &str = "00001000-00002000 rw-p 00000000 00:00 0    [anon:OTEL_CTX]\n\
        00003000-00014000 rw-p 00000000 00:00 0    [heap]\n00020000-00030000 rw-p 00000000 00:31 7   /mnt/file\n\
        00030000-00031000 ---p 00000000 00:00 0\n";

    fn pair(key: &str, value: any_value::Value) -> KeyValue {
        KeyValue { key: key.into(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
    }

    fn text_value(text: &str) -> any_value::Value {
        any_value::Value::StringValue(text.into())
    }

    fn resource(attributes: Vec<KeyValue>) -> Resource {
        Resource { attributes, ..Resource::default() }
    }

    fn header(version: u32, size: u32, published_ns: u64, payload: u64) -> Vec<u8> {
        let fields =
            [&version.to_ne_bytes()[..], &size.to_ne_bytes(), &published_ns.to_ne_bytes(), &payload.to_ne_bytes()];
        [&SIGNATURE[..], &fields.concat()].concat()
    }

    /// A file that is read as a process's memory is: at addresses.
    fn memory(header: &[u8], payload: &[u8]) -> File {
        let descriptor = rustix::fs::memfd_create("memory", rustix::fs::MemfdFlags::CLOEXEC).expect("memfd_create");
        let file = File::from(descriptor);
        file.write_all_at(header, AT).expect("write");
        file.write_all_at(payload, PAYLOAD_AT).expect("write");
        file
    }

    fn read_from(memory: &File) -> Result<Option<Vec<(String, ResourceValue)>>, ContextError> {
        read(|| Ok(MAPS.as_bytes()), memory)
    }

    #[test]
    fn both_forms_of_the_message_are_read() {
        let list = ArrayValue {
            values: vec![
                AnyValue { value: Some(text_value("a")) },
                AnyValue { value: Some(any_value::Value::IntValue(2)) },
            ],
        };
        let attributes = vec![
            pair("service.name", text_value("shop")),
            pair("port", any_value::Value::IntValue(-7)),
            pair("list", any_value::Value::ArrayValue(list)),
            pair("canary", any_value::Value::BoolValue(true)),
            pair("ratio", any_value::Value::DoubleValue(0.5)),
            pair("line", text_value("a\nb")),
            pair("bytes", any_value::Value::BytesValue(vec![1])),
            pair("", text_value("nameless")),
        ];
        let expected = vec![
            ("service.name".to_owned(), ResourceValue::Text("shop".into())),
            ("port".to_owned(), ResourceValue::Integer(-7)),
            ("list".to_owned(), ResourceValue::List(vec!["a".into(), "2".into()])),
            ("canary".to_owned(), ResourceValue::Text("true".into())),
            ("ratio".to_owned(), ResourceValue::Text("0.5".into())),
            ("line".to_owned(), ResourceValue::Text("a\\nb".into())),
        ];
        let bare = resource(attributes);
        let mut wrapped = ProcessContext { resource: Some(bare.clone()) }.encode_to_vec();
        // Field 2: what the publisher shares beside the resource.
        let extra = pair("threadlocal.schema_version", text_value("tlsdesc_v1_dev")).encode_to_vec();
        wrapped.extend([0x12, u8::try_from(extra.len()).expect("short")]);
        wrapped.extend(extra);
        for payload in [wrapped, bare.encode_to_vec()] {
            let size = u32::try_from(payload.len()).expect("short");
            let found = read_from(&memory(&header(2, size, 1, PAYLOAD_AT), &payload)).expect("readable");
            assert_eq!(found, Some(expected.clone()));
        }
    }

    #[test]
    fn lying_mappings_are_refused() {
        let payload = ProcessContext { resource: Some(resource(vec![pair("a", text_value("b"))])) }.encode_to_vec();
        let size = u32::try_from(payload.len()).expect("short");
        let refusal = |header: &[u8], payload: &[u8]| read_from(&memory(header, payload)).expect_err("refused");
        assert!(matches!(refusal(&header(2, size, 1, 1 << 40), &payload), ContextError::Unsafe));
        assert!(matches!(refusal(&header(2, size, 1, u64::MAX - 3), &payload), ContextError::Unsafe));
        for (at, what) in [(0x20_000, "a file"), (0x13_fff, "out of a mapping"), (0x30_000, "not readable")] {
            assert!(matches!(refusal(&header(2, size, 1, at), &payload), ContextError::Unsafe), "{what}");
        }
        assert!(matches!(refusal(&header(2, u32::MAX, 1, PAYLOAD_AT), &payload), ContextError::Size(u32::MAX)));
        assert!(matches!(refusal(&header(2, 0, 1, PAYLOAD_AT), &payload), ContextError::Size(0)));
        assert!(matches!(refusal(&header(2, MAX_PAYLOAD + 1, 1, PAYLOAD_AT), &payload), ContextError::Size(_)));
        assert!(matches!(refusal(&header(1, size, 1, PAYLOAD_AT), &payload), ContextError::Foreign));
        assert!(matches!(refusal(&header(2, size, 0, PAYLOAD_AT), &payload), ContextError::Changing));
        assert!(matches!(refusal(b"OTEL_CTY", &payload), ContextError::Foreign));
        assert!(matches!(refusal(&header(2, 64, 1, PAYLOAD_AT), &[0xff; 64]), ContextError::Malformed(_)));
        // A message nested without end.
        let deep = b"\x0a\x7f".repeat(2000);
        assert!(matches!(refusal(&header(2, 4000, 1, PAYLOAD_AT), &deep), ContextError::Malformed(_)));
    }

    #[test]
    fn a_context_that_changes_is_read_whole_or_not_at_all() {
        let payload = |name: &str| {
            ProcessContext { resource: Some(resource(vec![pair("service.name", text_value(name))])) }.encode_to_vec()
        };
        let (first, second) = (payload(&"a".repeat(3000)), payload(&"b".repeat(3000)));
        let size = u32::try_from(first.len()).expect("short");
        let memory = memory(&header(2, size, 1, PAYLOAD_AT), &first);
        let writer = memory.try_clone().expect("clone");
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                for round in 2.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    // As the OTEP's writer does it: the time goes to 0 first and comes back last.
                    writer.write_all_at(&0_u64.to_ne_bytes(), AT + 16).expect("write");
                    writer.write_all_at(if round % 2 == 0 { &second } else { &first }, PAYLOAD_AT).expect("write");
                    writer.write_all_at(&u64::to_ne_bytes(round), AT + 16).expect("write");
                }
            });
            for _ in 0..2000 {
                match read_from(&memory) {
                    Ok(Some(attributes)) => {
                        let ResourceValue::Text(name) = &attributes[0].1 else { panic!("{attributes:?}") };
                        assert!(name.bytes().all(|byte| byte == name.as_bytes()[0]), "torn");
                    }
                    Ok(None) => panic!("the mapping was there"),
                    Err(error) => assert!(matches!(error, ContextError::Changing), "{error}"),
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
    }

    #[test]
    fn mappings_by_name() {
        let memfd = memfd_device().expect("memfd_create");
        let table = [
            ("7f00-8f00 rw-p 00000000 00:00 0   [anon:OTEL_CTX]", Some(0x7f00)),
            // A file of any name, whose file system is a process.
            ("7f00-8f00 rw-s 00000000 00:fe 12   /memfd:OTEL_CTX (deleted)", None),
            ("7f00-8f00 rw-p 00000000 00:fe 12   [anon:OTEL_CTX]", None),
            ("7f00-8f00 rw-s 00000000 00:01 12   /memfd:OTEL_CTX (deleted)", Some(0x7f00)),
            ("7f00-8f00 rw-p 00000000 00:01 12   [anon_shmem:OTEL_CTX]", Some(0x7f00)),
            ("7f00-8f00 r--p 00000000 00:00 0   [anon:OTEL_CTX]", Some(0x7f00)),
            ("7f00-8f00 r-xp 00000000 00:00 0   [anon:OTEL_CTX]", None),
            ("7f00-8f00 ---p 00000000 00:00 0   [anon:OTEL_CTX]", None),
            ("7f00-7f10 rw-p 00000000 00:00 0   [anon:OTEL_CTX]", None),
            ("8f00-7f00 rw-p 00000000 00:00 0   [anon:OTEL_CTX]", None),
            ("7f00-8f00 rw-p 00000000 00:01 12   /memfd:OTEL_CTX_OLD (deleted)", None),
            ("7f00-8f00 rw-p 00000000 08:01 12   /tmp/ /memfd:OTEL_CTX", None),
            ("7f00-8f00 rw-p 00000000 08:01 12   /tmp/OTEL_CTX", None),
            ("zz-8f00 rw-p 00000000 00:00 0   [anon:OTEL_CTX]", None),
            ("[anon:OTEL_CTX]", None),
            ("", None),
        ];
        for (line, expected) in table {
            let line = line.replace("00:01", memfd);
            let found = context_mapping(line.as_bytes()).map(|range| range.start);
            assert_eq!(found, expected, "{line}");
        }
        let long = format!("7f00-8f00 rw-p 00000000 08:01 12 /{}\n", "x".repeat(1 << 20));
        let maps = [long.as_bytes(), MAPS.as_bytes(), &MAPS.as_bytes().repeat(100)].concat();
        let context: Vec<_> = (0..MAX_MAPPINGS).map(|_| AT..AT + 0x1000).collect();
        assert_eq!(context_mappings(maps.as_slice()).expect("readable"), context);
        assert!(context_mappings(io::repeat(b'x')).expect("bounded").is_empty());
    }
}
