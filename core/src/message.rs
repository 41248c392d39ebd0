//! What travels between nodes as control messages, and how it is spelled.
//!
//! Each [`Request`] gets one [`Reply`]. Decides nothing but what bytes mean; the node calls it
//! at its edge, so that the machines inside only see messages that make sense.
//!
//! A message is a CBOR map of integer keys: 0 the version, 1 the kind, 2 a byte string that
//! holds the fields of that kind, again a map of integer keys. Two releases run side by side
//! during every rolling update, hence the rules:
//!
//! * unknown fields are ignored and missing ones have a default, so a release may add fields;
//! * an unknown kind or version is [`MessageError::Unsupported`], which the receiver of a
//!   request answers with [`Reply::Unsupported`];
//! * numbers are never used again for something else.

use std::convert::Infallible;

use minicbor::{Decoder, Encoder, decode, encode};

use crate::{Key, PeerId};

/// Longest message, in bytes. Smaller and a full announcement needs more round trips; larger
/// and a hostile peer makes a node hold more memory for each exchange.
pub const MESSAGE_SIZE_MAX: usize = 256 * 1024;

/// Most keys in one announcement, added and removed together. Fewer and a node that has just
/// started needs more round trips to announce everything; more than fit are never sent.
pub(crate) const KEYS_PER_MESSAGE_MAX: usize = 4096;

/// Most holders in one answer to a lookup. Fewer and a pull that meets several bad holders runs
/// out of them; more only makes answers about popular content longer.
pub(crate) const HOLDERS_PER_REPLY_MAX: usize = 16;

// Fields other than the keys and the frame around them take far less than a quarter.
const _: () = assert!(KEYS_PER_MESSAGE_MAX * ID_SIZE <= MESSAGE_SIZE_MAX / 4 * 3);

/// A release that changes what a field means, rather than adding one, raises this.
const VERSION: u64 = 1;

/// Bytes of a key, and of a peer's public key.
const ID_SIZE: usize = 32;

/// Why bytes from a peer are not a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// The message is longer than any message may be.
    #[error("message of {size_bytes} bytes: at most {MESSAGE_SIZE_MAX} are read")]
    TooLarge {
        /// How long it is.
        size_bytes: usize,
    },
    /// The message is of a kind or version that this release does not know: the peer runs
    /// another one.
    #[error("message of version {version}, kind {kind}: not known to this release")]
    Unsupported {
        /// Version of the message.
        version: u64,
        /// Kind of the message.
        kind: u64,
    },
    /// The bytes are not what a release of this program sends.
    #[error("malformed message: {reason}")]
    Malformed {
        /// What is wrong.
        reason: String,
    },
}

impl From<decode::Error> for MessageError {
    fn from(error: decode::Error) -> Self {
        Self::Malformed { reason: error.to_string() }
    }
}

/// How many things a set has, keys or members, and their exclusive or: two sets that differ have,
/// but for chance, different fingerprints, and one thing is added or removed without looking at
/// the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fingerprint {
    /// Things in the set.
    pub count: u64,
    /// Exclusive or of one uniform number of each: of a key, its first 16 bytes.
    pub xor: u128,
}

impl Fingerprint {
    /// Takes in a key that was not in the set.
    pub fn add(&mut self, key: &Key) {
        self.put(half(key));
    }

    /// Takes out a key that was in the set.
    pub fn remove(&mut self, key: &Key) {
        self.take(half(key));
    }

    /// Takes in what has this number.
    pub(crate) const fn put(&mut self, number: u128) {
        self.count = self.count.saturating_add(1);
        self.xor ^= number;
    }

    /// Takes out what has this number.
    pub(crate) const fn take(&mut self, number: u128) {
        self.count = self.count.saturating_sub(1);
        self.xor ^= number;
    }
}

fn half(key: &Key) -> u128 {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&key.as_bytes()[..16]);
    u128::from_be_bytes(bytes)
}

