//! The pages under `docs/` that are made from the code are what the code says now.

#![forbid(unsafe_code)]

use reset_collector_tests::reference::{PAGES, directory};

/// `docs/generate` sets it: the pages are written, not compared.
const WRITE: &str = "RESET_COLLECTOR_WRITE_DOCS";

#[test]
fn pages_say_what_the_code_says() {
    for (name, make) in PAGES {
        let (path, text) = (directory().join(name), make());
        if std::env::var_os(WRITE).is_some() {
            std::fs::write(&path, &text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
        let stands = std::fs::read_to_string(&path).unwrap_or_default();
        let difference = stands.lines().zip(text.lines()).find(|(old, new)| old != new);
        assert!(
            stands == text,
            "docs/{name} is not what the code says: run docs/generate. First difference: {difference:?}"
        );
    }
}
