//! The host's own resource: what stands on every record.

use std::{borrow::Cow, fs, io::Read, path::Path};

use crate::{enrich::ResourceValue, text::sanitize};

/// Longest name or id of a host, bytes; the kernel's limit is 64 (`__NEW_UTS_LEN`).
const MAX_NAME: usize = 255;

/// `host.name`, `host.id` and `os.type`, each left out where it is not known.
///
/// In a container the host's own files are read through its first process, where this procfs shows it.
pub fn attributes(proc: &Path) -> Vec<(Cow<'static, str>, ResourceValue)> {
    let host_root = proc.join("1/root");
    let name = if in_own_uts_namespace(proc) { line(&host_root.join("etc/hostname")) } else { None };
    let name = name.or_else(|| Some(sanitize(rustix::system::uname().nodename().to_bytes(), MAX_NAME)));
    // OpenTelemetry: "host.id … on Linux the contents of /etc/machine-id".
    let id = [host_root.as_path(), Path::new("/")]
        .into_iter()
        .find_map(|root| line(&root.join("etc/machine-id")).or_else(|| line(&root.join("var/lib/dbus/machine-id"))))
        // What an image has before its first boot, see machine-id(5).
        .filter(|id| id != "uninitialized");
    [("host.name", name), ("host.id", id), ("os.type", Some("linux".into()))]
        .into_iter()
        .filter_map(|(key, value)| {
            Some((Cow::Borrowed(key), ResourceValue::Text(value.filter(|text| !text.is_empty())?)))
        })
        .collect()
}

/// Whether our host name is not that of the first process.
fn in_own_uts_namespace(proc: &Path) -> bool {
    let namespace = |process: &str| fs::read_link(proc.join(process).join("ns/uts")).ok();
    namespace("1").zip(namespace("self")).is_some_and(|(first, own)| first != own)
}

/// The first line of a small file, `None` when there is none.
fn line(path: &Path) -> Option<String> {
    let mut text = Vec::new();
    fs::File::open(path).ok()?.take(4096).read_to_end(&mut text).ok()?;
    let line = text.split(|byte| *byte == b'\n').next()?.trim_ascii();
    (!line.is_empty()).then(|| sanitize(line, MAX_NAME))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_seen_through_its_first_process() {
        let proc = std::env::temp_dir().join(format!("reset-collector-host-{}", std::process::id()));
        let etc = proc.join("1/root/etc");
        fs::create_dir_all(&etc).expect("mkdir");
        fs::create_dir_all(proc.join("1/ns")).expect("mkdir");
        fs::create_dir_all(proc.join("self/ns")).expect("mkdir");
        fs::write(etc.join("machine-id"), "0123456789abcdef0123456789abcdef\n").expect("write");
        fs::write(etc.join("hostname"), "node-1\n").expect("write");
        let link = |process: &str, target: &str| {
            let path = proc.join(process).join("ns/uts");
            fs::remove_file(&path).ok();
            std::os::unix::fs::symlink(target, path).expect("symlink");
        };
        let own_name = sanitize(rustix::system::uname().nodename().to_bytes(), MAX_NAME);
        link("1", "uts:[1]");
        for (own, name) in [("uts:[1]", own_name.as_str()), ("uts:[2]", "node-1")] {
            link("self", own);
            let text = |text: &str| ResourceValue::Text(text.into());
            let expected = [
                ("host.name", text(name)),
                ("host.id", text("0123456789abcdef0123456789abcdef")),
                ("os.type", text("linux")),
            ];
            assert_eq!(attributes(&proc), expected.map(|(key, value)| (Cow::Borrowed(key), value)));
        }
        fs::write(etc.join("machine-id"), "uninitialized\n").expect("write");
        assert!(!attributes(&proc).contains(&("host.id".into(), ResourceValue::Text("uninitialized".into()))));
        fs::remove_dir_all(&proc).expect("rm");
    }
}
