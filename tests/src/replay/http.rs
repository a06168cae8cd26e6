//! Just enough of HTTP: requests in, answers with a length or in chunks out.

use std::collections::HashMap;
use std::io::{self, BufRead, Write};

use serde_json::{Value, json};

pub(super) struct Request {
    pub(super) path: String,
    query: HashMap<String, String>,
    pub(super) body: Vec<u8>,
}

impl Request {
    /// The next request of a connection; `None` at its end.
    pub(super) fn read(from: &mut impl BufRead) -> io::Result<Option<Self>> {
        let mut line = String::new();
        if from.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let target = line.split(' ').nth(1).unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        let query = pairs.map(|(key, value)| (key.to_owned(), decoded(value))).collect();
        let path = path.to_owned();
        let mut length = 0;
        loop {
            line.clear();
            from.read_line(&mut line)?;
            match line.trim_end().split_once(": ") {
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                    length = value.parse().unwrap_or(0);
                }
                Some(_) => {}
                None => break,
            }
        }
        let mut body = vec![0; length];
        from.read_exact(&mut body)?;
        Ok(Some(Self { path, query, body }))
    }

    pub(super) fn get(&self, key: &str) -> &str {
        self.query.get(key).map_or("", String::as_str)
    }

    pub(super) fn is(&self, key: &str) -> bool {
        matches!(self.get(key), "true" | "1")
    }

    /// `key` is namespace and name.
    pub(super) fn selects(&self, key: &str) -> bool {
        let (selector, name) = (self.get("fieldSelector"), key.rsplit('/').next());
        match (selector.strip_prefix("metadata.name="), selector.strip_prefix("metadata.name!=")) {
            (Some(wanted), _) => name == Some(wanted),
            (_, Some(unwanted)) => name != Some(unwanted),
            _ => true,
        }
    }
}

/// The value of a query, without its escapes.
fn decoded(value: &str) -> String {
    let mut parts = value.split('%');
    let mut bytes = parts.next().unwrap_or_default().replace('+', " ").into_bytes();
    for part in parts {
        let (code, rest) = part.split_at_checked(2).unwrap_or(("", part));
        bytes.extend(u8::from_str_radix(code, 16));
        bytes.extend(rest.replace('+', " ").into_bytes());
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

pub(super) fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": message, "code": code,
    })
}

pub(super) fn refusal(code: u16, reason: &str, message: &str) -> Vec<u8> {
    answer(code, &status(code, reason, message).to_string())
}

pub(super) fn answer(code: u16, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 {code} Whatever\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}")
        .into()
}

/// One piece of a body without a length; the empty one is its end.
pub(super) fn chunk(to: &mut impl Write, text: &str) -> io::Result<()> {
    to.write_all(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes())
}
