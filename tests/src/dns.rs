//! Just enough of DNS to ask one question and to read what comes back (RFC 1035, 2782, 3596).

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

const TIMEOUT: Duration = Duration::from_secs(3);
/// Recursion desired, as resolvers ask.
const FLAGS: u16 = 0x0100;
const INTERNET: u16 = 1;
const ID: u16 = 0x5123;

/// Record types by their names.
const TYPES: [(&str, u16); 5] = [("A", 1), ("CNAME", 5), ("PTR", 12), ("AAAA", 28), ("SRV", 33)];

/// Asks `server` over `transport` (`udp` or `tcp`); each answer as `TYPE value`, sorted. No such name is no answer.
pub fn resolve(transport: &str, server: SocketAddr, record: &str, name: &str) -> Result<Vec<String>> {
    let question = question(record, name)?;
    let reply = match transport {
        "udp" => over_udp(server, &question)?,
        "tcp" => over_tcp(server, &question)?,
        other => bail!("DNS does not speak {other}"),
    };
    let mut answers = Reader { message: &reply, at: 0 }.answers().context("read the reply")?;
    answers.sort();
    Ok(answers)
}

fn question(record: &str, name: &str) -> Result<Vec<u8>> {
    let (_, code) =
        TYPES.iter().find(|(known, _)| *known == record).with_context(|| format!("record type {record}"))?;
    let mut message: Vec<u8> = [ID, FLAGS, 1, 0, 0, 0].iter().flat_map(|word| word.to_be_bytes()).collect();
    for label in name.trim_end_matches('.').split('.') {
        message.push(u8::try_from(label.len())?);
        message.extend(label.bytes());
    }
    message.push(0);
    message.extend([*code, INTERNET].iter().flat_map(|word| word.to_be_bytes()));
    Ok(message)
}

fn over_udp(server: SocketAddr, question: &[u8]) -> Result<Vec<u8>> {
    let any: SocketAddr =
        if server.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    socket.connect(server)?;
    socket.send(question)?;
    let mut reply = vec![0; 4096];
    let length = socket.recv(&mut reply)?;
    reply.truncate(length);
    Ok(reply)
}

fn over_tcp(server: SocketAddr, question: &[u8]) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&server, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.write_all(&u16::try_from(question.len())?.to_be_bytes())?;
    stream.write_all(question)?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut reply = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut reply)?;
    Ok(reply)
}

struct Reader<'a> {
    message: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn answers(&mut self) -> Result<Vec<String>> {
        let header: Vec<u16> = (0..6).map(|_| self.word()).collect::<Result<_>>()?;
        ensure!(header[0] == ID, "the reply is to another question");
        let code = header[1] & 0xf;
        // 3 is NXDOMAIN.
        ensure!(code == 0 || code == 3, "the server failed with code {code}");
        for _ in 0..header[2] {
            self.name()?;
            self.skip(4)?;
        }
        (0..header[3]).map(|_| self.answer()).collect()
    }

    fn answer(&mut self) -> Result<String> {
        self.name()?;
        let code = self.word()?;
        self.skip(6)?;
        let length = usize::from(self.word()?);
        let end = self.at + length;
        let record = TYPES.iter().find(|(_, known)| *known == code).map_or("?", |(name, _)| name);
        let value = match record {
            "A" => Ipv4Addr::from(self.bytes::<4>()?).to_string(),
            "AAAA" => Ipv6Addr::from(self.bytes::<16>()?).to_string(),
            "SRV" => {
                self.skip(4)?;
                let port = self.word()?;
                format!("{port} {}", self.name()?)
            }
            "CNAME" | "PTR" => self.name()?,
            _ => format!("type {code}"),
        };
        self.at = end;
        Ok(format!("{record} {value}"))
    }

    /// A name, which may end in a pointer to where its rest stands already.
    fn name(&mut self) -> Result<String> {
        let mut name = String::new();
        loop {
            let length = self.bytes::<1>()?[0];
            match length {
                0 => return Ok(name),
                0xc0.. => {
                    let low = self.bytes::<1>()?[0];
                    let at = usize::from(length & 0x3f) << 8 | usize::from(low);
                    ensure!(at < self.at - 2, "a name points forward");
                    return Ok(name + &Reader { message: self.message, at }.name()?);
                }
                _ => {
                    let label = self.take(length.into())?;
                    name.push_str(&String::from_utf8_lossy(label));
                    name.push('.');
                }
            }
        }
    }

    fn word(&mut self) -> Result<u16> {
        Ok(u16::from_be_bytes(self.bytes()?))
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        Ok(self.take(N)?.try_into()?)
    }

    fn skip(&mut self, count: usize) -> Result<()> {
        self.take(count).map(drop)
    }

    fn take(&mut self, count: usize) -> Result<&[u8]> {
        let taken = self.message.get(self.at..self.at + count).context("the reply is cut short")?;
        self.at += count;
        Ok(taken)
    }
}
