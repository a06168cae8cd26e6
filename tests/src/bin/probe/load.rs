//! Dials again and again and counts, until standard input closes. Every line on it asks for the counts so far.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};
use proxy_tests::probe::{Kind, Outcome, Report};

use crate::socket::{Socket, dial};

/// Leaves the machine room for what is tested.
pub(crate) const PAUSE: Duration = Duration::from_millis(1);

type Question = Box<dyn Fn() -> Outcome + Send>;

pub(crate) fn run(traffic: &str, to: SocketAddr, pause: Duration) -> Result<()> {
    let question = question(traffic, to)?;
    let counts = Arc::new(Mutex::new(Report::default()));
    let stop = Arc::new(AtomicBool::new(false));
    let worker = thread::spawn({
        let (counts, stop) = (Arc::clone(&counts), Arc::clone(&stop));
        move || {
            while !stop.load(Ordering::Relaxed) {
                let outcome = question();
                count(&mut counts.lock().expect("no panic under the lock"), outcome);
                thread::sleep(pause);
            }
        }
    });
    for line in io::stdin().lines() {
        line?;
        tell(&counts)?;
    }
    stop.store(true, Ordering::Relaxed);
    worker.join().expect("the worker does not panic");
    tell(&counts)
}

fn question(traffic: &str, to: SocketAddr) -> Result<Question> {
    Ok(match traffic {
        "tcp" => Box::new(move || dial(Kind::Tcp, to, None)),
        "udp" => Box::new(move || dial(Kind::Udp, to, None)),
        "stream" => {
            let socket = Socket::open(Kind::Tcp, to.is_ipv6()).map_err(anyhow::Error::msg)?;
            socket.connect(to).and_then(|()| socket.receive()).map_err(anyhow::Error::msg)?;
            Box::new(move || socket.send(None).and_then(|()| socket.receive()))
        }
        "datagrams" => {
            let socket = Socket::open(Kind::Udp, to.is_ipv6()).map_err(anyhow::Error::msg)?;
            Box::new(move || socket.send(Some(to)).and_then(|()| socket.receive()))
        }
        other => bail!("no traffic is called {other}"),
    })
}

fn count(report: &mut Report, outcome: Outcome) {
    match outcome {
        Ok(answer) => {
            report.answered += 1;
            *report.by.entry(answer.by).or_default() += 1;
        }
        Err(error) => {
            report.failed += 1;
            *report.errors.entry(error).or_default() += 1;
        }
    }
}

fn tell(counts: &Mutex<Report>) -> Result<()> {
    println!("{}", serde_json::to_string(&*counts.lock().expect("no panic under the lock"))?);
    Ok(())
}
