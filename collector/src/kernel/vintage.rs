//! The Linux release of a file of kernel types, judged by its features: the types do not name a version.
//!
//! Only for messages: whether types fit is shown by [`crate::host::selftest`], never by a version.

use std::{fs, path::Path};

use crate::kernel::{
    KERNEL_BTF,
    btf::{BtfError, Types},
};

/// An enumerator of the kernel's interface for eBPF (include/uapi/linux/bpf.h, include/net/rstreason.h), and the
/// release that first has it; oldest first.
const MARKS: &[(&str, &str, &str)] = &[
    ("5.8", "bpf_func_id", "BPF_FUNC_ringbuf_output"),
    ("5.10", "bpf_func_id", "BPF_FUNC_redirect_peer"),
    ("5.11", "bpf_func_id", "BPF_FUNC_sock_from_file"),
    ("5.12", "bpf_func_id", "BPF_FUNC_check_mtu"),
    ("5.13", "bpf_func_id", "BPF_FUNC_for_each_map_elem"),
    ("5.14", "bpf_func_id", "BPF_FUNC_sys_bpf"),
    ("5.15", "bpf_func_id", "BPF_FUNC_timer_init"),
    ("5.16", "bpf_func_id", "BPF_FUNC_trace_vprintk"),
    ("5.17", "bpf_func_id", "BPF_FUNC_find_vma"),
    ("5.18", "bpf_func_id", "BPF_FUNC_skb_set_tstamp"),
    ("5.19", "bpf_func_id", "BPF_FUNC_kptr_xchg"),
    ("6.0", "bpf_func_id", "BPF_FUNC_tcp_raw_gen_syncookie_ipv4"),
    ("6.1", "bpf_func_id", "BPF_FUNC_user_ringbuf_drain"),
    ("6.2", "bpf_func_id", "BPF_FUNC_cgrp_storage_get"),
    ("6.4", "bpf_attach_type", "BPF_NETFILTER"),
    ("6.6", "bpf_attach_type", "BPF_TCX_INGRESS"),
    ("6.7", "bpf_attach_type", "BPF_NETKIT_PRIMARY"),
    ("6.9", "bpf_map_type", "BPF_MAP_TYPE_ARENA"),
    ("6.10", "bpf_attach_type", "BPF_TRACE_KPROBE_SESSION"),
    ("6.12", "sk_rst_reason", "SK_RST_REASON_TCP_ABORT_ON_CLOSE"),
    ("6.13", "bpf_attach_type", "BPF_TRACE_UPROBE_SESSION"),
];

/// The newest release whose features these types have: they are of this release or a later one. Distributions carry
/// features back, so theirs may read newer than they are called. `None` before 5.8, or where they are not a kernel's.
pub fn newest_feature(types: &Types) -> Option<&'static str> {
    MARKS
        .iter()
        .rev()
        .find(|(_, enumeration, mark)| types.enumerators(enumeration, "").iter().any(|(_, name)| name == mark))
        .map(|(release, _, _)| *release)
}

/// The running kernel's release, as `uname -r` says.
pub fn running() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// A file of kernel types against the running kernel's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BtfMatch {
    /// The running kernel's own file, or the same bytes.
    Own,
    /// Other bytes than the running kernel's own types.
    Other,
    /// The running kernel has no types of its own to compare with.
    Unknown,
}

/// Compares a file with the running kernel's own types.
///
/// # Errors
/// The file cannot be read.
pub fn btf_match(file: &Path) -> Result<BtfMatch, BtfError> {
    let own = Path::new(KERNEL_BTF);
    if file == own {
        return Ok(BtfMatch::Own);
    }
    let unreadable = |source| BtfError::Unreadable { path: file.display().to_string(), source };
    let given = fs::read(file).map_err(unreadable)?;
    Ok(match fs::read(own) {
        Ok(bytes) if bytes == given => BtfMatch::Own,
        Ok(_) => BtfMatch::Other,
        Err(_) => BtfMatch::Unknown,
    })
}

/// Names both kernels, and what to do, where a file's types may not be the running kernel's; `None` where they are its
/// own.
pub fn difference(file: &Path) -> Option<String> {
    let btf_match = btf_match(file).ok().filter(|btf_match| *btf_match != BtfMatch::Own)?;
    let types = Types::from_file(file).ok()?;
    let release = newest_feature(&types)
        .map_or_else(|| "no Linux since 5.8".to_owned(), |release| format!("Linux {release} or later"));
    let advice = match btf_match {
        BtfMatch::Other => format!("this kernel's own types are in {KERNEL_BTF}: leave the file out"),
        _ => "take the file that was made for exactly this release".to_owned(),
    };
    Some(format!("{} has the types of {release}, and this kernel is Linux {}; {advice}", file.display(), running()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(release: &str) -> (u32, u32) {
        let mut parts = release.split(['.', '-']).map(|part| part.parse().expect("a number"));
        (parts.next().expect("major"), parts.next().expect("minor"))
    }

    #[test]
    fn this_kernels_features_are_not_newer_than_itself() {
        let types = Types::from_file(Path::new(KERNEL_BTF)).expect("this kernel has BTF");
        let newest = newest_feature(&types).expect("newer than 5.8");
        assert!(number(newest) <= number(&running()), "{newest} on {}", running());
        // And every older feature is there too: no mark is misspelt.
        let missing: Vec<_> = MARKS
            .iter()
            .filter(|(release, ..)| number(release) <= number(&running()))
            .filter(|(_, enumeration, mark)| !types.enumerators(enumeration, "").iter().any(|(_, name)| name == mark))
            .collect();
        assert!(missing.is_empty(), "{missing:?}");
    }

    #[test]
    fn names_both_kernels_only_where_they_differ() {
        assert_eq!(difference(Path::new(KERNEL_BTF)), None);
        let directory = tempfile::tempdir().expect("a directory");
        let copy = directory.path().join("copy");
        let mut bytes = fs::read(KERNEL_BTF).expect("this kernel has BTF");
        fs::write(&copy, &bytes).expect("written");
        assert_eq!(difference(&copy), None);
        bytes.push(0);
        fs::write(&copy, &bytes).expect("written");
        let text = difference(&copy).expect("differs");
        assert!(
            text.contains(&running()) && text.contains("or later") && text.contains("leave the file out"),
            "{text}"
        );
    }
}
