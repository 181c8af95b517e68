//! A part of a test that this host cannot run: printed here, a failure in CI.

/// Reports that a part of a test did not run, and why.
///
/// # Panics
/// In CI (`CI=true`), where everything must run.
pub(crate) fn skip(why: &str) {
    assert!(!std::env::var("CI").is_ok_and(|ci| ci == "true" || ci == "1"), "cannot run here: {why}");
    eprintln!("skipped: {why}");
}
