//! The hooks: which programs each needs on a kernel with given types, or why it cannot run there. Pure: what the kernel
//! then makes of them is [`crate::kernel`]'s.

use crate::btf::Types;

/// A hook and what it is for.
pub struct Plan {
    /// Its name, for users: the tracepoint or the function.
    pub hook: &'static str,
    way: Way,
    /// What is seen or known through it.
    pub sees: &'static str,
    /// Without it resets go unseen; else they are seen but less is known of them.
    pub sees_resets: bool,
}

/// How a hook is attached.
enum Way {
    /// To the tracepoint of its name: number of arguments, and the program written for it.
    Tracepoint(&'static [(usize, &'static str)]),
    /// To the entries of functions, each with its program: where a tracepoint has so many arguments that it leaves
    /// something out, and not elsewhere.
    Entries { tracepoint: &'static str, arguments: usize, functions: &'static [(&'static str, &'static str)] },
}

/// Every hook, in the order in which they are attached: what keeps facts before what needs them.
pub const PLANS: &[Plan] = &[
    Plan {
        hook: "sched_process_fork",
        way: Way::Tracepoint(&[(2, "sched_process_fork")]),
        sees: "owners of accepted connections",
        sees_resets: false,
    },
    Plan {
        hook: "sched_process_exec",
        way: Way::Tracepoint(&[(3, "sched_process_exec")]),
        sees: "owners of accepted connections",
        sees_resets: false,
    },
    Plan {
        hook: "sched_process_exit",
        way: Way::Tracepoint(&[(1, "sched_process_exit"), (2, "sched_process_exit")]),
        sees: "owners of accepted connections",
        sees_resets: false,
    },
    Plan {
        hook: "inet_sock_set_state",
        way: Way::Tracepoint(&[(3, "inet_sock_set_state")]),
        sees: "state before the reset, duration, owners",
        sees_resets: false,
    },
    Plan {
        hook: "tcp_send_reset",
        way: Way::Tracepoint(&[(3, "tcp_send_reset"), (2, "tcp_send_reset_without_reason")]),
        sees: "resets that TCP sends",
        sees_resets: true,
    },
    Plan {
        hook: "tcp_v4_send_reset",
        way: Way::Entries {
            tracepoint: "tcp_send_reset",
            arguments: 2,
            functions: &[("tcp_v4_send_reset", "tcp_v4_send_reset"), ("tcp_v6_send_reset", "tcp_v6_send_reset")],
        },
        sees: "resets that TCP sends without a socket, or in TIME_WAIT",
        sees_resets: true,
    },
    Plan {
        hook: "tcp_receive_reset",
        way: Way::Tracepoint(&[(1, "tcp_receive_reset")]),
        sees: "resets that a socket receives",
        sees_resets: true,
    },
    Plan {
        hook: "kfree_skb",
        way: Way::Tracepoint(&[(4, "kfree_skb"), (3, "kfree_skb_without_socket"), (2, "kfree_skb_without_reason")]),
        sees: "resets received that no connection accepts",
        sees_resets: true,
    },
    Plan {
        hook: "net_dev_queue",
        way: Way::Tracepoint(&[(1, "net_dev_queue")]),
        sees: "resets that netfilter sends",
        sees_resets: true,
    },
];

/// What is to be done for a hook on a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Another hook sees all of it.
    NotNeeded,
    /// Load and attach these: the tracepoint or function, and the program for it.
    Attach(Vec<(&'static str, &'static str)>),
    /// It cannot run there, and why.
    CannotRun(String),
}

impl Plan {
    /// What is to be done on a kernel with these types.
    pub fn step(&self, types: &Types) -> Step {
        match &self.way {
            Way::Tracepoint(programs) => tracepoint(self.hook, programs, types),
            Way::Entries { tracepoint, arguments, functions } => {
                if types.tracepoint_arguments(tracepoint) != Some(*arguments) {
                    return Step::NotNeeded;
                }
                match functions.iter().find(|(function, _)| !types.has_function(function)) {
                    Some((function, _)) => Step::CannotRun(format!("this kernel has no function {function}")),
                    None => Step::Attach(functions.to_vec()),
                }
            }
        }
    }
}

fn tracepoint(hook: &'static str, programs: &[(usize, &'static str)], types: &Types) -> Step {
    let Some(arguments) = types.tracepoint_arguments(hook) else {
        return Step::CannotRun(format!("this kernel has no tracepoint {hook}"));
    };
    match programs.iter().find(|(count, _)| *count == arguments) {
        Some((_, name)) => Step::Attach(vec![(hook, name)]),
        None => Step::CannotRun(format!(
            "this kernel's {hook} has {arguments} arguments, which no program here is written for"
        )),
    }
}
