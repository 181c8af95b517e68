//! The hooks: which programs each needs on a kernel with given types, or why it cannot run there. Pure: what the kernel
//! then makes of them is [`crate::kernel`]'s.

use crate::kernel::btf::Types;

/// A hook and what it is for.
pub struct ProbeSpec {
    /// Its name, for users: the tracepoint or the function.
    pub hook: &'static str,
    way: AttachPoint,
    /// What is seen or known through it.
    pub sees: &'static str,
    /// Without it resets go unseen; else they are seen but less is known of them.
    pub sees_resets: bool,
}

/// How a hook is attached.
enum AttachPoint {
    /// To the tracepoint of its name: number of arguments, and a program written for it.
    Tracepoint(&'static [(usize, &'static str)]),
    /// To the entries and ends of functions, each with its program: where a tracepoint has so many arguments that it
    /// leaves something out, and not elsewhere.
    Functions {
        tracepoint: &'static str,
        arguments: &'static [usize],
        functions: &'static [(&'static str, &'static str)],
    },
}

/// Every hook, in the order in which they are attached: what keeps facts before what needs them.
pub const PROBES: &[ProbeSpec] = &[
    ProbeSpec {
        hook: "sched_process_fork",
        way: AttachPoint::Tracepoint(&[(2, "sched_process_fork")]),
        sees: "owners of accepted connections",
        sees_resets: false,
    },
    ProbeSpec {
        hook: "sched_process_exec",
        way: AttachPoint::Tracepoint(&[(3, "sched_process_exec")]),
        sees: "owners of accepted connections",
        sees_resets: false,
    },
    ProbeSpec {
        hook: "sched_process_exit",
        way: AttachPoint::Tracepoint(&[(1, "sched_process_exit"), (2, "sched_process_exit")]),
        sees: "owners of accepted connections",
        sees_resets: false,
    },
    ProbeSpec {
        hook: "inet_sock_set_state",
        way: AttachPoint::Tracepoint(&[(3, "inet_sock_set_state")]),
        sees: "state before the reset, duration, owners",
        sees_resets: false,
    },
    ProbeSpec {
        hook: "tcp_rcv_space_adjust",
        way: AttachPoint::Tracepoint(&[(1, "tcp_rcv_space_adjust")]),
        sees: "owners of connections that were handed on",
        sees_resets: false,
    },
    ProbeSpec {
        hook: "tcp_send_reset",
        way: AttachPoint::Tracepoint(&[
            (3, "tcp_send_reset"),
            (3, "tcp_send_reset_active"),
            (2, "tcp_send_reset_without_reason"),
            (2, "tcp_send_reset_active_without_reason"),
        ]),
        sees: "resets that TCP sends",
        sees_resets: true,
    },
    ProbeSpec {
        hook: "tcp_v4_send_reset",
        way: AttachPoint::Functions {
            tracepoint: "tcp_send_reset",
            arguments: &[2],
            functions: &[("tcp_v4_send_reset", "tcp_v4_send_reset"), ("tcp_v6_send_reset", "tcp_v6_send_reset")],
        },
        sees: "resets that TCP sends without a socket, or in TIME_WAIT",
        sees_resets: true,
    },
    ProbeSpec {
        hook: "tcp_receive_reset",
        way: AttachPoint::Tracepoint(&[(1, "tcp_receive_reset")]),
        sees: "resets that a socket receives",
        sees_resets: true,
    },
    ProbeSpec {
        hook: "tcp_check_req",
        way: AttachPoint::Functions {
            tracepoint: "kfree_skb",
            arguments: &[2, 3],
            functions: &[
                ("tcp_check_req", "tcp_check_req"),
                ("tcp_timewait_state_process", "tcp_timewait_state_process"),
                ("tcp_rcv_state_process", "tcp_rcv_state_process"),
                ("tcp_rcv_state_process", "tcp_rcv_state_process_end"),
                ("tcp_validate_incoming", "tcp_validate_incoming"),
                ("tcp_validate_incoming", "tcp_validate_incoming_end"),
            ],
        },
        sees: "resets received that a socket refuses, and whom they came for",
        sees_resets: true,
    },
    ProbeSpec {
        hook: "kfree_skb",
        way: AttachPoint::Tracepoint(&[
            (4, "kfree_skb"),
            (3, "kfree_skb_without_socket"),
            (2, "kfree_skb_without_reason"),
        ]),
        sees: "resets received that no connection accepts",
        sees_resets: true,
    },
    ProbeSpec {
        hook: "net_dev_queue",
        way: AttachPoint::Tracepoint(&[(1, "net_dev_queue")]),
        sees: "resets that netfilter sends",
        sees_resets: true,
    },
];

