//! The program's commands: `run` and what surrounds it (`shutdown`), and those that only answer (`check`, `explain`, `demo`).

pub mod check;
pub mod demo;
pub mod explain;
pub mod run;
pub mod shutdown;
