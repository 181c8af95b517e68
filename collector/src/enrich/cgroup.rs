//! From a control group's id to its path: the id is the inode of the group's directory under the cgroup v2 mount.
//!
//! The hierarchy is walked when an id is not known, and not more often than every [`RESCAN`].

use std::{
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt, fs::DirEntryExt, fs::MetadataExt},
    path::{Component, Path, PathBuf},
    time::{Duration, Instant},
};

use crate::{enrich::cache::Bounded, procfs::cgroup2_mounts};

/// Time between walks: a host with a thousand groups takes some 10 ms for one.
pub const RESCAN: Duration = Duration::from_secs(2);
/// Directories looked at in one walk, and paths remembered.
const MAX_GROUPS: usize = 32_768;
/// Bytes of paths remembered.
const MAX_PATH_BYTES: usize = 8 << 20;
/// Levels of the hierarchy that are walked.
const MAX_DEPTH: usize = 64;

/// The paths of control groups by id. Ids are not used again while the host is up (`fs/kernfs/dir.c`: the upper half is a
/// generation), so that a remembered path cannot become another group's.
#[derive(Debug)]
pub struct Cgroups {
    mount: Option<PathBuf>,
    paths: Bounded<u64, Box<[u8]>>,
    scanned: Option<Instant>,
    scans: u64,
}

impl Cgroups {
    /// Finds the cgroup v2 mount through a procfs: the host's where its first process can be looked at, else ours.
    pub fn new(proc: &Path) -> Self {
        let host = proc.join("1");
        let mount = cgroup2_mounts(&host.join("mountinfo"))
            .into_iter()
            .next()
            .map(|point| host.join("root").join(point.strip_prefix("/").unwrap_or(&point)))
            .filter(|point| fs::read_dir(point).is_ok())
            .or_else(|| cgroup2_mounts(&proc.join("self/mountinfo")).into_iter().next());
        Self { mount, paths: Bounded::new(MAX_GROUPS, MAX_PATH_BYTES), scanned: None, scans: 0 }
    }

    /// The path of a group below the mount, starting with `/`; `None` when it is not known now.
    pub fn path(&mut self, id: u64, now: Instant) -> Option<&[u8]> {
        if self.paths.get_mut(&id).is_none()
            && self.scanned.is_none_or(|last| now.saturating_duration_since(last) >= RESCAN)
        {
            self.scanned = Some(now);
            self.scan();
        }
        self.paths.get_mut(&id).map(|path| &**path)
    }

    /// Whether a group was made by root, by the owner of its directory; `None` where that cannot be known: it is gone, is on
    /// cgroup v1, or its path is relative to another namespace.
    pub fn is_roots(&self, path: &[u8]) -> Option<bool> {
        let path = Path::new(OsStr::from_bytes(path.strip_prefix(b"/")?));
        if path.components().any(|component| component == Component::ParentDir) {
            return None;
        }
        Some(fs::metadata(self.mount.as_ref()?.join(path)).ok()?.uid() == 0)
    }

    /// Walks of the hierarchy so far.
    pub fn scans(&self) -> u64 {
        self.scans
    }

    fn scan(&mut self) {
        let Some(mount) = self.mount.clone() else { return };
        self.scans += 1;
        if let Ok(metadata) = fs::metadata(&mount) {
            self.remember(metadata.ino(), b"/");
        }
        let mut ahead = vec![(mount.clone(), 0)];
        let mut seen = 0;
        while let Some((directory, depth)) = ahead.pop() {
            for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
                if seen >= MAX_GROUPS {
                    return;
                }
                if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    continue;
                }
                seen += 1;
                let path = entry.path();
                let below = path.strip_prefix(&mount).unwrap_or(&path).as_os_str().as_bytes();
                self.remember(entry.ino(), &[b"/", below].concat());
                if depth < MAX_DEPTH {
                    ahead.push((path, depth + 1));
                }
            }
        }
    }

    fn remember(&mut self, id: u64, path: &[u8]) {
        self.paths.insert(id, path.into(), path.len() + size_of::<(u64, u64)>());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A procfs whose mount table says that cgroup v2 is at `unified`.
    fn make(name: &str, groups: &[&str]) -> (PathBuf, Cgroups) {
        let root = std::env::temp_dir().join(format!("reset-collector-{name}-{}", std::process::id()));
        let unified = root.join("unified");
        for group in groups {
            fs::create_dir_all(unified.join(group)).expect("mkdir");
        }
        fs::create_dir_all(root.join("self")).expect("mkdir");
        let mounts = format!(
            "22 27 0:21 / /proc rw - proc proc rw\n31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
             35 31 0:34 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
             41 31 0:38 / {} rw,nosuid shared:9 - cgroup2 cgroup2 rw\n",
            unified.display()
        );
        fs::write(root.join("self/mountinfo"), mounts).expect("write");
        let cgroups = Cgroups::new(&root);
        (root, cgroups)
    }

    fn id(root: &Path, group: &str) -> u64 {
        fs::metadata(root.join("unified").join(group)).expect("the group is there").ino()
    }

    #[test]
    fn paths_by_id_on_a_host_with_both_versions() {
        let (root, mut cgroups) = make("cgroup", &["system.slice/nginx.service", "a/b/c"]);
        let now = Instant::now();
        let path = |cgroups: &mut Cgroups, group: &str, now| cgroups.path(id(&root, group), now).map(<[u8]>::to_vec);
        assert_eq!(
            path(&mut cgroups, "system.slice/nginx.service", now).as_deref(),
            Some(&b"/system.slice/nginx.service"[..])
        );
        assert_eq!(path(&mut cgroups, "", now).as_deref(), Some(&b"/"[..]));
        assert_eq!(path(&mut cgroups, "a/b", now).as_deref(), Some(&b"/a/b"[..]));
        assert_eq!(cgroups.scans(), 1);
        let own = rustix::process::geteuid().is_root();
        assert_eq!(cgroups.is_roots(b"/a/b"), Some(own));
        assert_eq!((cgroups.is_roots(b"/none"), cgroups.is_roots(b"/../a")), (None, None));
        // A new group is found at the next walk, which is not at once; one that has gone keeps its name.
        fs::create_dir(root.join("unified/new")).expect("mkdir");
        let gone = id(&root, "a/b/c");
        fs::remove_dir(root.join("unified/a/b/c")).expect("rmdir");
        assert_eq!(path(&mut cgroups, "new", now), None);
        assert_eq!(path(&mut cgroups, "new", now + RESCAN).as_deref(), Some(&b"/new"[..]));
        assert_eq!(cgroups.path(gone, now + RESCAN), Some(&b"/a/b/c"[..]));
        assert_eq!(cgroups.scans(), 2);
        fs::remove_dir_all(&root).expect("rm");
    }

    #[test]
    fn a_hierarchy_too_deep_or_not_there() {
        let deep = ["d"; MAX_DEPTH + 20].join("/");
        let (root, mut cgroups) = make("deep", &[&deep]);
        let bottom = id(&root, &deep);
        assert_eq!(cgroups.path(bottom, Instant::now()), None);
        assert!(cgroups.path(id(&root, "d/d/d"), Instant::now()).is_some());
        fs::remove_dir_all(&root).expect("rm");
        let mut nowhere = Cgroups::new(Path::new("/nonexistent"));
        assert_eq!(nowhere.path(1, Instant::now()), None);
        assert_eq!(nowhere.scans(), 0);
    }
}