/// The name under which companion programs are switched on or off; not a hook of the kernel.
pub(super) const COMPANION: &str = "again";

/// Programs with a companion for the runs that the kernel misses (`probes/src/companion.rs`): they see resets and run in
/// process context.
const COMPANIONS: [(&str, &str); 3] = [
    ("tcp_send_reset", "tcp_send_reset_companion"),
    ("tcp_send_reset_active", "tcp_send_reset_active_companion"),
    ("tcp_receive_reset", "tcp_receive_reset_companion"),
];

/// The companion of a program.
pub(super) fn companion(program: &str) -> Option<&'static str> {
    COMPANIONS.iter().find(|(first, _)| *first == program).map(|(_, again)| *again)
}

/// Whether the program is a companion.
pub(super) fn is_companion(program: &str) -> bool {
    COMPANIONS.iter().any(|(_, again)| *again == program)
}

/// Whether the hook of this name is useful on the running kernel; companions are where the kernel preempts programs.
pub fn has_use(name: &str) -> bool {
    let preempting = || {
        let kernel = rustix::system::uname();
        preempts(&kernel.release().to_string_lossy(), &kernel.version().to_string_lossy())
    };
    name != COMPANION || preempting()
}

/// Whether a program may be preempted at a tracepoint, from the kernel's release and version (uname(2)): since Linux 7.0
/// (`tracepoint_srcu`, include/linux/tracepoint.h), where the kernel itself may be.
fn preempts(release: &str, version: &str) -> bool {
    let major = release.split('.').next().and_then(|major| major.parse::<u32>().ok());
    major.is_some_and(|major| major >= 7) && version.contains("PREEMPT")
}

/// What is to be done for a hook on a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttachStep {
    /// Another hook sees all of it.
    NotNeeded,
    /// Load and attach these: the tracepoint or function, and the program for it.
    Attach(Vec<(&'static str, &'static str)>),
    /// It cannot run there, and why.
    CannotRun(String),
}

impl ProbeSpec {
    /// What is to be done on a kernel with these types; `with_companions`: companion programs are attached, too.
    pub fn step(&self, types: &Types, with_companions: bool) -> AttachStep {
        let mut step = self.first_step(types);
        if let AttachStep::Attach(names) = &mut step
            && with_companions
        {
            // Behind the first: in the order in which they are attached they run.
            let seconds: Vec<_> = names.iter().filter_map(|(place, name)| Some((*place, companion(name)?))).collect();
            names.extend(seconds);
        }
        step
    }

    fn first_step(&self, types: &Types) -> AttachStep {
        match &self.way {
            AttachPoint::Tracepoint(programs) => tracepoint(self.hook, programs, types),
            AttachPoint::Functions { tracepoint, arguments, functions } => {
                if !types.tracepoint_arguments(tracepoint).is_some_and(|count| arguments.contains(&count)) {
                    return AttachStep::NotNeeded;
                }
                match functions.iter().find(|(function, _)| !types.has_function(function)) {
                    Some((function, _)) => AttachStep::CannotRun(format!("this kernel has no function {function}")),
                    None => AttachStep::Attach(functions.to_vec()),
                }
            }
        }
    }
}

