//! The limit of open files: as high as the system allows, since every connection of an application takes one.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit of open files to the hard limit.
///
/// # Errors
/// The kernel refuses.
pub fn raise_limit() -> rustix::io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return Ok(());
    }
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let before = getrlimit(Resource::Nofile);
        let lowered = before.maximum.map_or(1024, |maximum| maximum.min(1024));
        setrlimit(Resource::Nofile, Rlimit { current: Some(lowered), ..before }).expect("a lower limit");
        raise_limit().expect("the hard limit");
        let after = getrlimit(Resource::Nofile);
        assert_eq!((after.current, after.maximum), (before.maximum, before.maximum));
    }
}
