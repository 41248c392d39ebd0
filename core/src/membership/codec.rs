//! How membership packets travel: CBOR maps with numbered fields, so that two releases can
//! run side by side. Unknown fields are skipped, missing ones take a default where there is
//! one; a record in a state of tomorrow is left out, and so is what follows the records; a
//! packet of an unknown kind says nothing. Pure parsing; every length is bounded, nothing
//! received can panic.
//!
//! The frame around the maps is foca's: a header, then optionally a big-endian `u16` count
//! and as many members.

use std::{
    borrow::Cow,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use bytes::{Buf, BufMut};
use foca::{Codec, Header, Identity, Message, State};
use minicbor::{
    Decode, Decoder, Encode, Encoder,
    bytes::{ByteArray, ByteSlice},
};

use crate::{Member, PeerId, Zone};

/// What foca knows a node by. Two are equal when they name the same life of the same peer,
/// whatever else is known of it: a record whose addresses were trimmed here, or that has fields
/// this release does not know, still is that peer's identity when it comes back to it.
///
/// foca keeps one for each member, clones them at every turn, and compares all of them with the
/// sender of each packet: so they are small, and what is looked at is not behind a pointer.
#[derive(Clone, Debug)]
pub(super) struct Id {
    addr: Addr,
    generation: u64,
    member: Arc<Member>,
}

impl Id {
    pub(super) fn new(member: Member) -> Self {
        Self { addr: member.peer.into(), generation: member.generation, member: Arc::new(member) }
    }

    pub(super) fn member(&self) -> &Arc<Member> {
        &self.member
    }
}

impl From<Arc<Member>> for Id {
    fn from(member: Arc<Member>) -> Self {
        Self { addr: member.peer.into(), generation: member.generation, member }
    }
}

impl PartialEq for Id {
    fn eq(&self, other: &Self) -> bool {
        (self.addr, self.generation) == (other.addr, other.generation)
    }
}

impl Eq for Id {}

/// A peer as foca compares it: for every packet with every member it knows, so no more than half of
/// a public key, and a word at a time. Nobody finds a key that agrees with another's in sixteen
/// bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Addr([u64; 2]);

impl From<PeerId> for Addr {
    fn from(peer: PeerId) -> Self {
        let (words, _) = peer.public_key().as_chunks::<8>();
        Self(std::array::from_fn(|word| u64::from_ne_bytes(words[word])))
    }
}

impl Identity for Id {
    type Addr = Addr;

    fn renew(&self) -> Option<Self> {
        // At the last generation there is no next: foca sees the same identity and gives up.
        let generation = self.generation.saturating_add(1);
        Some(Self::new(Member { generation, ..Member::clone(&self.member) }))
    }

    fn addr(&self) -> Addr {
        self.addr
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        // Equal generations are the same identity, so there is no tie to break.
        self.generation > adversary.generation
    }
}

/// Addresses that can be dialled from another node, without duplicates, at most
/// [`Member::ADDRS_MAX`], in the order given.
pub(super) fn usable_addrs(addrs: impl IntoIterator<Item = IpAddr>) -> Vec<IpAddr> {
    let mut usable = Vec::new();
    for addr in addrs {
        let addr = addr.to_canonical();
        let dialable = !(addr.is_loopback()
            || addr.is_unspecified()
            || addr.is_multicast()
            || addr == IpAddr::V4(Ipv4Addr::BROADCAST));
        if dialable && !usable.contains(&addr) && usable.len() < Member::ADDRS_MAX {
            usable.push(addr);
        }
    }
    usable
}

/// Why bytes are not a membership packet.
#[derive(Debug, thiserror::Error)]
pub(super) enum CodecError {
    #[error("not the CBOR expected: {0}")]
    Cbor(#[from] minicbor::decode::Error),
    #[error("unknown kind of message {0}")]
    UnknownMessage(u8),
    #[error("message of kind {0} without the node it is about")]
    MissingSubject(u8),
    #[error("unknown member state {0}")]
    UnknownState(u8),
    #[error("ends too early")]
    Truncated,
    #[error("no room left in the packet")]
    Full,
}

/// Most addresses read of one record; the usable ones among them are kept up to
/// [`Member::ADDRS_MAX`]. Fewer and a record that leads with unusable addresses loses its
/// usable ones; more only costs time.
const ADDRS_READ_MAX: usize = 64;

#[derive(Default)]
struct Addrs<'a>(Cow<'a, [IpAddr]>);

impl<C> Encode<C> for Addrs<'_> {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.array(self.0.len() as u64)?;
        for addr in &*self.0 {
            match addr {
                IpAddr::V4(v4) => e.bytes(&v4.octets())?,
                IpAddr::V6(v6) => e.bytes(&v6.octets())?,
            };
        }
        Ok(())
    }
}

