//! One long command: what runs, for how long, and its output only when something went wrong.
//!
//! Steps may run beside each other. A terminal gets a spinner for each, everything else a line at the start, one per half minute and one at the end.

use std::fs::File;
use std::io::{IsTerminal, Read, Seek};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::LazyLock;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// How often a step without a terminal says that it is still alive.
const SIGN_OF_LIFE: Duration = Duration::from_secs(30);

/// All spinners, one below the other.
static SPINNERS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// What a finished step leaves behind.
pub(crate) struct Outcome {
    pub(crate) status: ExitStatus,
    /// Standard output and standard error as they came.
    pub(crate) output: String,
}

/// Runs `command` and fails with its output when it fails.
pub(crate) fn run(title: &str, command: &mut Command) -> Result<Outcome> {
    let outcome = observe(title, command)?;
    if !outcome.status.success() {
        bail!("{title}: {} ({})\n{}", outcome.status, shown(command), outcome.output.trim_end());
    }
    Ok(outcome)
}

/// Runs `command` to its end, whatever that is.
pub(crate) fn observe(title: &str, command: &mut Command) -> Result<Outcome> {
    let mut log = unnamed_file()?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log.try_clone()?);
    let started = Instant::now();
    let progress = Progress::start(title);
    let status = command.spawn().and_then(|mut child| child.wait());
    let status = status.with_context(|| format!("cannot run {}", shown(command)))?;
    let took = started.elapsed();
    progress.finish(title, status.success(), took);
    let mut bytes = Vec::new();
    log.rewind()?;
    log.read_to_end(&mut bytes)?;
    Ok(Outcome { status, output: String::from_utf8_lossy(&bytes).into_owned() })
}

/// Writes to standard error, above the spinners.
pub(crate) fn say(text: &str) {
    SPINNERS.suspend(|| eprintln!("{text}"));
}

/// A command as one would type it.
pub(crate) fn shown(command: &Command) -> String {
    let variables = command
        .get_envs()
        .filter_map(|(name, value)| Some(format!("{}={}", name.display(), quoted(&value?.to_string_lossy()))));
    let words =
        std::iter::once(command.get_program()).chain(command.get_args()).map(|word| quoted(&word.to_string_lossy()));
    variables.chain(words).collect::<Vec<_>>().join(" ")
}

pub(crate) fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Gone with its last handle, so an interrupted step leaves nothing.
pub(crate) fn unnamed_file() -> Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let folder = std::env::temp_dir();
    let mut options = File::options();
    options.read(true).write(true).mode(0o600).custom_flags(libc::O_TMPFILE);
    options.open(&folder).with_context(|| format!("a scratch file in {}", folder.display()))
}

enum Progress {
    Spinner(ProgressBar),
    /// Dropping the sender ends the thread.
    Lines {
        over: mpsc::Sender<()>,
        thread: thread::JoinHandle<()>,
    },
}

impl Progress {
    fn start(title: &str) -> Self {
        if std::io::stderr().is_terminal() { Self::spinner(title) } else { Self::lines(title.to_owned()) }
    }

    fn spinner(title: &str) -> Self {
        let style = ProgressStyle::with_template("{spinner} {msg} [{elapsed}]").expect("the template is constant");
        let bar = ProgressBar::new_spinner().with_style(style).with_message(title.to_owned());
        let bar = SPINNERS.add(bar);
        bar.enable_steady_tick(Duration::from_millis(120));
        Self::Spinner(bar)
    }

    fn lines(title: String) -> Self {
        eprintln!("  {title} ...");
        let (over, ended) = mpsc::channel::<()>();
        let started = Instant::now();
        let thread = thread::spawn(move || {
            while ended.recv_timeout(SIGN_OF_LIFE) == Err(RecvTimeoutError::Timeout) {
                eprintln!("  {title} ... {} s so far", started.elapsed().as_secs());
            }
        });
        Self::Lines { over, thread }
    }

    fn finish(self, title: &str, fine: bool, took: Duration) {
        match self {
            Self::Spinner(bar) => bar.finish_and_clear(),
            Self::Lines { over, thread } => {
                drop(over);
                // A panic of the ticker has been printed; the step itself is not touched by it.
                let _ = thread.join();
            }
        }
        let mark = if fine { "done" } else { "FAILED" };
        say(&format!("  {title}: {mark} in {}", seconds(took)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_so_that_a_shell_would_take_it() {
        let mut command = Command::new("cargo");
        command.args(["build", "--cfg", "a=\"b c\""]).env("RUSTFLAGS", "it's").env_remove("RUSTC");
        assert_eq!(shown(&command), r#"RUSTFLAGS='it'\''s' cargo build --cfg 'a="b c"'"#);
    }

    #[test]
    fn a_failed_command_is_an_error_with_its_output() {
        let error = run("a try", Command::new("sh").args(["-c", "echo said; exit 3"])).err().expect("it exits with 3");
        let text = error.to_string();
        assert!(text.contains("exit status: 3") && text.contains("said"), "{text}");
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = run("a try", &mut Command::new("/nonexistent/program")).err().expect("it cannot start");
        assert!(format!("{error:#}").contains("/nonexistent/program"), "{error:#}");
    }
}
