//! Answers every connection and every datagram with `NAME CLIENT-ADDRESS`. A stream that says so has its bytes back
//! instead ([`crate::exchange`]).

use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;

use anyhow::{Context, Result};

use crate::exchange;

pub(crate) fn run(name: &str, addresses: &[&str]) -> Result<()> {
    for address in addresses {
        let address: SocketAddr = address.parse().with_context(|| format!("address {address}"))?;
        let streams = TcpListener::bind(address).with_context(|| format!("listen on {address}"))?;
        let datagrams = UdpSocket::bind(address).with_context(|| format!("bind {address}"))?;
        let (tcp, udp) = (name.to_owned(), name.to_owned());
        thread::spawn(move || serve_streams(&tcp, &streams));
        thread::spawn(move || serve_datagrams(&udp, &datagrams));
    }
    println!("ready");
    // The test holds the other end and closes it, or kills this process.
    io::stdin().lines().for_each(drop);
    Ok(())
}

fn serve_streams(name: &str, listener: &TcpListener) {
    for stream in listener.incoming().flatten() {
        let name = name.to_owned();
        thread::spawn(move || serve_stream(&name, &stream));
    }
}

/// Greets, then answers once more for every line.
fn serve_stream(name: &str, mut stream: &TcpStream) -> io::Result<()> {
    let answer = format!("{name} {}\n", stream.peer_addr()?);
    stream.write_all(answer.as_bytes())?;
    let mut questions = BufReader::new(stream);
    let mut line = String::new();
    while questions.read_line(&mut line)? > 0 {
        if line == exchange::WANTED {
            return io::copy(&mut questions, &mut stream).map(drop);
        }
        stream.write_all(answer.as_bytes())?;
        line.clear();
    }
    Ok(())
}

fn serve_datagrams(name: &str, socket: &UdpSocket) {
    let mut question = vec![0; 1 << 16];
    loop {
        // A refusal that an earlier answer met is reported here; it is not about this question.
        if let Ok((length, client)) = socket.recv_from(&mut question) {
            let mut answer = format!("{name} {client}\n").into_bytes();
            answer.resize(wanted_length(&question[..length]).max(answer.len()), b' ');
            let _ = socket.send_to(&answer, client);
        }
    }
}

/// Of a question `who 3000` and whatever follows.
fn wanted_length(question: &[u8]) -> usize {
    let text = str::from_utf8(question).unwrap_or_default();
    text.split_whitespace().nth(1).and_then(|length| length.parse().ok()).unwrap_or(0)
}
