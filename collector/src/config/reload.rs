//! Reloading: when to read the file again, and which changes can take effect without a restart.
//!
//! Polls the file instead of watching a directory: a Kubernetes ConfigMap swaps a symbolic link two directories up, and an
//! editor replaces the file. Signals are handled by the caller.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::config::{self, Config, ConfigErrors, settings::Settings};

/// Interval at which to call [`FileWatcher::has_changed`].
pub const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// Watches one file.
#[derive(Debug)]
pub struct FileWatcher {
    path: PathBuf,
    seen: Option<FileIdentity>,
    /// A change seen at the last poll: it counts once it is stable, so that no half-written file is read.
    pending: Option<FileIdentity>,
}

/// Distinguishes versions of a file without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileIdentity {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl FileIdentity {
    /// Follows symbolic links, all the way.
    fn of(path: &Path) -> io::Result<Self> {
        let metadata = fs::metadata(path)?;
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

impl FileWatcher {
    /// Watches a file as it is now.
    pub fn new(path: PathBuf) -> Self {
        let seen = FileIdentity::of(&path).ok();
        Self { path, seen, pending: None }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Marks the current version as seen, because it is about to be read.
    pub fn mark_seen(&mut self) {
        self.seen = FileIdentity::of(&self.path).ok().or(self.seen);
        self.pending = None;
    }

    /// Whether there is a new version that has been stable since the last call. A missing file is not a change: usually it
    /// is about to be replaced.
    pub fn has_changed(&mut self) -> bool {
        let Ok(now) = FileIdentity::of(&self.path) else { return false };
        if self.seen == Some(now) {
            self.pending = None;
            return false;
        }
        if self.pending != Some(now) {
            self.pending = Some(now);
            return false;
        }
        self.pending = None;
        self.seen = Some(now);
        true
    }
}

/// The result of reading the file again.
#[derive(Debug)]
pub enum Reload {
    /// The same settings as the running ones.
    Same,
    /// Different settings.
    New(Box<NewSettings>),
    /// The file has errors: the running configuration stays.
    Refused(ConfigErrors),
}

/// Settings to apply.
#[derive(Debug)]
pub struct NewSettings {
    /// Valid settings; what cannot change without a restart is as in the running ones.
    pub settings: Settings,
    /// The changed keys that require a restart.
    pub after_restart: Vec<&'static str>,
    /// Warnings about the file.
    pub warnings: Vec<config::Diagnostic>,
}

/// Reads the file again and compares it with the running settings.
pub fn reload(path: &Path, running: &Settings) -> Reload {
    match config::load(path) {
        Ok(config) => compare(config, running),
        Err(errors) => Reload::Refused(errors),
    }
}

fn compare(config: Config, running: &Settings) -> Reload {
    let Config { mut settings, warnings, .. } = config;
    let mut after_restart = Vec::new();
    let mut keep = Keep { after_restart: &mut after_restart };
    let (new, old) = (&mut settings, running);
    // The probes are loaded with the first, and attached by the others.
    keep.running("capture.ring_buffer_size", &mut new.capture.ring_buffer_bytes, &old.capture.ring_buffer_bytes);
    // Its hook sees every packet, so it is attached only if it is enabled at the start.
    if new.capture.firewall && !old.capture.firewall {
        keep.running("capture.firewall", &mut new.capture.firewall, &old.capture.firewall);
    }
    keep.running("correlation.otlp_receiver.grpc", &mut new.correlation.grpc, &old.correlation.grpc);
    keep.running("correlation.otlp_receiver.http", &mut new.correlation.http, &old.correlation.http);
    let (new_ports, old_ports) = (&mut new.correlation.http_header_ports, &old.correlation.http_header_ports);
    // So are the hooks that read the wire; which ports they read may change.
    if new_ports.is_empty() != old_ports.is_empty() {
        keep.running("correlation.http_headers", new_ports, old_ports);
    }
    keep.running("correlation.span_wait", &mut new.correlation.span_wait, &old.correlation.span_wait);
    let (new_limit, old_limit) = (&mut new.correlation.max_request_bytes, &old.correlation.max_request_bytes);
    keep.running("correlation.otlp_receiver.max_request_size", new_limit, old_limit);
    let (new_headers, old_headers) = (&mut new.correlation.pass_headers, &old.correlation.pass_headers);
    keep.running("correlation.otlp_receiver.pass_headers", new_headers, old_headers);
    keep.running("enrichment.command_line", &mut new.enrichment.command_line, &old.enrichment.command_line);
    keep.running("enrichment.kubernetes", &mut new.enrichment.kubernetes, &old.enrichment.kubernetes);
    keep.running("enrichment.resource", &mut new.enrichment.resource, &old.enrichment.resource);
    keep.running("export.console", &mut new.export.console, &old.export.console);
    keep.running("export.signals", &mut new.export.signals, &old.export.signals);
    keep.running("export.otlp", &mut new.export.otlp, &old.export.otlp);
    keep.running("admin", &mut new.admin, &old.admin);
    keep.running("hardening", &mut new.hardening, &old.hardening);
    if settings == *running && after_restart.is_empty() {
        return Reload::Same;
    }
    Reload::New(Box::new(NewSettings { settings, after_restart, warnings }))
}

struct Keep<'a> {
    after_restart: &'a mut Vec<&'static str>,
}

impl Keep<'_> {
    /// Keeps the running value, and records the key where the file has another one.
    fn running<T: PartialEq + Clone>(&mut self, key: &'static str, new: &mut T, running: &T) {
        if new != running {
            new.clone_from(running);
            self.after_restart.push(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn parse(text: &str) -> Config {
        config::parse(text, "f.yaml", &|_| None).unwrap()
    }

    fn directory(name: &str) -> PathBuf {
        let directory = std::env::temp_dir().join(format!("reset-collector-{name}-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        directory
    }

    #[test]
    fn what_cannot_change_is_kept_and_named() {
        let running = parse("capture: { ring_buffer_size: 1MiB }").settings;
        let file = "capture: { ring_buffer_size: 2MiB, sent: false }\nadmin: { endpoint: 127.0.0.1:1 }\nfilters: [{ drop: {} }]";
        let Reload::New(new) = compare(parse(file), &running) else { panic!("no change") };
        assert_eq!(new.after_restart, ["capture.ring_buffer_size", "admin"]);
        assert_eq!((new.settings.capture.ring_buffer_bytes, new.settings.admin), (1 << 20, None));
        assert!(!new.settings.capture.sent);
        assert_eq!(new.settings.filters.rules().len(), 1);
    }

    #[test]
    fn ports_change_where_the_wire_is_read_and_nowhere_else() {
        let read = |ports: &str| parse(&format!("correlation: {{ http_headers: {{ ports: {ports} }} }}"));
        for (before, after, expected, after_restart) in [
            ("[80]", "[80, 8080]", &[80, 8080][..], &[][..]),
            ("[]", "[80]", &[], &["correlation.http_headers"]),
            ("[80]", "[]", &[80], &["correlation.http_headers"]),
        ] {
            let Reload::New(new) = compare(read(after), &read(before).settings) else { panic!("no change") };
            let ports: Vec<u16> = new.settings.correlation.http_header_ports.iter().collect();
            assert_eq!(ports, expected, "{before} {after}");
            assert_eq!(new.after_restart, after_restart, "{before} {after}");
        }
    }

    #[test]
    fn the_same_file_is_no_change() {
        let running = parse("filters: [{ drop: { service.name: a } }]").settings;
        assert!(matches!(compare(parse("filters:\n  - drop: { service.name: a }"), &running), Reload::Same));
    }

    #[test]
    fn a_bad_file_changes_nothing() {
        let directory = directory("bad");
        let path = directory.join("f.yaml");
        fs::write(&path, "filters: [{ drop: { port: 1 } }]").unwrap();
        let Reload::Refused(errors) = reload(&path, &Settings::default()) else { panic!("taken") };
        assert_eq!(errors.diagnostics[0].line, Some(1));
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_file_in_place_of_another_is_a_change_once_it_rests() {
        let directory = directory("rename");
        let path = directory.join("f.yaml");
        fs::write(&path, "a").unwrap();
        let mut watch = FileWatcher::new(path.clone());
        assert!(!watch.has_changed());
        fs::write(directory.join("new"), "b").unwrap();
        fs::rename(directory.join("new"), &path).unwrap();
        assert!(!watch.has_changed(), "it may be half written");
        assert!(watch.has_changed());
        assert!(!watch.has_changed());
        fs::remove_file(&path).unwrap();
        watch.mark_seen();
        assert!(!watch.has_changed(), "gone is no change");
        fs::write(&path, "another").unwrap();
        assert!(!watch.has_changed());
        watch.mark_seen();
        assert!(!watch.has_changed() && !watch.has_changed(), "it was read on a signal");
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_config_map_swaps_a_link_two_directories_up() {
        let directory = directory("config-map");
        for version in ["v1", "v2"] {
            fs::create_dir(directory.join(version)).unwrap();
            fs::write(directory.join(version).join("f.yaml"), version).unwrap();
        }
        symlink("v1", directory.join("..data")).unwrap();
        symlink("..data/f.yaml", directory.join("f.yaml")).unwrap();
        let mut watch = FileWatcher::new(directory.join("f.yaml"));
        symlink("v2", directory.join("..data_tmp")).unwrap();
        fs::rename(directory.join("..data_tmp"), directory.join("..data")).unwrap();
        assert!(!watch.has_changed());
        assert!(watch.has_changed());
        assert_eq!(fs::read_to_string(watch.path()).unwrap(), "v2");
        fs::remove_dir_all(directory).unwrap();
    }
}