/// What a holder tells an owner about the keys it has that are the owner's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Announce {
    /// Forget what was announced before: this begins the whole set.
    pub reset: bool,
    /// Keys the holder has.
    pub add: Vec<Key>,
    /// Keys the holder no longer has, or that are no longer the receiver's.
    pub remove: Vec<Key>,
    /// The last of a series: with it applied, the owner's set must have fingerprint `holds`.
    pub complete: bool,
    /// The whole set the owner should now have of this holder.
    pub holds: Fingerprint,
    /// The sender, as an owner, has no complete set from the receiver and would like one.
    pub wants: bool,
}

/// How a member's view of who is alive differs from the asker's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    /// Not at all.
    pub agrees: bool,
    /// The member takes its view for complete, and this tells what the asker lacks of it.
    pub complete: bool,
    /// There are members after those of this page.
    pub more: bool,
    /// Records of members in order of their public keys, encoded as in gossip.
    pub page: Vec<u8>,
}

/// What one node asks of another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Membership gossip; its own encoding inside.
    Swim(Vec<u8>),
    /// A holder tells an owner what it has. Answered with [`Reply::Announced`].
    Announce(Announce),
    /// Who holds this key? Answered with [`Reply::Found`].
    Lookup {
        /// The key.
        key: Key,
    },
    /// The sender is about to stop: forget what it announced. Answered with [`Reply::Ack`].
    Goodbye {
        /// Which life of the sender stops. A message that arrives after a restart says nothing about
        /// the life that followed. `None`: the sender does not tell, so whichever is known.
        generation: Option<u64>,
    },
    /// Is the receiver's view of who is alive the sender's? Answered with [`Reply::Compared`].
    Compare {
        /// The sender's view, itself in it.
        view: Fingerprint,
        /// If the views differ, tell members after this one.
        after: Option<PeerId>,
    },
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The request is of a kind that the receiver does not know.
    Unsupported,
    /// Done.
    Ack,
    /// Membership gossip in return; its own encoding inside.
    Swim(Vec<u8>),
    /// An announcement was applied.
    Announced {
        /// The owner has what the holder says it should. Otherwise the holder sends everything.
        synced: bool,
    },
    /// The holders of a key.
    Found {
        /// Some of those known, at most sixteen.
        holders: Vec<PeerId>,
        /// The owner can rule out holders that it does not know.
        knows: bool,
    },
    /// How views differ.
    Compared(Compared),
}

impl Request {
    /// The message as it travels.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Fields::default();
        let kind = match self {
            Self::Swim(gossip) => {
                body.bytes(0, gossip);
                1
            }
            Self::Announce(announce) => {
                body.flag(0, announce.reset);
                body.bytes(1, &joined(announce.add.iter().map(Key::as_bytes)));
                body.bytes(2, &joined(announce.remove.iter().map(Key::as_bytes)));
                body.flag(3, announce.complete);
                body.number(4, announce.holds.count);
                body.bytes(5, &announce.holds.xor.to_be_bytes());
                body.flag(6, announce.wants);
                2
            }
            Self::Lookup { key } => {
                body.bytes(0, key.as_bytes());
                3
            }
            Self::Goodbye { generation } => {
                if let Some(generation) = generation {
                    body.number(0, *generation);
                }
                4
            }
            Self::Compare { view, after } => {
                body.number(0, view.count);
                body.bytes(1, &view.xor.to_be_bytes());
                if let Some(after) = after {
                    body.bytes(2, after.public_key());
                }
                5
            }
        };
        framed(kind, body)
    }

    /// Reads a message that a peer sent.
    ///
    /// # Errors
    ///
    /// [`MessageError::Unsupported`] is to be answered with [`Reply::Unsupported`].
    pub fn decode(message: &[u8]) -> Result<Self, MessageError> {
        let (version, kind, body) = unframed(message)?;
        match kind {
            1 => Ok(Self::Swim(swim(body)?)),
            2 => Ok(Self::Announce(announce(body)?)),
            3 => {
                let mut key = None;
                for_each_field(body, |tag, value| {
                    match tag {
                        0 => key = Some(Key::from_bytes(fixed(value.bytes()?)?)),
                        _ => value.skip()?,
                    }
                    Ok(())
                })?;
                key.map(|key| Self::Lookup { key }).ok_or_else(|| malformed("lookup without a key"))
            }
            4 => {
                let mut generation = None;
                for_each_field(body, |tag, value| {
                    match tag {
                        0 => generation = Some(value.u64()?),
                        _ => value.skip()?,
                    }
                    Ok(())
                })?;
                Ok(Self::Goodbye { generation })
            }
            5 => {
                let (mut view, mut after) = (Fingerprint::default(), None);
                for_each_field(body, |tag, value| {
                    match tag {
                        0 => view.count = value.u64()?,
                        1 => view.xor = u128::from_be_bytes(fixed(value.bytes()?)?),
                        2 => after = Some(PeerId::from_public_key(fixed(value.bytes()?)?)),
                        _ => value.skip()?,
                    }
                    Ok(())
                })?;
                Ok(Self::Compare { view, after })
            }
            _ => Err(MessageError::Unsupported { version, kind }),
        }
    }
}

