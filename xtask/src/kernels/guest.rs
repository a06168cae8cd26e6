//! Boots a kernel under QEMU, without hardware help, and reads what it says over the serial line.
//!
//! The guest sees the files of this machine read-only. About one boot in 35 hangs in the firmware: a guest that has not
//! said a word in time is started once more; one that stops half-way is ended and its output kept.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

pub(super) const QEMU: &str = "qemu-system-x86_64";

/// From the start of QEMU to the first word; 5 to 30 seconds are usual.
const BOOT: Duration = Duration::from_mins(2);
/// From the start of QEMU to the end. Longer than any guest takes, shorter than anybody wants to wait.
const LIFE: Duration = Duration::from_mins(10);

/// What a guest said, line by line. Starts it at most twice.
pub(super) fn run(image: &Path, initramfs: &Path) -> Result<Vec<String>> {
    let first = boot(image, initramfs)?;
    if first.iter().any(|line| line.starts_with("@@ kernel")) { Ok(first) } else { boot(image, initramfs) }
}

fn boot(image: &Path, initramfs: &Path) -> Result<Vec<String>> {
    let mut qemu = Qemu(command(image, initramfs).spawn().with_context(|| format!("start {QEMU}"))?);
    let stdout = qemu.0.stdout.take().context("its output is a pipe")?;
    let (send, receive) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
            if send.send(line).is_err() {
                break;
            }
        }
    });
    let (started, mut lines) = (Instant::now(), Vec::new());
    loop {
        let limit = if lines.is_empty() { BOOT } else { LIFE };
        match receive.recv_timeout(limit.saturating_sub(started.elapsed())) {
            Ok(line) => push(&mut lines, line),
            Err(RecvTimeoutError::Disconnected) => return Ok(lines),
            Err(RecvTimeoutError::Timeout) => {
                lines.push(format!("@@ failed: nothing more within {} s", limit.as_secs()));
                return Ok(lines);
            }
        }
    }
}

/// What firmware and kernel say before our first process does not count.
fn push(lines: &mut Vec<String>, line: String) {
    if !lines.is_empty() || line.starts_with("@@ ") || line.contains("Kernel panic") {
        lines.push(line);
    }
}

fn command(image: &Path, initramfs: &Path) -> Command {
    let mut qemu = Command::new(QEMU);
    qemu.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1024", "-nodefaults", "-no-reboot"]);
    qemu.args(["-display", "none", "-serial", "stdio", "-nic", "none"]);
    qemu.args(["-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"]);
    qemu.arg("-kernel").arg(image).arg("-initrd").arg(initramfs);
    // Where other work takes the processors, the timer's test misses its interrupts and the kernel gives up.
    qemu.args(["-append", "console=ttyS0 no_timer_check quiet loglevel=1 panic=-1 rdinit=/init"]);
    qemu.stdin(Stdio::null()).stdout(Stdio::piped());
    qemu
}

/// Ends with its handle.
struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        // One that has ended by itself is what we want.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
