//! The rules that keep or drop a reset.

/// Rules in order; the first that matches decides, no match keeps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Filters {}