impl Reply {
    /// The message as it travels.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Fields::default();
        let kind = match self {
            Self::Unsupported => 0,
            Self::Ack => 1,
            Self::Swim(gossip) => {
                body.bytes(0, gossip);
                2
            }
            Self::Announced { synced } => {
                body.flag(0, *synced);
                3
            }
            Self::Found { holders, knows } => {
                body.bytes(0, &joined(holders.iter().map(PeerId::public_key)));
                body.flag(1, *knows);
                4
            }
            Self::Compared(compared) => {
                body.flag(0, compared.agrees);
                body.flag(1, compared.complete);
                body.flag(2, compared.more);
                body.bytes(3, &compared.page);
                5
            }
        };
        framed(kind, body)
    }

    /// Reads a message that a peer sent.
    ///
    /// # Errors
    ///
    /// Every error means the same to the asker: there is no answer.
    pub fn decode(message: &[u8]) -> Result<Self, MessageError> {
        let (version, kind, body) = unframed(message)?;
        match kind {
            0 => Ok(Self::Unsupported),
            1 => Ok(Self::Ack),
            2 => Ok(Self::Swim(swim(body)?)),
            3 => {
                let mut synced = false;
                for_each_field(body, |tag, value| {
                    match tag {
                        0 => synced = value.bool()?,
                        _ => value.skip()?,
                    }
                    Ok(())
                })?;
                Ok(Self::Announced { synced })
            }
            4 => {
                let (mut holders, mut knows) = (Vec::new(), false);
                for_each_field(body, |tag, value| {
                    match tag {
                        0 => holders = split(value.bytes()?, PeerId::from_public_key)?,
                        1 => knows = value.bool()?,
                        _ => value.skip()?,
                    }
                    Ok(())
                })?;
                Ok(Self::Found { holders, knows })
            }
            5 => {
                let mut compared = Compared::default();
                for_each_field(body, |tag, value| {
                    match tag {
                        0 => compared.agrees = value.bool()?,
                        1 => compared.complete = value.bool()?,
                        2 => compared.more = value.bool()?,
                        3 => compared.page = value.bytes()?.to_vec(),
                        _ => value.skip()?,
                    }
                    Ok(())
                })?;
                Ok(Self::Compared(compared))
            }
            _ => Err(MessageError::Unsupported { version, kind }),
        }
    }
}

fn swim(body: &[u8]) -> Result<Vec<u8>, MessageError> {
    let mut gossip = Vec::new();
    for_each_field(body, |tag, value| {
        match tag {
            0 => gossip = value.bytes()?.to_vec(),
            _ => value.skip()?,
        }
        Ok(())
    })?;
    Ok(gossip)
}

