//! The Debian package, made by cargo-deb; installed and purged by dpkg itself, its unit started by a real systemd. In a root
//! that lies over this machine's own, so that nothing here is changed.

#![forbid(unsafe_code)]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use reset_collector_tests::{backend::tool, collector::program, crate_directory, require_root};

const PROGRAM: &str = "/usr/bin/reset-collector";
const UNIT: &str = "/usr/lib/systemd/system/reset-collector.service";
const CONFIGURATION: &str = "/etc/reset-collector/reset-collector.yaml";
/// What must be in it, and that is not a manual.
const FILES: [&str; 7] = [
    PROGRAM,
    UNIT,
    CONFIGURATION,
    "/usr/share/doc/reset-collector/README.md",
    "/usr/share/doc/reset-collector/copyright",
    "/usr/share/doc/reset-collector/reference.yaml",
    "/usr/share/reset-collector/schema.json",
];
/// It takes ten seconds on a machine with nothing else to do.
const TIMEOUT_S: &str = "300";
/// What the unit leaves open, by `systemd-analyze security`: it needs the host's processes and network.
const EXPOSURE_TENTHS: &str = "25";

/// What a command printed; both streams, if it fails.
fn printed(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{:?}", command.get_program()))?;
    let (text, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{command:?}: {}: {text}{said}", output.status);
    Ok(text.into_owned())
}

/// Makes the package of the program under test, which is built already.
fn package(directory: &Path) -> Result<PathBuf> {
    let root = crate_directory().join("..").canonicalize()?;
    // cargo-deb takes the program from `release` in the directory of targets.
    fs::create_dir_all(directory.join("target/release"))?;
    fs::copy(program()?, directory.join("target/release/reset-collector"))?;
    let deb = directory.join("reset-collector.deb");
    let mut command = Command::new(tool("cargo-deb")?);
    command.args(["--package", "reset-collector", "--no-build", "--no-strip", "--fast", "--output"]).arg(&deb);
    printed(command.current_dir(root).env("CARGO_TARGET_DIR", directory.join("target")))?;
    Ok(deb)
}

#[test]
#[ignore = "needs root: run by `make e2e`"]
fn the_package_installs_runs_and_goes() -> Result<()> {
    require_root()?;
    ensure!(Path::new("/usr/bin/dpkg").exists(), "this test needs Debian's dpkg");
    let directory = tempfile::tempdir()?;
    let deb = package(directory.path())?;

    let control = printed(Command::new("dpkg-deb").arg("--field").arg(&deb))?;
    for field in ["Package: reset-collector", "Architecture: ", "Maintainer: ", "Section: net", "Description: "] {
        ensure!(control.contains(field), "no {field} in {control}");
    }
    let contents = printed(Command::new("dpkg-deb").arg("--contents").arg(&deb))?;
    let paths: BTreeSet<&str> =
        contents.lines().filter_map(|line| line.split_whitespace().nth(5)?.strip_prefix('.')).collect();
    for file in FILES {
        ensure!(paths.contains(file) || paths.contains(&*format!("{file}.gz")), "{file} is not in it: {contents}");
    }
    for line in contents.lines() {
        let is_ours = paths.iter().filter(|path| line.ends_with(*path)).any(|path| path.starts_with("/usr/local"));
        ensure!((line.contains(" 0/0 ") || line.contains(" root/root ")) && !is_ours, "not for a package: {line}");
        ensure!(line.get(8..9) != Some("w") && line.get(5..6) != Some("w"), "others may write: {line}");
    }

    // Everything that the script starts ends with it; what it writes lies in memory and goes as well.
    let script = crate_directory().join("package/chroot-install");
    let mut command = Command::new("timeout");
    command.args([TIMEOUT_S, "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    println!("{}", printed(command.arg(script).arg(directory.path()).arg(&deb).arg(EXPOSURE_TENTHS))?);
    Ok(())
}
