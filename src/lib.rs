//! nimgate: the org-wide gateway in front of NVIDIA inference.
//!
//! One request takes one path, and the modules are named for its stages:
//!
//! ```text
//! listener → authenticate → find operation and pool → read and validate → pick endpoint → upstream → label → record
//! ```
//!
//! `ARCHITECTURE.md` walks one request through the files. The library exists so that tests and benches can link what
//! the binary runs; its interface is not stable.

pub mod access_log;
pub mod admin;
pub mod admission;
pub mod auth;
pub mod balance;
pub mod cache;
pub mod catalogue;
pub mod cli;
pub mod config;
pub mod directory;
pub mod discovery;
pub mod failure;
pub mod finder;
pub mod ids;
pub mod live;
pub mod log;
pub mod meter;
pub mod observe;
pub mod otlp;
pub mod owner;
pub mod pacer;
pub mod probe;
pub mod proxy;
pub mod quota;
pub mod record;
pub mod reload;
pub mod revision;
pub mod route;
pub mod schema;
pub mod scrape;
pub mod server;
pub mod signals;
pub mod sim;
pub mod store;
pub mod telemetry;
pub mod trace;
pub mod transcript;
pub mod upstream;