fn announce(body: &[u8]) -> Result<Announce, MessageError> {
    let mut read = Announce::default();
    for_each_field(body, |tag, value| {
        match tag {
            0 => read.reset = value.bool()?,
            1 => read.add = split(value.bytes()?, Key::from_bytes)?,
            2 => read.remove = split(value.bytes()?, Key::from_bytes)?,
            3 => read.complete = value.bool()?,
            4 => read.holds.count = value.u64()?,
            5 => read.holds.xor = u128::from_be_bytes(fixed(value.bytes()?)?),
            6 => read.wants = value.bool()?,
            _ => value.skip()?,
        }
        Ok(())
    })?;
    Ok(read)
}

/// The head of a map of no fields, and most fields that a head of one byte can count (RFC 8949,
/// section 3).
const EMPTY_MAP: u8 = 0xa0;
const SHORT_MAP_MAX: u8 = 23;

/// Bytes set aside for a message. Fewer and most are moved while they are written; more are wasted.
const SHORT_MESSAGE_SIZE: usize = 64;

/// A map of integer keys under construction.
struct Fields {
    count: u8,
    encoder: Encoder<Vec<u8>>,
}

impl Default for Fields {
    fn default() -> Self {
        let mut fields = Vec::with_capacity(SHORT_MESSAGE_SIZE);
        fields.push(EMPTY_MAP);
        Self { count: 0, encoder: Encoder::new(fields) }
    }
}

impl Fields {
    fn number(&mut self, tag: u64, value: u64) {
        self.count += 1;
        written(self.encoder.u64(tag).and_then(|encoder| encoder.u64(value)));
    }

    fn flag(&mut self, tag: u64, value: bool) {
        self.count += 1;
        written(self.encoder.u64(tag).and_then(|encoder| encoder.bool(value)));
    }

    fn bytes(&mut self, tag: u64, value: &[u8]) {
        self.count += 1;
        written(self.encoder.u64(tag).and_then(|encoder| encoder.bytes(value)));
    }

    fn finish(self) -> Vec<u8> {
        assert!(self.count <= SHORT_MAP_MAX, "a map of {} fields has a longer head", self.count);
        let mut bytes = self.encoder.into_writer();
        bytes[0] = EMPTY_MAP | self.count;
        bytes
    }
}

fn written<T>(result: Result<T, encode::Error<Infallible>>) {
    drop(result.expect("writing to memory cannot fail"));
}

fn framed(kind: u64, body: Fields) -> Vec<u8> {
    let mut frame = Fields::default();
    frame.number(0, VERSION);
    frame.number(1, kind);
    frame.bytes(2, &body.finish());
    frame.finish()
}

/// The version, kind and fields of a message.
fn unframed(message: &[u8]) -> Result<(u64, u64, &[u8]), MessageError> {
    if message.len() > MESSAGE_SIZE_MAX {
        return Err(MessageError::TooLarge { size_bytes: message.len() });
    }
    let (mut version, mut kind, mut body) = (None, None, None);
    for_each_field(message, |tag, value| {
        match tag {
            0 => version = Some(value.u64()?),
            1 => kind = Some(value.u64()?),
            2 => body = Some(value.bytes()?),
            _ => value.skip()?,
        }
        Ok(())
    })?;
    let version = version.ok_or_else(|| malformed("no version"))?;
    let kind = kind.ok_or_else(|| malformed("no kind"))?;
    if version != VERSION {
        return Err(MessageError::Unsupported { version, kind });
    }
    Ok((version, kind, body.ok_or_else(|| malformed("no fields"))?))
}

/// Calls `field` with the tag of each field; it must consume the value.
fn for_each_field<'b>(
    map: &'b [u8],
    mut field: impl FnMut(u64, &mut Decoder<'b>) -> Result<(), MessageError>,
) -> Result<(), MessageError> {
    let mut decoder = Decoder::new(map);
    let count = decoder.map()?.ok_or_else(|| malformed("map of indefinite length"))?;
    for _ in 0..count {
        let tag = decoder.u64()?;
        field(tag, &mut decoder)?;
    }
    if decoder.position() == map.len() { Ok(()) } else { Err(malformed("more bytes than fields")) }
}

