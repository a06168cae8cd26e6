//! The binary `sluice`: parse, start, turn the result into an exit code.

use std::process::ExitCode;

use proxy_userspace::args::{self, Command};
use proxy_userspace::config::Config;
use proxy_userspace::{cli, reap};

/// The command line was not understood; nothing was touched.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let args = match args::parse(std::env::args_os()) {
        Ok(args) => args,
        Err(error) => {
            // Nobody to tell when standard error is closed.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { USAGE } else { 0 });
        }
    };
    let result = match args.command {
        Command::Run(run) => match Config::new(&run, &hostname()) {
            Ok(config) => proxy_userspace::agent::run(&config).map(ExitCode::from),
            Err(invalid) => return fail(&invalid.into(), USAGE),
        },
        Command::List(list) => cli::list::run(&list),
        Command::Check(check) => cli::check::run(&check),
        Command::Cleanup(cleanup) => cli::cleanup::run(&cleanup),
        Command::Reap(reap) => reap::run(&reap),
    };
    result.unwrap_or_else(|error| fail(&error, 1))
}

/// Prints an error with everything that led to it, one cause a line; libraries like to repeat what is behind them.
fn fail(error: &anyhow::Error, code: u8) -> ExitCode {
    let mut said = error.to_string();
    eprintln!("Error: {said}");
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !said.contains(&cause) {
            eprintln!("  because: {cause}");
        }
        said = cause;
    }
    ExitCode::from(code)
}

fn hostname() -> String {
    nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}
