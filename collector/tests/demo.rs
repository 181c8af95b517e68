//! The demo and the self-test on this kernel: as root, in network namespaces of their own.

mod skip;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use reset_collector::{
    app::demo::{self, Options},
    config::settings::Console,
    host::{
        report,
        selftest::{self, Outcome, SelfTestError},
    },
    kernel::{KERNEL_BTF, Kernel, btf::Types},
    model::resource::Resource,
    model::{Decoder, reason::ReasonNames},
};

use skip::skip;

const RING_BUFFER_BYTES: u32 = 1 << 20;

#[test]
#[ignore = "needs root: run by `make e2e`"]
fn every_reset_that_the_demo_makes_is_seen_with_its_cause() {
    let options = Options {
        btf: KERNEL_BTF.into(),
        ring_buffer_bytes: RING_BUFFER_BYTES,
        console: Console::Json,
        idle_command: vec!["sleep".into(), "60".into()],
    };
    let (mut lines, mut table) = (Vec::new(), Vec::new());
    let outcome = demo::run(&options, &mut lines, &mut table).expect("the demo runs");
    let table = String::from_utf8(table).expect("text");
    assert!(outcome.is_success(), "{table}");
    // What would touch the whole host. What else was not made says why, and must be made in CI.
    let not_made = table.lines().filter(|line| line.contains("not made: "));
    let lacking: Vec<_> = not_made.filter(|line| !line.contains("out_of_memory")).collect();
    lacking.iter().for_each(|line| skip(line));
    let lines: Vec<serde_json::Value> = String::from_utf8(lines)
        .expect("text")
        .lines()
        .map(|line| serde_json::from_str(line).expect("a line of JSON"))
        .collect();
    assert_eq!(lines.len(), outcome.right, "a line for each reset, and no other");
    assert!(outcome.right + lacking.len() >= 50, "{table}");
}

fn self_test(btf: &Path) -> Result<Outcome, SelfTestError> {
    let mut kernel = Kernel::attach(btf, RING_BUFFER_BYTES, |_| true).expect("attached");
    let reasons = kernel.reasons().clone();
    let decoder = Decoder::new(ReasonNames::new(reasons.reset, reasons.drop), Resource::new(Vec::new()));
    let begun = Instant::now();
    let outcome = selftest::run(&mut kernel, &decoder, btf, Path::new("/proc"), |_| ());
    eprintln!("self-test took {:?}", begun.elapsed());
    outcome
}

#[test]
#[ignore = "needs root: run by `make e2e`"]
fn the_self_test_passes_with_the_kernels_own_types() {
    assert_eq!(self_test(Path::new(KERNEL_BTF)).expect("nothing is misread"), Outcome::Passed { resets: 8 });
}

/// The kernel's own types with a member moved to where another of its kind lies: what the verifier lets pass.
fn moved(structure: &str, member: &str, to: &str, directory: &Path) -> PathBuf {
    let types = Types::from_file(Path::new(KERNEL_BTF)).expect("this kernel has BTF");
    let byte = |path: &str| types.place(structure, path).expect("a member").byte() as isize;
    let by_bits = (byte(to) - byte(member)) * 8;
    let member = member.rsplit('.').next().expect("a name");
    let mut bytes = fs::read(KERNEL_BTF).expect("this kernel has BTF");
    let word = |bytes: &[u8], at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes")) as usize;
    let header = word(&bytes, 4);
    let (types, types_len) = (header + word(&bytes, 8), word(&bytes, 12));
    let strings = header + word(&bytes, 16);
    let name = [b"\0", member.as_bytes(), b"\0"].concat();
    let offset =
        bytes[strings..].windows(name.len()).position(|window| window == name).expect("a member of this name") + 1;
    // A struct's member is its name, its type and its offset in bits.
    let mut found = 0;
    for at in (types..types + types_len - 8).step_by(4) {
        let bits = word(&bytes, at + 8);
        if word(&bytes, at) == offset && bits < 1 << 20 && bits % 8 == 0 {
            let elsewhere = bits.saturating_add_signed(by_bits) as u32;
            bytes[at + 8..at + 12].copy_from_slice(&elsewhere.to_ne_bytes());
            found += 1;
        }
    }
    assert!(found > 0, "no member {member}");
    let path = directory.join(member);
    fs::write(&path, bytes).expect("written");
    path
}

#[test]
#[ignore = "needs root: run by `make e2e`"]
fn the_self_test_finds_types_of_another_kernel() {
    let directory = tempfile::tempdir().expect("a directory");
    for (structure, member, to, said) in [
        ("inet_sock", "inet_sport", "uc_ttl", "local port"),
        ("sock", "__sk_common.skc_dport", "__sk_common.skc_num", "peer port"),
        ("sock", "__sk_common.skc_daddr", "__sk_common.skc_rcv_saddr", "peer address"),
        ("tcp_sock", "bytes_sent", "bytes_received", "bytes sent"),
        ("task_struct", "tgid", "pid", "owner"),
    ] {
        let error = self_test(&moved(structure, member, to, directory.path())).expect_err(member);
        let text = error.to_string();
        assert!(text.contains(said), "{member}: {text}");
        assert!(text.contains("leave the file out"), "both kernels are named: {text}");
    }
}

#[test]
#[ignore = "needs root: run by `make e2e`"]
fn this_host_is_covered() {
    let btf = Path::new(KERNEL_BTF);
    let kernel = Kernel::attach(btf, RING_BUFFER_BYTES, |_| true).expect("attached");
    let report = report::examine(btf);
    let text = report.text();
    assert!(report.is_complete(), "{text}");
    for hook in kernel.coverage() {
        assert!(text.contains(hook.hook), "{} is not in the report:\n{text}", hook.hook);
    }
    assert!(text.contains("Self-test passed: 8 resets"), "{text}");
}
