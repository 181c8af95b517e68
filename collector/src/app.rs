//! The program's commands: `run` and what surrounds it (`shutdown`), and those that only answer (`check`, `explain`, `demo`).

mod capture;
pub mod check;
pub mod demo;
pub mod explain;
pub mod run;
mod services;
pub mod shutdown;
