//! Many bytes there and back over one connection, both directions at once: large segments, whole windows, and a comparison of
//! what came back with what was sent.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use proxy_tests::probe::Outcome;

/// The line after which a server gives back all that it gets.
pub(crate) const WANTED: &str = "exchange\n";

/// Long enough for a busy machine: no single byte comes later.
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) fn exchange(to: SocketAddr, bytes: u64) -> Outcome<()> {
    let result = TcpStream::connect_timeout(&to, PATIENCE).and_then(|stream| send_and_compare(&stream, bytes));
    result.map_err(|error| error.to_string())
}

fn send_and_compare(mut stream: &TcpStream, bytes: u64) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(WANTED.as_bytes())?;
    let mut answers = BufReader::new(stream);
    answers.read_line(&mut String::new())?;
    thread::scope(|scope| {
        let sender = scope.spawn(|| {
            io::copy(&mut content(bytes), &mut &*stream)?;
            stream.shutdown(std::net::Shutdown::Write)
        });
        let same = is_content(answers, bytes);
        sender.join().expect("the sender does not panic")?;
        if same? { Ok(()) } else { Err(io::Error::other("other bytes came back")) }
    })
}

fn is_content(mut back: impl Read, bytes: u64) -> io::Result<bool> {
    let (mut wanted, mut found) = (Vec::new(), Vec::new());
    content(bytes).read_to_end(&mut wanted)?;
    back.read_to_end(&mut found)?;
    Ok(wanted == found)
}

/// No two stretches of it are the same, so that none that is lost, doubled or in another place goes unnoticed.
fn content(bytes: u64) -> impl Read {
    Numbers { next: 0 }.take(bytes)
}

struct Numbers {
    next: u32,
}

impl Read for Numbers {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (words, _) = buffer.as_chunks_mut::<4>();
        for word in &mut *words {
            *word = self.next.wrapping_mul(0x9e37_79b1).to_be_bytes();
            self.next += 1;
        }
        Ok(4 * words.len())
    }
}