impl<'b, C> Decode<'b, C> for Addrs<'_> {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        let mut addrs = Vec::new();
        for octets in d.array_iter::<&ByteSlice>()? {
            let octets: &[u8] = octets?;
            // Another length is a kind of address that this release does not know.
            let addr = <[u8; 4]>::try_from(octets)
                .map(IpAddr::from)
                .or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from));
            if let Ok(addr) = addr
                && addrs.len() < ADDRS_READ_MAX
            {
                addrs.push(addr);
            }
        }
        Ok(Self(usable_addrs(addrs).into()))
    }
}

/// An identity; the destination of a message needs no more than the first two fields.
#[derive(Encode, Decode)]
#[cbor(map)]
struct WireId<'a> {
    #[n(0)]
    peer: ByteArray<32>,
    #[n(1)]
    generation: u64,
    #[n(2)]
    #[cbor(default)]
    addrs: Addrs<'a>,
    #[n(3)]
    #[cbor(default)]
    router_port: u16,
    #[n(4)]
    #[cbor(default)]
    registry_port: u16,
    #[b(5)]
    zone: Option<&'a str>,
}

impl<'a> WireId<'a> {
    fn full(id: &'a Id) -> Self {
        let member = id.member();
        Self {
            peer: ByteArray::from(*member.peer.public_key()),
            generation: member.generation,
            addrs: Addrs(Cow::Borrowed(&member.addrs)),
            router_port: member.router_port,
            registry_port: member.registry_port,
            zone: member.zone.as_ref().map(Zone::as_str),
        }
    }

    fn into_id(self) -> Id {
        Id::new(Member {
            peer: PeerId::from_public_key(self.peer.into()),
            generation: self.generation,
            addrs: self.addrs.0.as_ref().into(),
            router_port: self.router_port,
            registry_port: self.registry_port,
            zone: self.zone.and_then(Zone::new),
        })
    }
}

/// A destination: it knows the rest of itself.
#[derive(Encode, Decode)]
#[cbor(map)]
struct WireDestination {
    #[n(0)]
    peer: ByteArray<32>,
    #[n(1)]
    generation: u64,
}

impl WireDestination {
    fn into_id(self) -> Id {
        Id::new(Member {
            peer: PeerId::from_public_key(self.peer.into()),
            generation: self.generation,
            addrs: [].into(),
            router_port: 0,
            registry_port: 0,
            zone: None,
        })
    }
}

#[derive(Encode, Decode)]
#[cbor(map)]
struct WireHeader<'a> {
    #[b(0)]
    src: WireId<'a>,
    #[n(1)]
    #[cbor(default)]
    src_incarnation: u16,
    #[n(2)]
    dst: WireDestination,
    #[n(3)]
    kind: u8,
    #[n(4)]
    #[cbor(default)]
    probe_number: u8,
    /// The third node that an indirect probe is about.
    #[b(5)]
    subject: Option<WireId<'a>>,
}

#[derive(Encode, Decode)]
#[cbor(map)]
struct WireMember<'a> {
    #[b(0)]
    id: WireId<'a>,
    #[n(1)]
    #[cbor(default)]
    incarnation: u16,
    #[n(2)]
    state: u8,
}

