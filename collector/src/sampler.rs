//! How many of the kept resets go on.

/// Rules in order; the first that matches decides, no match takes the default.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sampling {}
