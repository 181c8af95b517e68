//! Containers of runc: a root with nothing in it but the program, as an image from scratch has it, and what a test adds.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Fails where containers cannot be made.
///
/// # Errors
/// What this host lacks.
pub fn require_runc() -> Result<()> {
    crate::require_root()?;
    let version = Command::new("runc").arg("--version").stdout(Stdio::null()).status();
    ensure!(version.is_ok(), "runc is missing: run tests/setup packages");
    Ok(())
}

/// A container that is made when its [`Self::command`] runs, and removed with this value.
#[derive(Debug)]
pub struct Container {
    bundle: TempDir,
    id: String,
    /// What `runc spec` proposes, changed: the OCI runtime's `config.json`.
    pub config: Value,
}

impl Container {
    /// A container that will run a program of this machine, at `/NAME` in it, with arguments.
    ///
    /// # Errors
    /// runc fails, or the program cannot be copied.
    pub fn new(program: &Path, arguments: &[&str]) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        // As long as real ids are, so that it is known for one.
        let id = format!("{:032x}{:032x}", std::process::id(), 0xc0ffee_u64 + u64::from(number));
        let bundle = TempDir::with_prefix("reset-collector-")?;
        fs::create_dir_all(bundle.path().join("rootfs"))?;
        let mut container = Self { bundle, id, config: Value::Null };
        ensure!(container.runc().arg("spec").status()?.success(), "runc spec");
        container.config = serde_json::from_slice(&fs::read(container.bundle.path().join("config.json"))?)?;
        let name = program.file_name().and_then(|name| name.to_str()).context("a program without a name")?;
        container.add(program, &format!("/{name}"))?;
        for library in libraries(program)? {
            container.add(&library, &library.to_string_lossy())?;
        }
        let arguments: Vec<String> =
            std::iter::once(format!("/{name}")).chain(arguments.iter().map(|&text| text.to_owned())).collect();
        container.config["process"]["args"] = json!(arguments);
        container.config["process"]["terminal"] = false.into();
        container.config["process"]["env"] = json!([]);
        container.config["linux"]["cgroupsPath"] =
            format!("/reset-collector-{}/{}", std::process::id(), container.id).into();
        Ok(container)
    }

    /// Puts a file into its root.
    ///
    /// # Errors
    /// It cannot be copied.
    pub fn add(&self, file: &Path, at: &str) -> Result<()> {
        let to = self.bundle.path().join("rootfs").join(at.trim_start_matches('/'));
        fs::create_dir_all(to.parent().context("no directory")?)?;
        fs::copy(file, &to).with_context(|| file.display().to_string())?;
        Ok(())
    }

    /// Gives its program these capabilities and no other, as `--cap-drop ALL --cap-add …` does.
    pub fn set_capabilities(&mut self, names: &[&str]) {
        for set in ["bounding", "effective", "permitted"] {
            self.config["process"]["capabilities"][set] = json!(names);
        }
    }

    /// Sets a variable of its environment.
    pub fn set_variable(&mut self, name: &str, value: &str) {
        self.push("/process/env", format!("{name}={value}").into());
    }

    /// Mounts a file or directory of this machine, read-only.
    pub fn mount(&mut self, source: &Path, at: &str) {
        let mount = json!({ "destination": at, "type": "bind", "source": source, "options": ["bind", "ro"] });
        self.push("/mounts", mount);
    }

    /// Leaves out what `runc spec` mounts there, and below.
    pub fn unmount(&mut self, at: &str) {
        if let Some(mounts) = self.config["mounts"].as_array_mut() {
            mounts.retain(|mount| !mount["destination"].as_str().is_some_and(|there| there.starts_with(at)));
        }
    }

    /// Which namespace of a kind it lives in: `None` for this machine's own, else the file of one.
    pub fn join(&mut self, kind: &str, namespace: Option<&Path>) {
        if let Some(namespaces) = self.config["linux"]["namespaces"].as_array_mut() {
            namespaces.retain(|namespace| namespace["type"] != kind);
        }
        if let Some(path) = namespace {
            self.push("/linux/namespaces", json!({ "type": kind, "path": path }));
        }
    }

    fn push(&mut self, pointer: &str, value: Value) {
        if let Some(list) = self.config.pointer_mut(pointer).and_then(Value::as_array_mut) {
            list.push(value);
        }
    }

    /// Its name, by which the kernel's control groups know it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What runs it, in the foreground.
    ///
    /// # Errors
    /// Its configuration cannot be written.
    pub fn command(&self) -> Result<Command> {
        fs::write(self.bundle.path().join("config.json"), self.config.to_string())?;
        let mut command = self.runc();
        command.args(["run", &self.id]).stdin(Stdio::null());
        Ok(command)
    }

    /// The process of its program, as this machine counts; once it runs.
    ///
    /// # Errors
    /// It does not run.
    pub fn pid(&self) -> Result<u32> {
        let output = self.runc().args(["state", &self.id]).output()?;
        let state: Value = serde_json::from_slice(&output.stdout).context("it does not run")?;
        Ok(u32::try_from(state["pid"].as_u64().context("no pid")?)?)
    }

    fn runc(&self) -> Command {
        let mut command = Command::new("runc");
        command.arg("--root").arg(self.bundle.path().join("state")).current_dir(&self.bundle);
        command
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        drop(self.runc().args(["delete", "--force", &self.id]).output());
    }
}

/// The shared libraries that a program needs, its loader among them; none if it is static.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("ldd (libc-bin) is missing")?;
    let words = String::from_utf8(output.stdout)?;
    Ok(words
        .split_whitespace()
        .filter(|word| word.starts_with('/') && Path::new(word) != program)
        .map(PathBuf::from)
        .collect())
}