// Kinds of messages on the wire; never reuse a number.
const PING: u8 = 1;
const ACK: u8 = 2;
const PING_REQ: u8 = 3;
const INDIRECT_PING: u8 = 4;
const INDIRECT_ACK: u8 = 5;
const FORWARDED_ACK: u8 = 6;
pub(super) const ANNOUNCE: u8 = 7;
const FEED: u8 = 8;
const GOSSIP: u8 = 9;
const BROADCAST: u8 = 10;
const TURN_UNDEAD: u8 = 11;

// States on the wire.
const ALIVE: u8 = 1;
const SUSPECT: u8 = 2;
const DOWN: u8 = 3;

/// The codec that foca calls.
#[derive(Clone, Copy, Debug)]
pub(super) struct CborCodec;

impl Codec<Id> for CborCodec {
    type Error = CodecError;

    fn encode_header(&mut self, header: &Header<Id>, buf: impl BufMut) -> Result<(), CodecError> {
        let (kind, probe_number, subject) = match &header.message {
            Message::Ping(number) => (PING, *number, None),
            Message::Ack(number) => (ACK, *number, None),
            Message::PingReq { target, probe_number } => (PING_REQ, *probe_number, Some(target)),
            Message::IndirectPing { origin, probe_number } => (INDIRECT_PING, *probe_number, Some(origin)),
            Message::IndirectAck { target, probe_number } => (INDIRECT_ACK, *probe_number, Some(target)),
            Message::ForwardedAck { origin, probe_number } => (FORWARDED_ACK, *probe_number, Some(origin)),
            Message::Announce => (ANNOUNCE, 0, None),
            Message::Feed => (FEED, 0, None),
            Message::Gossip => (GOSSIP, 0, None),
            Message::Broadcast => (BROADCAST, 0, None),
            Message::TurnUndead => (TURN_UNDEAD, 0, None),
        };
        let wire = WireHeader {
            src: WireId::full(&header.src),
            src_incarnation: header.src_incarnation,
            dst: WireDestination {
                peer: ByteArray::from(*header.dst.member().peer.public_key()),
                generation: header.dst.generation,
            },
            kind,
            probe_number,
            subject: subject.map(WireId::full),
        };
        put(&wire, buf)
    }

    fn decode_header(&mut self, buf: impl Buf) -> Result<Header<Id>, CodecError> {
        take(buf, |decoder| {
            let wire: WireHeader<'_> = decoder.decode()?;
            let kind = wire.kind;
            let probe_number = wire.probe_number;
            let subject = wire.subject.map(WireId::into_id);
            let subject = || subject.ok_or(CodecError::MissingSubject(kind));
            let message = match kind {
                PING => Message::Ping(probe_number),
                ACK => Message::Ack(probe_number),
                PING_REQ => Message::PingReq { target: subject()?, probe_number },
                INDIRECT_PING => Message::IndirectPing { origin: subject()?, probe_number },
                INDIRECT_ACK => Message::IndirectAck { target: subject()?, probe_number },
                FORWARDED_ACK => Message::ForwardedAck { origin: subject()?, probe_number },
                ANNOUNCE => Message::Announce,
                FEED => Message::Feed,
                GOSSIP => Message::Gossip,
                BROADCAST => Message::Broadcast,
                TURN_UNDEAD => Message::TurnUndead,
                unknown => return Err(CodecError::UnknownMessage(unknown)),
            };
            Ok(Header {
                src: wire.src.into_id(),
                src_incarnation: wire.src_incarnation,
                dst: wire.dst.into_id(),
                message,
            })
        })
    }

    fn encode_member(&mut self, member: &foca::Member<Id>, buf: impl BufMut) -> Result<(), CodecError> {
        let state = match member.state() {
            State::Alive => ALIVE,
            State::Suspect => SUSPECT,
            State::Down => DOWN,
        };
        let wire = WireMember { id: WireId::full(member.id()), incarnation: member.incarnation(), state };
        put(&wire, buf)
    }

