//! Every example of the catalogue against the running gateway: each is a test of its own, named
//! `API::operation::RULE valid|invalid: example`. With `NIMGATE_WRITE_DOCS=1` writes docs/constraints.md instead of
//! checking that it is up to date.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a test fails by panicking"
)]

#[path = "catalogue/example.rs"]
mod example;
#[path = "gateway/support.rs"]
#[allow(dead_code, reason = "shared with the gateway tests, which use all of it")]
mod support;
#[path = "catalogue/table.rs"]
mod table;

use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Trial};
use nimgate::catalogue::Catalogue;
use nimgate::config::yaml;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let catalogue = Catalogue::load(None, yaml::parse_value, 25 << 20).expect("the embedded catalogue loads");
    let examples = example::all(&catalogue);
    let mut trials = vec![Trial::test("every rule has examples of both kinds", {
        let missing = example::without_both_kinds(&catalogue, &examples);
        move || if missing.is_empty() { Ok(()) } else { Err(missing.join("\n").into()) }
    })];
    trials.push(Trial::test("docs/constraints.md is up to date", {
        let table = table::render(&catalogue, &examples);
        move || table::check(&table)
    }));
    let runtime = Arc::new(
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime"),
    );
    let gateway = if arguments.list { None } else { Some(Arc::new(runtime.block_on(example::gateway()))) };
    for example in examples {
        let (runtime, gateway) = (Arc::clone(&runtime), gateway.clone());
        trials.push(Trial::test(example.name(), move || match &gateway {
            Some(gateway) => runtime.block_on(example.check(gateway)).map_err(Into::into),
            None => Ok(()),
        }));
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    // The gateway's child process ends with its handle, before the exit code is given.
    drop(gateway);
    conclusion.exit_code()
}
