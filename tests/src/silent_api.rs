//! An API server with one Node and nothing else, whose watches stay silent: just enough HTTP for an agent to be content.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::apiserver::node_object;
use crate::netns::Netns;
use crate::node::Node;

/// Serves at `address` in `netns` for as long as this process lives; a list of Nodes holds `node`.
pub fn start(netns: &Netns, address: SocketAddr, node: &Node) -> Result<()> {
    let node = node_object(node);
    let listener = netns.inside(|| TcpListener::bind(address).with_context(|| format!("listen at {address}")))?;
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let node = node.clone();
            thread::spawn(move || serve(stream, &node));
        }
    });
    Ok(())
}

/// Answers until the client closes, or asks for a watch and gets none of its events.
fn serve(stream: TcpStream, node: &Value) -> Option<()> {
    let mut writer = stream.try_clone().ok()?;
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    loop {
        let request = lines.next()?;
        lines.by_ref().take_while(|header| !header.is_empty()).for_each(drop);
        let target = request.split(' ').nth(1)?;
        let head = if target.contains("sendInitialEvents=true") {
            // As servers do that cannot stream lists.
            answer(422, &json!({ "kind": "Status", "status": "Failure", "reason": "Invalid", "code": 422 }))
        } else if target.contains("watch=true") {
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_owned()
        } else {
            let items = if target.starts_with("/api/v1/nodes") { vec![node] } else { Vec::new() };
            answer(200, &json!({ "major": "1", "minor": "36", "metadata": { "resourceVersion": "1" }, "items": items }))
        };
        writer.write_all(head.as_bytes()).ok()?;
    }
}

fn answer(status: u16, body: &Value) -> String {
    let body = body.to_string();
    format!("HTTP/1.1 {status} Whatever\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}
