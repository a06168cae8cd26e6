//! Sluice shown at work: a node, a client and three backends made of network namespaces, and an agent that follows a
//! folder of manifests. `cargo xtask demo` builds and runs it; nothing is left behind, also after Ctrl-C.

mod scene;
mod story;

use std::process::ExitCode;

use scene::Scratch;

fn main() -> ExitCode {
    match Scratch::new().and_then(|scratch| story::tell(&scratch)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nThe demo failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}