    fn decode_member(&mut self, buf: impl Buf) -> Result<foca::Member<Id>, CodecError> {
        take(buf, |decoder| {
            let wire: WireMember<'_> = decoder.decode()?;
            let state = match wire.state {
                ALIVE => State::Alive,
                SUSPECT => State::Suspect,
                DOWN => State::Down,
                unknown => return Err(CodecError::UnknownState(unknown)),
            };
            Ok(foca::Member::new(wire.id.into_id(), wire.incarnation, state))
        })
    }
}

/// A record as it travels.
pub(super) fn encode_record(member: &foca::Member<Id>) -> Vec<u8> {
    let mut record = Vec::new();
    CborCodec.encode_member(member, &mut record).expect("memory has room");
    record
}

/// Reads records until the end of the bytes.
pub(super) fn decode_records(mut bytes: &[u8]) -> Result<Vec<foca::Member<Id>>, CodecError> {
    let mut records = Vec::new();
    while bytes.has_remaining() {
        records.push(CborCodec.decode_member(&mut bytes)?);
    }
    Ok(records)
}

/// What a header or record takes, but for one with many addresses: memory for it is asked for once.
const USUAL_SIZE: usize = 256;

/// Encodes all of `value` or leaves `buf` alone.
fn put<T: Encode<()>>(value: &T, mut buf: impl BufMut) -> Result<(), CodecError> {
    let mut bytes = Vec::with_capacity(USUAL_SIZE);
    minicbor::encode(value, &mut bytes).expect("writing to memory cannot fail, nor can our own encoders");
    if buf.remaining_mut() < bytes.len() {
        return Err(CodecError::Full);
    }
    buf.put_slice(&bytes);
    Ok(())
}

/// Reads one value and moves `buf` past it, whether this release knows what to make of it or not.
/// foca promises that `buf` is contiguous.
fn take<T>(
    mut buf: impl Buf,
    read: impl FnOnce(&mut Decoder<'_>) -> Result<T, CodecError>,
) -> Result<T, CodecError> {
    let mut decoder = Decoder::new(buf.chunk());
    let value = read(&mut decoder);
    let position = decoder.position();
    buf.advance(position);
    value
}

/// Under which number a packet probes its destination, if it does.
pub(super) fn ping_number(mut packet: &[u8]) -> Option<foca::ProbeNumber> {
    let header = CborCodec.decode_header(&mut packet).ok()?;
    if let Message::Ping(number) = header.message { Some(number) } else { None }
}

/// A packet in parts.
pub(super) struct Packet {
    pub(super) header: Header<Id>,
    pub(super) updates: Vec<foca::Member<Id>>,
    /// Whether the bytes had more than is here: foca would refuse them.
    pub(super) had_more: bool,
}

impl Packet {
    /// Reads a whole packet.
    pub(super) fn decode(mut bytes: &[u8]) -> Result<Self, CodecError> {
        let header = CborCodec.decode_header(&mut bytes)?;
        let (mut updates, mut had_more) = (Vec::new(), false);
        if bytes.has_remaining() {
            let count = bytes.try_get_u16().map_err(|_| CodecError::Truncated)?;
            for _ in 0..count {
                match CborCodec.decode_member(&mut bytes) {
                    Ok(update) => updates.push(update),
                    Err(CodecError::UnknownState(_)) => had_more = true,
                    Err(error) => return Err(error),
                }
            }
            // Records to an introduction are none of its parts: foca refuses it whole.
            had_more |= bytes.has_remaining() || header.message == Message::Announce;
        }
        Ok(Self { header, updates, had_more })
    }

    /// Writes it as foca does.
    pub(super) fn encode(&self) -> Result<Vec<u8>, CodecError> {
        let mut bytes = Vec::new();
        CborCodec.encode_header(&self.header, &mut bytes)?;
        if !self.updates.is_empty() {
            bytes.put_u16(u16::try_from(self.updates.len()).map_err(|_| CodecError::Full)?);
        }
        for update in &self.updates {
            CborCodec.encode_member(update, &mut bytes)?;
        }
        Ok(bytes)
    }
}
