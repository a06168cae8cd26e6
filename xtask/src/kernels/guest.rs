//! Boots a kernel under QEMU, without hardware help, and reads what it says over the serial line.
//!
//! The guest sees the files of this machine read-only. About one boot in 35 hangs in the firmware: a guest that has not
//! said a word in time is started once more; one that stops half-way is ended and its output kept.

use std::fs::File;
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

/// Emulated, a copy byte by byte is a loop of bytes, and a deeper page table costs with every miss.
const PROCESSOR: &str = "max,-erms,-fsrm,-la57,-pcid";

/// Where other work takes the processors, the timer's test misses its interrupts and the kernel gives up. What guards
/// against the neighbours of a machine only costs time in a guest.
const COMMAND_LINE: &str = "console=ttyS0 no_timer_check quiet loglevel=1 panic=-1 rdinit=/init \
     mitigations=off init_on_alloc=0 apparmor=0 audit=0";

/// What a guest said within its `life`, line by line. Starts it at most twice.
pub(super) fn run(image: &Path, initramfs: &File, life: Duration) -> Result<Vec<String>> {
    let first = boot(image, initramfs, life)?;
    if first.iter().any(|line| line.starts_with("@@ kernel")) { Ok(first) } else { boot(image, initramfs, life) }
}

fn boot(image: &Path, initramfs: &File, life: Duration) -> Result<Vec<String>> {
    let mut qemu = Qemu(command(image, initramfs)?.spawn().with_context(|| format!("start {QEMU}"))?);
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
        let limit = if lines.is_empty() { BOOT } else { life };
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

/// QEMU ends with the thread that starts it, and the initial RAM file system with QEMU: nothing stays, however we end.
fn command(image: &Path, initramfs: &File) -> Result<Command> {
    let mut qemu = Command::new("setpriv");
    qemu.args(["--pdeathsig=KILL", QEMU]);
    qemu.args(["-accel", "tcg,thread=multi", "-cpu", PROCESSOR, "-smp", "2", "-m", "1024"]);
    qemu.args(["-nodefaults", "-no-reboot"]);
    qemu.args(["-display", "none", "-serial", "file:/dev/stdout", "-nic", "none"]);
    qemu.args(["-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"]);
    qemu.arg("-kernel").arg(image).args(["-initrd", "/dev/stdin"]);
    qemu.args(["-append", COMMAND_LINE]);
    qemu.stdin(initramfs.try_clone()?).stdout(Stdio::piped());
    Ok(qemu)
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
