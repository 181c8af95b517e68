//! Warnings about a destination that anybody on the way may impersonate, and about secrets that every user of the host may
//! read.

use std::{os::unix::fs::PermissionsExt, path::Path};

use crate::config::{reader::Reader, settings::Destination, yaml::NodeId};

const OTHERS_READ: u32 = 0o004;
const REMEDY: &str = "a file that its owner alone may read: chmod 400, in Kubernetes defaultMode: 0400";

/// Warns about the TLS settings of a destination.
pub(super) fn check(reader: &mut Reader<'_>, node: NodeId, destination: &Destination) {
    let tls = &destination.tls;
    if tls.insecure_skip_verify {
        let message = "any certificate is accepted: whoever is on the way can read what is exported, headers too";
        let node = reader.find(node, &["tls", "insecure_skip_verify"]);
        reader.warning(node, message, "false, with ca_file where the authority is a private one");
    }
    if let Some(key) = tls.key_file.as_deref().filter(|path| is_exposed(path)) {
        let node = reader.find(node, &["tls", "key_file"]);
        reader.warning(node, format!("every user of this host may read {}", key.display()), REMEDY);
    }
}

/// Warns about the files that a value refers to as `${file:PATH}`.
pub(super) fn check_files(reader: &mut Reader<'_>, node: NodeId, text: &str) {
    for reference in text.split("${file:").skip(1) {
        let path = Path::new(reference.split('}').next().unwrap_or_default());
        if is_exposed(path) {
            reader.warning(node, format!("every user of this host may read {}", path.display()), REMEDY);
        }
    }
}

fn is_exposed(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|file| file.permissions().mode() & OTHERS_READ != 0)
}
