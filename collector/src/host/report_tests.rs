//! The report on a host that has everything, and on hosts that lack something.

use std::{io, path::Path};

use super::*;
use crate::kernel::btf::BtfError;

fn hooks(missing: &[(&str, &str)]) -> Vec<Coverage> {
    let names = [
        ("inet_sock_set_state", "state before the reset", false),
        ("tcp_send_reset", "resets that TCP sends", true),
        ("tcp_receive_reset", "resets that a socket receives", true),
        ("kfree_skb", "resets received that no connection accepts", true),
        ("net_dev_queue", "resets that netfilter sends", true),
    ];
    let why = |hook: &str| missing.iter().find(|(name, _)| *name == hook).map(|(_, why)| (*why).to_owned());
    names
        .into_iter()
        .map(|(hook, sees, sees_resets)| Coverage { hook, sees, sees_resets, missing: why(hook) })
        .collect()
}

fn host() -> Host {
    Host {
        release: "6.18.44".to_owned(),
        btf: "/sys/kernel/btf/vmlinux".into(),
        difference: None,
        held: Held::default(),
        fences: Fences::default(),
        lockdown: None,
    }
}

fn report_of(hooks: &[Coverage], has_reasons: bool) -> Report {
    report(&host(), Ok(Attached { hooks, has_reasons }), None)
}

#[test]
fn a_host_that_has_everything() {
    let report = report_of(&hooks(&[]), true);
    assert!(report.is_complete(), "{report:?}");
    assert_eq!(report.start_up_line(), "every reset is seen that Linux 6.18.44 sends or receives");
    assert!(report.advice.is_empty());
    let text = report.text();
    assert!(!text.contains("NOT SEEN") && !text.contains("NO:"), "{text}");
    assert!(text.contains("seen through kfree_skb\n"), "{text}");
}

#[test]
fn each_missing_hook_shows_what_is_not_seen_and_why() {
    for (hook, rows) in [("tcp_send_reset", 3), ("tcp_receive_reset", 1), ("kfree_skb", 1), ("net_dev_queue", 1)] {
        let report = report_of(&hooks(&[(hook, "no such luck")]), true);
        assert!(!report.is_complete());
        let unseen: Vec<_> = report.resets.iter().filter(|sight| sight.missing.is_some()).collect();
        assert_eq!(unseen.len(), rows, "{hook}");
        for sight in unseen {
            assert_eq!(sight.missing.as_deref(), Some(format!("{hook}: no such luck").as_str()));
            assert_eq!(sight.hook, None);
        }
        let line = report.start_up_line();
        assert!(line.starts_with("not seen: ") && line.matches("no such luck").count() == 1, "{line}");
        assert!(report.text().contains(&format!("NOT SEEN: {hook}: no such luck")));
        assert_eq!(report.json()["resets"].as_array().map(Vec::len), Some(6));
    }
}

#[test]
fn a_hook_that_sees_no_resets_costs_knowledge_only() {
    let report = report_of(&hooks(&[("inet_sock_set_state", "not here")]), true);
    assert!(report.is_complete());
    assert!(report.text().contains("NO: not here"), "{}", report.text());
}

#[test]
fn before_6_10_what_has_no_socket_is_not_seen() {
    let report = report_of(&hooks(&[]), false);
    let unseen: Vec<_> = report.resets.iter().filter(|sight| sight.missing.is_some()).collect();
    assert_eq!(unseen.len(), 1);
    assert_eq!((unseen[0].direction, unseen[0].origin), ("transmit", "passive"));
    assert!(unseen[0].missing.as_ref().is_some_and(|why| why.contains("6.10")), "{unseen:?}");
}

#[test]
fn without_types_the_advice_names_the_release_and_the_option() {
    let missing = BtfError::Unreadable { path: "/none".into(), source: io::Error::from(io::ErrorKind::NotFound) };
    let report = report(&host(), Err(&KernelError::Btf(missing)), None);
    assert!(!report.is_complete());
    assert!(report.resets.is_empty());
    assert!(report.start_up_line().contains("/none"));
    let advice = report.advice.join("\n");
    assert!(advice.contains("Linux 6.18.44") && advice.contains("--btf FILE"), "{advice}");
    assert!(report.json()["failure"].is_string());
}

