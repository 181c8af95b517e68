//! Which container, pod and systemd unit a control group belongs to: read from its path alone, without I/O.
//!
//! Knows the layouts of Docker, containerd, CRI-O, Podman, Kubernetes, LXC, systemd-nspawn, ECS, Garden, Mesos and
//! plain systemd, on cgroup v1 and v2. Names of pods come from elsewhere ([`crate::enrich::pods`]).

use crate::text::sanitize;

/// Longest name taken from a path, bytes; file names end at 255 (`NAME_MAX`).
const MAX_NAME: usize = 255;
/// Levels of a path that are read; the kernel's own limit is cgroup.max.depth.
const MAX_DEPTH: usize = 64;

/// What the path of a control group says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// `container.id`: the runtime's identifier, for LXC and systemd-nspawn the name.
    pub container_id: Option<String>,
    /// `container.name`, where the runtime puts names into paths (LXC, systemd-nspawn).
    pub container_name: Option<String>,
    /// `k8s.pod.uid`.
    pub pod_uid: Option<String>,
    /// The path of the group that names them, for a check of who made it.
    pub group: Option<Box<[u8]>>,
    /// The innermost systemd service without its suffix, inside the container if there is one.
    pub unit: Option<String>,
}

impl Placement {
    /// Whether the path said nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The name for `service.name` when the process says none itself.
    pub fn name(&self) -> Option<&str> {
        self.unit.as_deref().or(self.container_name.as_deref())
    }

    /// Reads the text of `/proc/PID/cgroup`: one line `hierarchy:controllers:path` each. The v2 path is believed first,
    /// then systemd's own hierarchy, then the controllers of v1; a path that names a container or pod before any other.
    pub fn from_cgroup_file(text: &[u8]) -> Self {
        let mut paths: Vec<(u8, &[u8])> = text.split(|byte| *byte == b'\n').filter_map(ranked_path).collect();
        paths.sort_by_key(|(rank, _)| *rank);
        // One path decides alone: one path's container with another's unit would name a workload that is none.
        let mut first = None;
        for placement in paths.into_iter().map(|(_, path)| Self::from_path(path)) {
            if placement.container_id.is_some() || placement.pod_uid.is_some() {
                return placement;
            }
            if !placement.is_empty() {
                first.get_or_insert(placement);
            }
        }
        first.unwrap_or_default()
    }

    /// Reads a path inside a cgroup hierarchy, absolute or relative to a cgroup namespace (`/../..`).
    ///
    /// Directories below a container, and below `user.slice`, are made by whoever runs there: they name neither a
    /// container nor a pod. A node that is itself a container (kind) has the kubelet's directories right below it.
    pub fn from_path(path: &[u8]) -> Self {
        let path = path.strip_suffix(b" (deleted)").unwrap_or(path);
        let mut placement = Self::default();
        let mut parents: [&[u8]; 2] = [b"", b""];
        let mut at = Level { by_user: is_by_user(path), below_kubelet: true };
        for component in path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b"..")).take(MAX_DEPTH) {
            if placement.enter(component, parents, at) {
                let end = component.as_ptr() as usize + component.len() - path.as_ptr() as usize;
                placement.group = path.get(..end).map(Into::into);
                at.below_kubelet = true;
            } else {
                at.below_kubelet &= is_kubelets(component);
            }
            parents = [parents[1], component];
        }
        placement
    }

    /// Goes one level down, and returns whether it is a container's or a pod's; `parents` are the two levels above, the
    /// nearer one last.
    fn enter(&mut self, component: &[u8], parents: [&[u8]; 2], at: Level) -> bool {
        // Identifiers are ASCII.
        let Ok(text) = std::str::from_utf8(component) else { return false };
        let mut found = false;
        if let Some(pod_uid) = pod_uid(text).filter(|_| at.below_kubelet && !at.by_user && self.pod_uid.is_none()) {
            // A container above the pod is the node's own.
            *self = Self { pod_uid: Some(pod_uid), ..Self::default() };
            found = true;
        }
        let free = !at.by_user && self.container_id.is_none();
        if text == "supervisor" && parents[1].starts_with(b"systemd-nspawn@") {
            // The supervisor of a machine runs outside of it.
            *self = Self { unit: unit(&String::from_utf8_lossy(parents[1])), ..Self::default() };
        } else if let Some(id) = container_id(text, parents).filter(|_| free) {
            // A service of Podman's (Quadlet) is the one container; others hold the containers of a whole host.
            let unit = if text.starts_with("libpod-payload-") { self.unit.take() } else { None };
            *self = Self { container_id: Some(id), unit, pod_uid: self.pod_uid.take(), ..Self::default() };
            found = true;
        } else if let Some(name) = machine(text, parents).filter(|_| free) {
            let id = Some(name.clone());
            let pod_uid = self.pod_uid.take();
            *self = Self { container_id: id, container_name: Some(name), pod_uid, ..Self::default() };
            found = true;
        } else if let Some(unit) = unit(text) {
            self.unit = Some(unit);
        }
        found
    }

    /// The same without the container and the pod, whose directory is not root's.
    pub fn without_container(self) -> Self {
        Self { unit: self.unit, ..Self::default() }
    }
}

