//! Carries packets between two devices without link headers, each in a network namespace of its own.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::thread;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};

/// Larger than any packet.
const ROOM: usize = 1 << 16;

/// One device `name` in this namespace, the other one in `far`.
pub(crate) fn run(name: &str, far: &Path) -> Result<()> {
    let far = File::open(far).with_context(|| format!("open {}", far.display()))?;
    let near_end = proxy_tests::tun(name).with_context(|| format!("make {name}"))?;
    setns(far, CloneFlags::CLONE_NEWNET).context("enter the namespace of the far end")?;
    let far_end = proxy_tests::tun(name).with_context(|| format!("make {name} at the far end"))?;
    let ends = [(near_end.try_clone()?, far_end.try_clone()?), (far_end, near_end)];
    println!("ready");
    for (from, to) in ends {
        thread::spawn(move || carry(from, to));
    }
    // Who started it closes the other end, or kills this process.
    io::stdin().lines().for_each(drop);
    Ok(())
}

fn carry(mut from: File, mut to: File) -> io::Result<()> {
    let mut packet = vec![0; ROOM];
    loop {
        let length = from.read(&mut packet)?;
        // A device that is down loses packets, as a cable does.
        let _ = to.write_all(&packet[..length]);
    }
}