#[test]
fn a_failed_self_test_makes_the_report_incomplete_and_names_both_kernels() {
    let host = Host { difference: Some("X has the types of 5.10, and this kernel is 6.18.44".into()), ..host() };
    let failed = Err(SelfTestError::Misread { misread: vec!["local port 0 instead of 80".into()], difference: None });
    let hooks = hooks(&[]);
    let attached = Attached { hooks: &hooks, has_reasons: true };
    let bad = report(&host, Ok(attached), Some(&failed));
    assert!(!bad.is_complete());
    assert!(bad.text().contains("local port 0 instead of 80"), "{}", bad.text());
    assert!(bad.advice.iter().any(|line| line.contains("types of 5.10")), "{:?}", bad.advice);
    let good = report(&host, Ok(attached), Some(&Ok(Outcome::Passed { resets: 8 })));
    assert!(good.is_complete() && good.advice.is_empty(), "{good:?}");
}

#[test]
fn lockdown_is_on_only_where_the_brackets_say_so() {
    for (text, mode) in [
        ("[none] integrity confidentiality\n", None),
        ("none [integrity] confidentiality\n", Some("integrity")),
        ("none integrity [confidentiality]\n", Some("confidentiality")),
        ("", None),
        ("[", None),
    ] {
        assert_eq!(lockdown_mode(text).as_deref(), mode, "{text:?}");
    }
    let locked = Host { lockdown: Some("confidentiality".into()), ..host() };
    assert!(report(&locked, Err(&KernelError::NoHook(String::new())), None).advice[0].contains("locked down"));
}

#[test]
fn a_refusal_is_one_message() {
    let denied = KernelError::Load("map error: Operation not permitted (os error 1)".into());
    let nobody = Host { held: Held::from_status("CapEff:\t0000000000000000\n"), ..host() };
    let text = refusal(&nobody, &denied);
    assert!(text.contains("CAP_BPF and CAP_PERFMON") && text.contains("--cap-add BPF"), "{text}");
    assert!(!text.contains('\n') && !text.contains("SYS_PTRACE"), "{text}");
    // With every capability the kernel's own words stand.
    let text = refusal(&host(), &denied);
    assert!(text.contains("map error: Operation not permitted"), "{text}");
    let missing = BtfError::Unreadable { path: "/none".into(), source: io::Error::from(io::ErrorKind::NotFound) };
    let text = refusal(&nobody, &KernelError::Btf(missing));
    assert!(text.contains("/none") && text.contains("--btf FILE") && text.contains("CAP_BPF"), "{text}");
}

#[test]
fn what_a_container_lacks_is_said_with_how_to_give_it() {
    let hardened = |fences| Host { fences, ..host() };
    let denied = KernelError::Load("map error: Operation not permitted (os error 1)".into());
    let filtered = hardened(Fences { has_seccomp_filter: true, ..Fences::default() });
    assert!(refusal(&filtered, &denied).contains("seccompProfile"));
    let nobody = Host { held: Held::from_status("CapEff:\t0000000000000000\n"), ..filtered };
    assert!(!refusal(&nobody, &denied).contains("seccomp"), "the capability is what is missing");

    let missing = || BtfError::Unreadable { path: "/none".into(), source: io::Error::from(io::ErrorKind::NotFound) };
    let bare = hardened(Fences { lacks_sysfs: true, ..Fences::default() });
    let text = refusal(&bare, &KernelError::Btf(missing()));
    assert!(text.contains("mount the host's") && !text.contains("--btf FILE"), "{text}");

    assert!(less_known(&host()).is_empty());
    let fenced = Fences { in_pid_namespace: true, apparmor: Some("docker-default".into()), ..Fences::default() };
    let text = less_known(&hardened(fenced)).join("\n");
    for word in ["--pid host", "hostPID: true", "docker-default", "apparmor=unconfined"] {
        assert!(text.contains(word), "{word} in {text}");
    }
}

#[test]
fn a_kernel_that_is_too_old_is_called_so() {
    for (release, old) in [("4.19.0-27-amd64", true), ("5.4.0-150-generic", true), ("5.8.0", false), ("6.18.44", false)]
    {
        let host = Host { release: release.to_owned(), ..host() };
        let text = refusal(&host, &KernelError::Load("Invalid argument (os error 22)".into()));
        assert_eq!(text.contains("too old"), old, "{text}");
        assert!(text.contains("os error 22"), "{text}");
    }
    assert!(!is_too_old("custom"));
}

#[test]
fn reads_this_host() {
    let host = Host::read(Path::new(crate::kernel::KERNEL_BTF));
    assert!(!host.release.is_empty());
    assert_eq!(host.difference, None);
}
