//! Requests of netlink(7) in the calling thread's network namespace, one at a time.

use std::io;

use netlink_packet_core::{
    NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_sys::Socket;

/// Sends one request and hands every answer to `each`, until the end of the dump or the acknowledgement. `flags` ask for
/// either one.
pub fn exchange<M>(protocol: isize, request: M, flags: u16, mut each: impl FnMut(M)) -> io::Result<()>
where
    M: NetlinkSerializable + NetlinkDeserializable + Into<NetlinkPayload<M>>,
{
    let socket = Socket::new(protocol)?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    let mut message = NetlinkMessage::new(header, request.into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        if !each_message(&datagram, &mut each)? {
            return Ok(());
        }
    }
}

/// Walks through the messages of one datagram; says whether more datagrams will come.
fn each_message<M: NetlinkDeserializable>(mut bytes: &[u8], each: &mut impl FnMut(M)) -> io::Result<bool> {
    while !bytes.is_empty() {
        let message = NetlinkMessage::<M>::deserialize(bytes).map_err(io::Error::other)?;
        match message.payload {
            NetlinkPayload::InnerMessage(inner) => each(inner),
            NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
            // A dump that cannot be made, such as one of a protocol whose module is missing, ends with an error.
            NetlinkPayload::Done(done) if done.code < 0 => return Err(io::Error::from_raw_os_error(-done.code)),
            NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => return Ok(false),
            _ => {}
        }
        let length = (message.header.length as usize).next_multiple_of(4);
        bytes = bytes.get(length..).unwrap_or_default();
    }
    Ok(true)
}
