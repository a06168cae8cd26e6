//! The process that tests start in nodes and pods: it serves, dials on request, or makes load.

mod exchange;
mod load;
mod obey;
mod serve;
mod socket;
mod tunnel;

use std::env;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("probe {}: {error:#}", arguments.join(" "));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[&str]) -> Result<()> {
    match arguments {
        ["serve", name, addresses @ ..] => serve::run(name, addresses),
        ["obey"] => obey::run(),
        ["receive"] => obey::receive_on_stdin(),
        ["load", traffic, to] => load::run(traffic, to.parse()?, load::PAUSE),
        ["load", traffic, to, "without-pauses"] => load::run(traffic, to.parse()?, Duration::ZERO),
        ["resolve", transport, server, record, name] => {
            proxy_tests::dns::resolve(transport, server.parse()?, record, name)?
                .iter()
                .for_each(|answer| println!("{answer}"));
            Ok(())
        }
        ["tunnel", name, far] => tunnel::run(name, Path::new(far)),
        ["janitor", cgroup] => proxy_tests::world::clean_up_after(Path::new(cgroup)),
        _ => bail!(
            "serve NAME ADDRESS… | obey | receive | load tcp|udp|datagrams ADDRESS [without-pauses] | resolve udp|tcp SERVER TYPE NAME | \
             tunnel NAME NAMESPACE | janitor CGROUP"
        ),
    }
}