fn tracepoint(hook: &'static str, programs: &'static [(usize, &'static str)], types: &Types) -> AttachStep {
    let Some(arguments) = types.tracepoint_arguments(hook) else {
        return AttachStep::CannotRun(format!("this kernel has no tracepoint {hook}"));
    };
    let fitting = programs.iter().filter(|(count, _)| *count == arguments);
    let names: Vec<_> = fitting.map(|(_, name)| (hook, *name)).collect();
    if names.is_empty() {
        return AttachStep::CannotRun(format!(
            "this kernel's {hook} has {arguments} arguments, which no program here is written for"
        ));
    }
    AttachStep::Attach(names)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Types of a kernel with these tracepoints, each with its number of arguments, and these functions.
    fn kernel(tracepoints: &[(&str, u32)], functions: &[&str]) -> Types {
        const POINTER: u32 = 2;
        const TYPEDEF: u32 = 8;
        const FUNCTION: u32 = 12;
        const PROTOTYPE: u32 = 13;
        let (mut types, mut strings, mut last) = (Vec::new(), vec![0], 0);
        let mut add = |kind: u32, count: u32, name: &str, of: u32| {
            let at = strings.len() as u32;
            strings.extend(name.bytes().chain([0]));
            types.extend([at, kind << 24 | count, of].iter().flat_map(|word| word.to_ne_bytes()));
            types.extend((0..count * 8).map(|_| 0));
            last += 1;
            last
        };
        for (name, arguments) in tracepoints {
            let prototype = add(PROTOTYPE, arguments + 1, "", 0);
            let pointer = add(POINTER, 0, "", prototype);
            add(TYPEDEF, 0, &format!("btf_trace_{name}"), pointer);
        }
        for name in functions {
            let prototype = add(PROTOTYPE, 2, "", 0);
            add(FUNCTION, 0, name, prototype);
        }
        let mut bytes = 0xeb9f_u16.to_ne_bytes().to_vec();
        bytes.extend([1, 0]);
        let words = [24, 0, types.len(), types.len(), strings.len()];
        bytes.extend(words.iter().flat_map(|word| (*word as u32).to_ne_bytes()));
        bytes.extend(types);
        bytes.extend(strings);
        Types::parse(bytes).expect("BTF")
    }

    fn step(hook: &str, types: &Types) -> AttachStep {
        PROBES.iter().find(|plan| plan.hook == hook).expect("a plan").step(types, false)
    }

    #[test]
    fn the_program_is_the_one_for_so_many_arguments() {
        for (hook, arguments, program) in [
            ("tcp_send_reset", 2, "tcp_send_reset_without_reason"),
            ("tcp_send_reset", 3, "tcp_send_reset"),
            ("kfree_skb", 2, "kfree_skb_without_reason"),
            ("kfree_skb", 3, "kfree_skb_without_socket"),
            ("kfree_skb", 4, "kfree_skb"),
        ] {
            let attach = step(hook, &kernel(&[(hook, arguments)], &[]));
            assert!(
                matches!(&attach, AttachStep::Attach(names) if names[0] == (hook, program)),
                "{hook} {arguments}: {attach:?}"
            );
        }
        let AttachStep::CannotRun(why) = step("kfree_skb", &kernel(&[("kfree_skb", 7)], &[])) else {
            panic!("it runs")
        };
        assert!(why.contains("7 arguments"), "{why}");
        let AttachStep::CannotRun(why) = step("kfree_skb", &kernel(&[], &[])) else { panic!("it runs") };
        assert!(why.contains("no tracepoint kfree_skb"), "{why}");
    }

    #[test]
    fn functions_are_entered_only_where_the_tracepoint_leaves_something_out() {
        let both = ["tcp_v4_send_reset", "tcp_v6_send_reset"];
        let hook = "tcp_v4_send_reset";
        assert_eq!(step(hook, &kernel(&[("tcp_send_reset", 3)], &both)), AttachStep::NotNeeded);
        assert!(
            matches!(step(hook, &kernel(&[("tcp_send_reset", 2)], &both)), AttachStep::Attach(names) if names.len() == 2)
        );
        let AttachStep::CannotRun(why) = step(hook, &kernel(&[("tcp_send_reset", 2)], &both[..1])) else {
            panic!("it runs")
        };
        assert!(why.contains("tcp_v6_send_reset"), "{why}");
    }

    #[test]
    fn what_a_socket_refuses_is_told_where_kfree_skb_does_not_say_whom_it_was_for() {
        let functions =
            ["tcp_check_req", "tcp_timewait_state_process", "tcp_rcv_state_process", "tcp_validate_incoming"];
        for arguments in [2, 3] {
            let attach = step("tcp_check_req", &kernel(&[("kfree_skb", arguments)], &functions));
            let AttachStep::Attach(names) = attach else { panic!("{attach:?}") };
            for end in ["tcp_rcv_state_process", "tcp_validate_incoming"] {
                let programs = names.iter().filter(|(function, _)| *function == end).map(|(_, name)| *name);
                assert_eq!(programs.collect::<Vec<_>>(), [end.to_owned(), format!("{end}_end")], "{arguments}");
            }
        }
        assert_eq!(step("tcp_check_req", &kernel(&[("kfree_skb", 4)], &functions)), AttachStep::NotNeeded);
        let inlined = step("tcp_check_req", &kernel(&[("kfree_skb", 2)], &functions[..3]));
        assert!(matches!(&inlined, AttachStep::CannotRun(why) if why.contains("tcp_validate_incoming")), "{inlined:?}");
    }

    #[test]
    fn a_preempted_kernel_gets_each_program_that_sees_resets_of_processes_twice() {
        let types = kernel(&[("tcp_send_reset", 3), ("tcp_receive_reset", 1), ("kfree_skb", 4)], &[]);
        let names = |hook: &str| {
            let plan = PROBES.iter().find(|plan| plan.hook == hook).expect("a hook");
            let AttachStep::Attach(names) = plan.step(&types, true) else { panic!("{hook}") };
            names.into_iter().map(|(_, name)| name).collect::<Vec<_>>()
        };
        let sends = names("tcp_send_reset");
        assert_eq!(sends[..2], ["tcp_send_reset", "tcp_send_reset_active"], "the first come first");
        assert_eq!(sends[2..], ["tcp_send_reset_companion", "tcp_send_reset_active_companion"]);
        assert_eq!(names("tcp_receive_reset"), ["tcp_receive_reset", "tcp_receive_reset_companion"]);
        assert_eq!(names("kfree_skb"), ["kfree_skb"]);
    }

    #[test]
    fn a_kernel_says_whether_it_preempts() {
        let cases = [
            ("7.3.4+deb13-cloud-amd64", "#1 SMP PREEMPT(lazy) Debian 7.3.4-1 (2026-09-01)", true),
            ("7.0.0-rc1", "#1 SMP PREEMPT_DYNAMIC Mon", true),
            ("7.1.0", "#1 SMP Mon", false),
            ("6.18.44", "#1 SMP PREEMPT_DYNAMIC Mon", false),
            ("10.0.1", "#1 SMP PREEMPT_RT Mon", true),
            ("?", "PREEMPT", false),
        ];
        for (release, version, expected) in cases {
            assert_eq!(preempts(release, version), expected, "{release} {version}");
        }
    }

    #[test]
    fn every_hook_can_run_on_this_kernel_or_is_not_needed() {
        let types = Types::from_file(Path::new(crate::kernel::KERNEL_BTF)).expect("this kernel has BTF");
        for plan in PROBES {
            let step = plan.step(&types, false);
            assert!(!matches!(step, AttachStep::CannotRun(_)), "{}: {step:?}", plan.hook);
        }
    }
}