/// Identifiers travel back to back in one byte string: with a header each they would be longer
/// and far slower to read.
fn joined<'a>(ids: impl Iterator<Item = &'a [u8; ID_SIZE]>) -> Vec<u8> {
    ids.flatten().copied().collect()
}

fn split<T>(bytes: &[u8], id: impl Fn([u8; ID_SIZE]) -> T) -> Result<Vec<T>, MessageError> {
    let (ids, rest) = bytes.as_chunks::<ID_SIZE>();
    if !rest.is_empty() {
        return Err(malformed("list of identifiers ends within one"));
    }
    Ok(ids.iter().map(|bytes| id(*bytes)).collect())
}

fn fixed<const N: usize>(bytes: &[u8]) -> Result<[u8; N], MessageError> {
    bytes.try_into().map_err(|_| malformed("byte string of the wrong length"))
}

fn malformed(reason: &str) -> MessageError {
    MessageError::Malformed { reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(number: u8) -> Key {
        Key::of(&number.to_string())
    }

    fn requests() -> Vec<Request> {
        let mut holds = Fingerprint::default();
        holds.add(&key(1));
        vec![
            Request::Swim(vec![1, 2, 3]),
            Request::Swim(Vec::new()),
            Request::Announce(Announce::default()),
            Request::Announce(Announce {
                reset: true,
                add: vec![key(1), key(2)],
                remove: vec![key(3)],
                complete: true,
                holds,
                wants: true,
            }),
            Request::Lookup { key: key(9) },
            Request::Goodbye { generation: Some(u64::MAX) },
            Request::Goodbye { generation: None },
            Request::Compare { view: holds, after: Some(PeerId::from_public_key([3; 32])) },
            Request::Compare { view: holds, after: None },
        ]
    }

    fn replies() -> Vec<Reply> {
        let holders = (0..16).map(|n| PeerId::from_public_key([n; 32])).collect();
        vec![
            Reply::Unsupported,
            Reply::Ack,
            Reply::Swim(vec![0; 1000]),
            Reply::Announced { synced: true },
            Reply::Announced { synced: false },
            Reply::Found { holders, knows: true },
            Reply::Found { holders: Vec::new(), knows: false },
            Reply::Compared(Compared { agrees: false, complete: true, more: true, page: vec![1; 100] }),
            Reply::Compared(Compared::default()),
        ]
    }

    #[test]
    fn every_kind_round_trips() {
        for request in requests() {
            assert_eq!(Request::decode(&request.encode()), Ok(request));
        }
        for reply in replies() {
            assert_eq!(Reply::decode(&reply.encode()), Ok(reply));
        }
    }

    /// Must never change: releases run side by side.
    #[test]
    fn bytes_of_a_message_are_these() {
        let goodbye = Request::Goodbye { generation: None };
        assert_eq!(goodbye.encode(), [0xa3, 0, 1, 1, 4, 2, 0x41, 0xa0]);
        let goodbye = Request::Goodbye { generation: Some(7) };
        assert_eq!(goodbye.encode(), [0xa3, 0, 1, 1, 4, 2, 0x43, 0xa1, 0, 7]);
        let reply = Reply::Announced { synced: true };
        assert_eq!(reply.encode(), [0xa3, 0, 1, 1, 3, 2, 0x43, 0xa1, 0, 0xf5]);
    }

    #[test]
    fn fields_of_a_later_release_are_ignored() {
        let mut body = Fields::default();
        body.bytes(77, b"something of tomorrow");
        body.bytes(0, key(1).as_bytes());
        body.number(78, u64::MAX);
        let mut frame = Fields::default();
        frame.flag(9, true);
        frame.number(0, VERSION);
        frame.number(1, 3);
        frame.bytes(2, &body.finish());
        assert_eq!(Request::decode(&frame.finish()), Ok(Request::Lookup { key: key(1) }));
    }

    #[test]
    fn kind_or_version_of_a_later_release_is_told_from_garbage() {
        let message = framed(99, Fields::default());
        assert_eq!(Request::decode(&message), Err(MessageError::Unsupported { version: 1, kind: 99 }));
        assert_eq!(Reply::decode(&message), Err(MessageError::Unsupported { version: 1, kind: 99 }));
        // Of another version not even the fields need be there.
        let mut frame = Fields::default();
        frame.number(0, 2);
        frame.number(1, 3);
        let message = frame.finish();
        assert_eq!(Request::decode(&message), Err(MessageError::Unsupported { version: 2, kind: 3 }));
    }

    #[test]
    fn longest_announcement_fits_and_longer_messages_are_refused() {
        let add = (0..KEYS_PER_MESSAGE_MAX).map(|n| Key::of(&n.to_string())).collect();
        let holds = Fingerprint { count: u64::MAX, xor: u128::MAX };
        let request = Request::Announce(Announce { add, holds, ..Announce::default() });
        let message = request.encode();
        assert!(message.len() <= MESSAGE_SIZE_MAX, "{}", message.len());
        assert_eq!(Request::decode(&message), Ok(request));

        let largest = vec![0; MESSAGE_SIZE_MAX];
        assert!(matches!(Request::decode(&largest), Err(MessageError::Malformed { .. })));
        let size_bytes = MESSAGE_SIZE_MAX + 1;
        assert_eq!(Request::decode(&vec![0; size_bytes]), Err(MessageError::TooLarge { size_bytes }));
    }

    #[test]
    fn malformed_messages_are_refused() {
        let mut lookup = Request::Lookup { key: key(1) }.encode();
        lookup.push(0);
        assert!(Request::decode(&lookup).is_err(), "trailing byte");
        assert!(Request::decode(&[]).is_err(), "nothing");
        assert!(Request::decode(&[0xa0]).is_err(), "no fields at all");
        assert!(Request::decode(&[0xbb, 255, 255, 255, 255, 255, 255, 255, 255]).is_err(), "endless map");
        let mut short = Fields::default();
        short.bytes(0, &[1; 31]);
        assert!(Request::decode(&framed(3, short)).is_err(), "key too short");
        let mut ragged = Fields::default();
        ragged.bytes(1, &[1; 33]);
        assert!(Request::decode(&framed(2, ragged)).is_err(), "a key and a byte");
        assert!(Request::decode(&framed(3, Fields::default())).is_err(), "lookup of nothing");
    }

    #[test]
    fn fingerprint_depends_on_the_set_alone() {
        let (mut one, mut other) = (Fingerprint::default(), Fingerprint::default());
        for number in [1, 2, 3] {
            one.add(&key(number));
        }
        for number in [3, 9, 1, 2] {
            other.add(&key(number));
        }
        assert_ne!(one, other);
        other.remove(&key(9));
        assert_eq!(one, other);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Request::decode(&bytes);
            let _ = Reply::decode(&bytes);
        }

        #[test]
        fn damaged_messages_never_panic(which in 0_usize..9, at in any::<usize>(), byte in any::<u8>()) {
            let mut request = requests()[which].encode();
            let at = at % request.len();
            request[at] = byte;
            if let Ok(read) = Request::decode(&request) {
                prop_assert_eq!(Request::decode(&read.encode()), Ok(read));
            }
            let mut reply = replies()[which].encode();
            let at = at % reply.len();
            reply[at] = byte;
            let _ = Reply::decode(&reply);
        }

        #[test]
        fn announcements_round_trip(
            add in proptest::collection::vec(any::<[u8; 32]>(), 0..50),
            remove in proptest::collection::vec(any::<[u8; 32]>(), 0..50),
            flags in any::<[bool; 3]>(), count in any::<u64>(), xor in any::<u128>(),
        ) {
            let request = Request::Announce(Announce {
                reset: flags[0],
                add: add.into_iter().map(Key::from_bytes).collect(),
                remove: remove.into_iter().map(Key::from_bytes).collect(),
                complete: flags[1],
                holds: Fingerprint { count, xor },
                wants: flags[2],
            });
            prop_assert_eq!(Request::decode(&request.encode()), Ok(request));
        }
    }
}
