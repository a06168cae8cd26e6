//! What the agent says, as plain lines on standard error; `-v` as in kube-proxy.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Once, at the start.
pub(crate) fn start(verbosity: u8) {
    let filter = EnvFilter::new(directives(verbosity));
    let subscriber =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(verbosity >= 4);
    subscriber.with_ansi(std::io::stderr().is_terminal()).init();
}

fn directives(verbosity: u8) -> &'static str {
    match verbosity {
        0 | 1 => "warn,proxy_userspace=info",
        2 | 3 => "warn,proxy_userspace=debug",
        4 | 5 => "info,proxy_userspace=trace",
        6..=8 => "info,proxy_userspace=trace,kube=debug,hyper_util=debug",
        _ => "trace",
    }
}
