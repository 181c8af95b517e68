//! What a program in the kernel takes a run, by the kernel's own account (`bpf_stats`), ours next to the C program's
//! under the same load, in turns.

use std::{
    collections::{BTreeMap, HashSet},
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, ChildStdin, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use reset_collector_tests::{
    collector::Collector,
    flood,
    network::{Layout, Network},
};
use serde_json::Value;

use crate::table::{Report, median};

const TURNS: usize = 5;
const REFUSED: u64 = 20_000;
const LINGER: u64 = 20_000;
/// Nothing stands between the resets and the ring buffer, for either.
const NO_CEILING: &str = "capture: { max_records_per_second: null }\nexport: { console: \"off\" }\n";
const SWITCH: &str = "/proc/sys/kernel/bpf_stats_enabled";
/// Fewer runs than this under a load are of something else.
const MIN_RUNS: u64 = 1_000;

/// ns a run by load and program, a figure for each turn.
type Figures = BTreeMap<(&'static str, String), Vec<f64>>;

/// Measures and reports.
///
/// # Errors
/// Not root, or the C program is not built.
pub(crate) fn measure(
    report: &mut Report,
    c_program: &str,
    configuration: &dyn Fn(&str) -> Result<String>,
) -> Result<()> {
    let _switched = Switch::on()?;
    let file = configuration(NO_CEILING)?;
    let mut figures = Figures::new();
    for _ in 0..TURNS {
        let before = programs()?;
        let collector = Collector::start(&["--config", &file], &[])?;
        under_load(&before, &mut figures)?;
        collector.stop()?;
        let before = programs()?;
        let c = CProgram::start(c_program)?;
        under_load(&before, &mut figures)?;
        c.stop()?;
    }
    print_figures(report, &figures);
    Ok(())
}

fn print_figures(report: &mut Report, figures: &Figures) {
    let mut rows = Vec::new();
    for ((load, program), ours) in figures {
        if program.starts_with("c_") {
            continue;
        }
        let in_c = format!("c_{}", program.trim_start_matches("tcp_").trim_start_matches("inet_sock_"));
        let theirs = figures.get(&(*load, in_c)).map(|figures| median(figures));
        let own = median(ours);
        rows.push(vec![
            (*load).to_owned(),
            format!("`{program}`"),
            format!("{own:.0}"),
            theirs.map_or_else(|| "–".to_owned(), |theirs| format!("{theirs:.0}")),
            theirs.map_or_else(|| "–".to_owned(), |theirs| format!("{:.2}", own / theirs)),
        ]);
    }
    report.table(
        &format!("In the kernel: ns a run, by bpf_stats (median of {TURNS} turns)"),
        &["load", "program", "ours", "in C, same record", "ours / C"],
        &rows,
    );
    report.say(
        "`tcp_*` run once a reset; `inet_sock_set_state` once a change of state; `kfree_skb` and `net_dev_queue` once a \
         packet freed or sent, `sched_*` once a process, and make a record only of a reset that passes no socket.",
    );
}

/// Runs each load and takes down what the programs that are new since `before` took for it.
fn under_load(before: &BTreeMap<u64, Runs>, figures: &mut Figures) -> Result<()> {
    let old: HashSet<u64> = before.keys().copied().collect();
    let network = Network::new(Layout::Loopback)?;
    let closed = SocketAddr::from(([127, 0, 0, 1], 1));
    for load in ["refused", "linger 0"] {
        let start = programs()?;
        match load {
            "refused" => network.client.enter(|| flood::refused(closed, REFUSED, 1))?,
            _ => network.client.enter(|| flood::linger_zero([127, 0, 0, 1].into(), LINGER))??,
        }
        for (id, end) in programs()? {
            let begun = start.get(&id).cloned().unwrap_or_default();
            let runs = end.count.saturating_sub(begun.count);
            if !old.contains(&id) && runs >= MIN_RUNS {
                let each = (end.ns - begun.ns) as f64 / runs as f64;
                figures.entry((load, end.name)).or_default().push(each);
            }
        }
    }
    Ok(())
}

/// What a program has run so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Runs {
    pub(crate) name: String,
    pub(crate) ns: u64,
    pub(crate) count: u64,
}

/// Every program in the kernel by its number.
pub(crate) fn programs() -> Result<BTreeMap<u64, Runs>> {
    let output = Command::new("bpftool").args(["--json", "prog", "show"]).output().context("bpftool is missing")?;
    ensure!(output.status.success(), "bpftool: {}", String::from_utf8_lossy(&output.stderr));
    let list: Value = serde_json::from_slice(&output.stdout)?;
    let read = |program: &Value| {
        let number = |name: &str| program[name].as_u64().unwrap_or(0);
        let name = program["name"].as_str().unwrap_or_default().to_owned();
        (number("id"), Runs { name, ns: number("run_time_ns"), count: number("run_cnt") })
    };
    Ok(list.as_array().context("bpftool gives no list")?.iter().map(read).collect())
}

/// The kernel's account of programs, put back as it was.
pub(crate) struct Switch {
    before: String,
}

impl Switch {
    pub(crate) fn on() -> Result<Self> {
        let before = std::fs::read_to_string(SWITCH).context(SWITCH)?;
        std::fs::write(SWITCH, "1").context(SWITCH)?;
        Ok(Self { before })
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::write(SWITCH, self.before.trim()) {
            eprintln!("{SWITCH} is still 1: {error}");
        }
    }
}

/// The C program's loader, running.
struct CProgram {
    child: Child,
    input: ChildStdin,
    output: BufReader<std::process::ChildStdout>,
}

impl CProgram {
    fn start(program: &str) -> Result<Self> {
        let mut child =
            Command::new(program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("the C probe")?;
        let input = child.stdin.take().context("no stdin")?;
        let mut output = BufReader::new(child.stdout.take().context("no stdout")?);
        let mut line = String::new();
        output.read_line(&mut line)?;
        ensure!(line == "ready\n", "the C probe does not start");
        Ok(Self { child, input, output })
    }

    /// Ends it; a record that it lost would have been cheaper than the others.
    fn stop(mut self) -> Result<()> {
        drop(self.input);
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        self.child.wait()?;
        let (records, lost) = line.trim().split_once(' ').context("the C probe's counts")?;
        ensure!(records.parse::<u64>()? >= REFUSED + LINGER && lost == "0", "the C probe took {records}, lost {lost}");
        Ok(())
    }
}