/// Whether a path is below the slice of the users' own managers, as seen from any cgroup namespace.
fn is_by_user(path: &[u8]) -> bool {
    path.split(|byte| *byte == b'/').find(|part| !matches!(*part, b"" | b"..")) == Some(b"user.slice")
}

/// Where in a path a component is.
#[derive(Clone, Copy)]
struct Level {
    /// Below the slice of the users' own managers.
    by_user: bool,
    /// Every level above, up to the root or a container, is the kubelet's.
    below_kubelet: bool,
}

/// Whether the kubelet makes a directory of this name above those of pods. Containerd's and CRI-O's own services have them
/// too where the kubelet's and the runtime's drivers differ.
fn is_kubelets(component: &[u8]) -> bool {
    matches!(
        component,
        b"kubelet"
            | b"kubelet.slice"
            | b"besteffort"
            | b"burstable"
            | b"system.slice"
            | b"containerd.service"
            | b"crio.service"
    ) || component.windows(8).any(|part| part == b"kubepods")
}

/// The path of a line of `/proc/PID/cgroup` and how much it is believed (lower is more).
fn ranked_path(line: &[u8]) -> Option<(u8, &[u8])> {
    let mut fields = line.splitn(3, |byte| *byte == b':');
    let (hierarchy, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
    if hierarchy.is_empty() || !hierarchy.iter().all(u8::is_ascii_digit) || !path.starts_with(b"/") {
        return None;
    }
    let rank = match controllers {
        b"" => 0,
        b"name=systemd" => 1,
        _ => 2,
    };
    Some((rank, path))
}

/// The uid in `pod<uid>` (cgroupfs driver) or `kubepods-burstable-pod<uid>.slice` (systemd driver, `-` as `_`). Static
/// pods have a hash of 32 digits for a uid.
fn pod_uid(component: &str) -> Option<String> {
    let component = component.split(':').next().unwrap_or(component);
    let uid = match component.strip_suffix(".slice") {
        Some(slice) => slice.rsplit_once("-pod").filter(|(prefix, _)| prefix.contains("kubepods"))?.1.replace('_', "-"),
        None => component.strip_prefix("pod")?.to_owned(),
    };
    (is_uuid(&uid) || is_hex(&uid, 32)).then_some(uid)
}

/// The identifier of a container in a path's component: 64 hexadecimal digits, alone or after a runtime's prefix, or
/// one of the forms of ECS on Fargate, Garden and Mesos.
fn container_id(component: &str, parents: [&[u8]; 2]) -> Option<String> {
    // Podman's pods have identifiers of the same form.
    if parents[1] == b"libpod_parent" {
        return None;
    }
    // Monitors run outside of their container; slices hold pods; services are Podman's health checks.
    if component.contains("conmon") || component.ends_with(".slice") || component.ends_with(".service") {
        return None;
    }
    let name = component.strip_suffix(".scope").unwrap_or(component);
    if let Some(start) = name.len().checked_sub(64).filter(|start| name.is_char_boundary(*start)) {
        let (prefix, id) = name.split_at(start);
        if is_hex(id, 64) && (prefix.is_empty() || prefix.ends_with(['-', '_', ':', '.'])) {
            return Some(id.to_owned());
        }
    }
    let fargate = name.split_once('-').is_some_and(|(task, number)| {
        is_hex(task, 32) && !number.is_empty() && number.len() <= 20 && number.bytes().all(|byte| byte.is_ascii_digit())
    });
    let garden = parents[1] == b"garden" || (parents[0] == b"garden" && matches!(parents[1], b"good" | b"bad"));
    let identifier =
        fargate || is_grouped_hex(name, &[8, 4, 4, 4, 4]) || (is_uuid(name) && (garden || parents[1] == b"mesos"));
    identifier.then(|| name.to_owned())
}

/// The name of an LXC container or of a machine of systemd-machined. Virtual machines (`machine-qemu-…`) are none: their
/// process is the hypervisor.
fn machine(component: &str, parents: [&[u8]; 2]) -> Option<String> {
    let name = if let Some(name) = component.strip_prefix("lxc.payload.") {
        name.to_owned()
    } else if matches!(parents[1], b"lxc" | b"lxc.payload") && !component.starts_with("lxc.monitor") {
        component.to_owned()
    } else if let Some(name) = component.strip_prefix("systemd-nspawn@").and_then(|rest| rest.strip_suffix(".service"))
    {
        unescape(name)
    } else if let Some(name) = component.strip_prefix("machine-").and_then(|rest| rest.strip_suffix(".scope")) {
        let name = unescape(name);
        if name.starts_with("qemu-") {
            return None;
        }
        name
    } else {
        return None;
    };
    (!name.is_empty()).then(|| sanitize(name.as_bytes(), MAX_NAME))
}

/// The name of a service unit, or of a virtual machine's scope. Sessions, slices, other scopes and the managers of users
/// name no service.
fn unit(component: &str) -> Option<String> {
    let name = match component.strip_suffix(".service") {
        Some(name) if name.starts_with("user@") => return None,
        Some(name) => unescape(name),
        None => unescape(component.strip_prefix("machine-")?.strip_suffix(".scope")?),
    };
    (!name.is_empty()).then(|| sanitize(name.as_bytes(), MAX_NAME))
}

/// Undoes systemd's escaping: `\x2d` is `-` (systemd.unit(5)).
fn unescape(name: &str) -> String {
    let bytes = name.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut index = 0;
    while index < bytes.len() {
        let escaped = bytes[index..].strip_prefix(b"\\x").and_then(|rest| rest.get(..2)).and_then(hex_byte);
        out.push(escaped.unwrap_or(bytes[index]));
        index += if escaped.is_some() { 4 } else { 1 };
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn hex_byte(digits: &[u8]) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    u8::try_from(digit(*digits.first()?)? * 16 + digit(*digits.get(1)?)?).ok()
}

fn is_uuid(text: &str) -> bool {
    is_grouped_hex(text, &[8, 4, 4, 4, 12])
}

fn is_grouped_hex(text: &str, groups: &[usize]) -> bool {
    text.split('-').count() == groups.len() && text.split('-').zip(groups).all(|(part, length)| is_hex(part, *length))
}

fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "3dcad4c4f7e0f0d0b6d1a7a6a0e0f3f57ce9ae0a23b1b3c9a9a3f2e4d5c6b7a8";
    const OUTER: &str = "a0b1c2d3e4f5061728394a5b6c7d8e9fa0b1c2d3e4f5061728394a5b6c7d8e9f";
    const UID: &str = "b0f1a9e6-7c1d-4a53-9a1c-1f5a0c3d2e4b";
    const STATIC_UID: &str = "d5f0a1b2c3d4e5f60718293a4b5c6d7e";

    /// `ID`, `OUTER`, `UID`, `UID_` (underscores) and `STATIC` in a layout stand for the constants.
    fn fill(layout: &str) -> String {
        layout
            .replace("UID_", &UID.replace('-', "_"))
            .replace("UID", UID)
            .replace("STATIC", STATIC_UID)
            .replace("OUTER", OUTER)
            .replace("ID", ID)
    }

    /// container.id, k8s.pod.uid, unit
    type Expected<'a> = (Option<&'a str>, Option<&'a str>, Option<&'a str>);

    #[test]
    fn layouts_of_every_runtime() {
        let (id, uid): (Option<&str>, Option<&str>) = (Some(ID), Some(UID));
        let layouts: &[(&str, Expected<'_>)] = &[
            ("/docker/ID", (id, None, None)),
            ("/system.slice/docker-ID.scope", (id, None, None)),
            ("/system.slice/docker-ID.scope/init.scope", (id, None, None)),
            ("/docker/ID/system.slice/nginx.service", (id, None, Some("nginx"))),
            ("/../../docker/ID", (id, None, None)),
            ("/../cri-containerd-ID.scope", (id, None, None)),
            ("/system.slice/docker-ID.scope (deleted)", (id, None, None)),
            ("/default/ID", (id, None, None)),
            ("/user.slice/user-1000.slice/user@1000.service/user.slice/nerdctl-ID.scope", (None, None, None)),
            ("/kubepods/burstable/podUID/ID", (id, uid, None)),
            ("/kubepods/podUID/ID", (id, uid, None)),
            ("/kubepods/besteffort/podSTATIC/ID", (id, Some(STATIC_UID), None)),
            ("/kubepods/burstable/podUID/crio-ID", (id, uid, None)),
            (
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podUID_.slice/cri-containerd-ID.scope",
                (id, uid, None),
            ),
            ("/kubepods.slice/kubepods-podUID_.slice/crio-ID.scope", (id, uid, None)),
            ("/kubepods.slice/kubepods-podUID_.slice/crio-conmon-ID.scope", (None, uid, None)),
            ("/kubepods.slice/kubepods-podUID_.slice/docker-ID.scope", (id, uid, None)),
            ("/system.slice/containerd.service/kubepods-burstable-podUID_.slice:cri-containerd:ID", (id, uid, None)),
            ("/docker/OUTER/kubelet/kubepods/burstable/podUID/ID", (id, uid, None)),
            ("/docker/OUTER/kubelet/kubepods/burstable/podUID", (None, uid, None)),
            (
                "/system.slice/docker-OUTER.scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-podUID_.slice/cri-containerd-ID.scope",
                (id, uid, None),
            ),
            ("/kubepods/burstable/podUID/ID/docker/OUTER", (id, uid, None)),
            ("/kubepods/burstable/podUID/ID/kubepods/podSTATIC/OUTER", (id, uid, None)),
            ("/user.slice/kubepods-podUID_.slice/cri-containerd-ID.scope", (None, None, None)),
            ("/system.slice/web.service/kubepods-podUID_.slice/cri-containerd-ID.scope", (id, None, None)),
            ("/../../user.slice/user@7.service/kubepods-podUID_.slice", (None, None, None)),
            ("/docker/ID/docker/OUTER", (id, None, None)),
            ("/machine.slice/libpod-ID.scope/container", (id, None, None)),
            ("/machine.slice/libpod-conmon-ID.scope", (None, None, None)),
            ("/machine.slice/machine-libpod_pod_OUTER.slice/libpod-ID.scope", (id, None, None)),
            ("/libpod_parent/OUTER/libpod-ID", (id, None, None)),
            ("/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-ID.scope/container", (None, None, None)),
            (
                "/user.slice/user-1000.slice/user@1000.service/app.slice/web.service/libpod-payload-ID",
                (None, None, Some("web")),
            ),
            ("/system.slice/ID-4f2a.service", (None, None, Some(&format!("{ID}-4f2a")))),
            (
                "/machine.slice/systemd-nspawn@web\\x2d1.service/payload/system.slice/redis.service",
                (Some("web-1"), None, Some("redis")),
            ),
            ("/machine.slice/systemd-nspawn@web.service/payload", (Some("web"), None, None)),
            ("/machine.slice/systemd-nspawn@web.service/supervisor", (None, None, Some("systemd-nspawn@web"))),
            ("/machine.slice/machine-web\\x2d1.scope", (Some("web-1"), None, None)),
            ("/machine.slice/machine-qemu\\x2d1\\x2ddb.scope/libvirt/emulator", (None, None, Some("qemu-1-db"))),
            ("/lxc/web/ns", (Some("web"), None, None)),
            ("/lxc.payload.web/init.scope", (Some("web"), None, None)),
            ("/lxc.monitor.web", (None, None, None)),
            ("/ecs/4b5c6d7e8f9001122334455667788990/ID", (id, None, None)),
            (
                "/ecs/4b5c6d7e8f9001122334455667788990/4b5c6d7e8f9001122334455667788990-2834650134",
                (Some("4b5c6d7e8f9001122334455667788990-2834650134"), None, None),
            ),
            ("/ecstasks.slice/ecstasks-4b5c6d7e8f9001122334455667788990.slice/docker-ID.scope", (id, None, None)),
            (
                "/system.slice/garden.service/garden/6f265890-5165-7fab-6b52-18d1",
                (Some("6f265890-5165-7fab-6b52-18d1"), None, None),
            ),
            ("/garden/good/UID", (uid, None, None)),
            ("/mesos/UID", (uid, None, None)),
            ("/system.slice/nginx.service", (None, None, Some("nginx"))),
            (
                "/system.slice/system-postgresql.slice/postgresql@15-main.service",
                (None, None, Some("postgresql@15-main")),
            ),
            ("/system.slice/my\\x2dshop.service", (None, None, Some("my-shop"))),
            ("/user.slice/user-1000.slice/user@1000.service/app.slice/dbus.service", (None, None, Some("dbus"))),
            ("/user.slice/user-1000.slice/user@1000.service/app.slice/app-firefox-12.scope", (None, None, None)),
            ("/user.slice/user-1000.slice/session-3.scope", (None, None, None)),
            ("/init.scope", (None, None, None)),
            ("/", (None, None, None)),
            ("", (None, None, None)),
            ("/poder/podium", (None, None, None)),
        ];
        for (layout, expected) in layouts {
            let found = Placement::from_path(fill(layout).as_bytes());
            let seen = (found.container_id.as_deref(), found.pod_uid.as_deref(), found.unit.as_deref());
            assert_eq!(seen, *expected, "{layout}");
        }
    }

    #[test]
    fn the_file_of_a_process_on_v1_v2_and_both() {
        let unit = |name: &str| Placement { unit: Some(name.into()), ..Placement::default() };
        let container = Placement { container_id: Some(ID.into()), ..Placement::default() };
        for (file, expected) in [
            ("0::/system.slice/docker-ID.scope\n", container.clone()),
            (
                "12:pids:/docker/ID\n3:cpu,cpuacct:/docker/ID\n1:name=systemd:/docker/ID\n0::/system.slice/containerd.service\n",
                container.clone(),
            ),
            ("4:memory:/docker/ID\n1:name=systemd:/\n0::/\n", container),
            ("4:memory:/system.slice/a.service\n1:name=systemd:/system.slice/b.service\n", unit("b")),
            ("4:memory:/x\n0::/system.slice/with:colon.service\n", unit("with:colon")),
            ("x::/docker/ID\n0:/docker/ID\n0::docker/ID\n::\n\n", Placement::default()),
        ] {
            let found = Placement::from_cgroup_file(fill(file).as_bytes());
            assert_eq!(Placement { group: None, ..found }, expected, "{file}");
        }
    }

    #[test]
    fn hostile_paths() {
        let long = format!("/{}.service", "n".repeat(4096));
        assert_eq!(Placement::from_path(long.as_bytes()).unit.map(|unit| unit.len()), Some(MAX_NAME));
        assert_eq!(Placement::from_path(b"/a\nb\0.service").unit.as_deref(), Some("a\\nb\\u{0}"));
        assert_eq!(Placement::from_path(b"/x\\x0a\\x1b[2J.service").unit.as_deref(), Some("x\\n\\u{1b}[2J"));
        assert_eq!(Placement::from_path(b"/\\x2.service").unit.as_deref(), Some("\\x2"));
        assert!(Placement::from_path(b"/\xff\xfe/docker-\xff.scope").is_empty());
        assert!(Placement::from_path(&b"/a".repeat(100_000)).is_empty());
        let wide = format!("/{}", "ü".repeat(40));
        assert!(Placement::from_path(wide.as_bytes()).is_empty());
        assert_eq!(Placement::from_path(fill("/docker/ID/x\n/y").as_bytes()).container_id.as_deref(), Some(ID));
    }
}
