//! `cargo xtask`: everything a developer or a CI job runs, with nothing to install first but Rust.
//!
//! `cargo xtask test --quick` needs Rust alone. `cargo xtask test` also fetches the real servers and clients that the
//! whole-system tests talk to, while cargo compiles, and keeps them in a cache folder.

mod check;
mod debian;
mod group;
mod install;
mod lane;
mod parts;
mod seeds;
mod step;
mod tools;
mod workspace;

use std::process::ExitCode;

use anyhow::{Result, bail};

const USAGE: &str = "usage: cargo xtask COMMAND

  test [--quick] [--lane NAME]...   run lanes and print a table of their times [default: all]
                                    lanes: quick (Rust alone), real (real servers and clients)
                                    --quick is --lane quick
  parts [--benches]                 install what the real lane needs, or what the benches need; run nothing
  bench [ARGS]...                   run the benches, with the clients that `download` compares with and the server of `load`

BERTH_PARTS names the folder for installed parts [default: ~/.cache/berth/parts]";

fn main() -> ExitCode {
    match run(&std::env::args().skip(1).collect::<Vec<_>>()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(fault) => {
            say(&format!("error: {fault:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Carries out one command line; false means that something failed and was told about.
fn run(args: &[String]) -> Result<bool> {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["test", options @ ..] => lane::run(&lanes(options)?),
        ["parts"] => parts::Parts::install().map(|parts| {
            say(&parts.to_string());
            true
        }),
        ["parts", "--benches"] => parts::BenchParts::install().map(|parts| {
            say(&parts.to_string());
            true
        }),
        ["bench", more @ ..] => bench(more),
        ["help" | "-h" | "--help"] => {
            say(USAGE);
            Ok(true)
        }
        _ => bail!("cannot read the command line\n\n{USAGE}"),
    }
}

/// Runs the benches that `names` choose, with what they need installed before.
fn bench(names: &[&str]) -> Result<bool> {
    let mut benches = step::Step::cargo("benches", ["bench", "-p", "berth-benches", "--"]).args(names);
    if are_chosen(names, "load") {
        let parts = parts::Parts::install()?;
        say(&parts.to_string());
        benches = benches.envs(parts.environment());
        let build = step::Step::cargo("build", ["build", "--release", "-p", "berth"]).run(None)?;
        if build.fault.is_some() {
            return Ok(false);
        }
    }
    if are_chosen(names, "download") {
        let parts = parts::BenchParts::install()?;
        say(&parts.to_string());
        benches = benches.envs(parts.environment());
    }
    benches.run(None).map(|outcome| outcome.fault.is_none())
}

/// True where `bench` is among those that `names` choose; none chooses all.
fn are_chosen(names: &[&str], bench: &str) -> bool {
    let mut chosen = names.iter().filter(|name| !name.starts_with('-')).peekable();
    chosen.peek().is_none() || chosen.any(|name| *name == bench)
}

/// The lanes that `options` ask for, each once, in their own order.
fn lanes(options: &[&str]) -> Result<Vec<lane::Lane>> {
    let mut asked = Vec::new();
    let mut rest = options.iter();
    while let Some(option) = rest.next() {
        let name = match *option {
            "--quick" => "quick",
            "--lane" => rest.next().copied().unwrap_or_default(),
            other => other.strip_prefix("--lane=").unwrap_or(""),
        };
        match lane::Lane::ALL.into_iter().find(|lane| lane.name() == name) {
            Some(lane) => asked.push(lane),
            None => bail!("cannot read option {option:?}\n\n{USAGE}"),
        }
    }
    Ok(lane::Lane::ALL.into_iter().filter(|lane| asked.is_empty() || asked.contains(lane)).collect())
}

/// One line to the person who runs this, after what cargo has written so far.
#[allow(clippy::print_stdout, reason = "this is a command line tool")]
fn say(text: &str) {
    println!("{text}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lane::Lane;

    #[test]
    fn servers_and_other_clients_are_installed_only_for_the_benches_that_need_them() {
        for (names, expected) in
            [(vec![], true), (vec!["--quiet"], true), (vec!["download"], true), (vec!["growth", "download"], true), (vec!["growth", "reload"], false)]
        {
            assert_eq!(are_chosen(&names, "download"), expected, "{names:?}");
        }
    }

    #[test]
    fn options_choose_lanes_once_and_in_order() {
        for (options, expected) in [
            (vec![], vec![Lane::Quick, Lane::Real]),
            (vec!["--quick"], vec![Lane::Quick]),
            (vec!["--lane", "real", "--quick", "--lane=real"], vec![Lane::Quick, Lane::Real]),
            (vec!["--lane=real"], vec![Lane::Real]),
        ] {
            assert_eq!(lanes(&options).expect("known lanes"), expected, "{options:?}");
        }
        for wrong in [vec!["--lane"], vec!["--lane", "none"], vec!["real"], vec!["--quik"]] {
            assert!(lanes(&wrong).is_err(), "{wrong:?}");
        }
    }
}
