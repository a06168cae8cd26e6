//! The agent rings when backends changed; the reaper hears it and looks at once.
//!
//! In: the pin folder. Out: a datagram socket beside the lock files. Only a hint: who misses it looks once a second.

use std::fs;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::lock;

/// The agent's end. Ringing never waits and never fails: usually nobody listens.
#[derive(Debug)]
pub struct Rope {
    socket: Option<UnixDatagram>,
    bell: PathBuf,
}

impl Rope {
    pub fn new(pin_dir: &Path) -> Self {
        let socket = UnixDatagram::unbound().and_then(|socket| socket.set_nonblocking(true).map(|()| socket));
        Self { socket: socket.ok(), bell: lock::bell_path(pin_dir) }
    }

    pub fn ring(&self) {
        if let Some(socket) = &self.socket {
            let _ = socket.send_to(&[], &self.bell);
        }
    }
}

/// The reaper's end. Whoever hangs it holds the reaper's lock, so what is there is a dead reaper's.
#[derive(Debug)]
pub struct Bell(UnixDatagram);

impl Bell {
    pub fn hang(pin_dir: &Path) -> io::Result<Self> {
        let path = lock::bell_path(pin_dir);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => UnixDatagram::bind(path).map(Self),
        }
    }

    /// Waits for the next ring, at most `limit`, and says whether there was one; several since the last call count as one.
    pub fn wait(&self, limit: Duration) -> io::Result<bool> {
        self.0.set_nonblocking(false)?;
        self.0.set_read_timeout(Some(limit))?;
        let heard = self.0.recv(&mut []);
        self.0.set_nonblocking(true)?;
        while self.0.recv(&mut []).is_ok() {}
        match heard {
            Ok(_) => Ok(true),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(false),
            Err(error) => Err(error),
        }
    }
}
