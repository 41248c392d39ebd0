//! What a later release of the program might say: messages with fields, records and kinds that
//! this one has never heard of, as the rules in `core/src/message.rs` allow.

use std::convert::Infallible;

use minicbor::{Decoder, Encoder, decode, encode};
use rand::{RngExt as _, rngs::StdRng};

/// Where the fields of a kind are in the frame of a message, and the kind and the version.
const VERSION: u64 = 0;
const KIND: u64 = 1;
const FIELDS: u64 = 2;

/// Kinds of requests and replies that carry gossip in their field 0.
const SWIM_REQUEST: u64 = 1;
const SWIM_REPLY: u64 = 2;

/// A kind of request, a kind of reply and a version that nobody knows.
const KIND_OF_TOMORROW: u64 = 77;
const VERSION_OF_TOMORROW: u64 = 2;

/// The state of a member that nobody knows.
const STATE_OF_TOMORROW: u64 = 9;

/// The longest gossip that is added to; nodes refuse more than 16 KiB.
const GOSSIP_BYTES_MAX: usize = 12 * 1024;

/// A request as a later release says it.
pub(super) fn request(message: &[u8], rng: &mut StdRng) -> Vec<u8> {
    said_later(message, SWIM_REQUEST, rng).expect("a core's own message can be read")
}

/// A reply as a later release says it.
pub(super) fn reply(message: &[u8], rng: &mut StdRng) -> Vec<u8> {
    said_later(message, SWIM_REPLY, rng).expect("a core's own message can be read")
}

/// A message of a kind or version of a later release.
pub(super) fn unknown(rng: &mut StdRng) -> Vec<u8> {
    let (version, kind) = if rng.random_bool(0.5) { (1, KIND_OF_TOMORROW) } else { (VERSION_OF_TOMORROW, 1) };
    let mut fields = Vec::new();
    written(Encoder::new(&mut fields).map(0));
    let mut encoder = Encoder::new(Vec::new());
    written(encoder.map(3));
    written(encoder.u64(VERSION).and_then(|e| e.u64(version)));
    written(encoder.u64(KIND).and_then(|e| e.u64(kind)));
    written(encoder.u64(FIELDS).and_then(|e| e.bytes(&widened(&fields, &[], rng).unwrap_or_default())));
    encoder.into_writer()
}

fn said_later(message: &[u8], swim: u64, rng: &mut StdRng) -> Result<Vec<u8>, decode::Error> {
    let kind = field(message, KIND)?.map(|value| Decoder::new(value).u64()).transpose()?;
    let Some(fields) = field(message, FIELDS)? else { return Ok(message.to_vec()) };
    let mut fields = Decoder::new(fields).bytes()?.to_vec();
    if kind == Some(swim)
        && let Some(gossip) = field(&fields, 0)?
    {
        let gossip = gossip_later(Decoder::new(gossip).bytes()?, rng)?;
        fields = replaced(&fields, 0, &gossip)?;
    }
    let fields = widened(&fields, &[], rng)?;
    widened(&replaced(message, FIELDS, &fields)?, &[], rng)
}

/// Gossip is a header, then perhaps a count and so many records, each a map of its own; see
/// `core/src/membership/codec.rs`.
fn gossip_later(gossip: &[u8], rng: &mut StdRng) -> Result<Vec<u8>, decode::Error> {
    if gossip.len() > GOSSIP_BYTES_MAX {
        return Ok(gossip.to_vec());
    }
    let header = value_at(gossip)?;
    // The sender, the receiver and the node it is about.
    let mut later = widened(header, &[0, 2, 5], rng)?;
    let records = &gossip[header.len()..];
    let Some((_, mut rest)) = records.split_first_chunk::<2>() else { return Ok(later) };
    let mut told = Vec::new();
    while !rest.is_empty() {
        let record = value_at(rest)?;
        rest = &rest[record.len()..];
        told.push(widened(record, &[0], rng)?);
    }
    if rng.random_bool(0.2)
        && let Some(first) = told.first().cloned()
    {
        let mut state = Vec::new();
        written(Encoder::new(&mut state).u64(STATE_OF_TOMORROW));
        told.insert(rng.random_range(0..=told.len()), with_value(&first, 2, &state)?);
    }
    let count = u16::try_from(told.len()).expect("a packet holds few records");
    later.extend_from_slice(&count.to_be_bytes());
    later.extend(told.concat());
    if rng.random_bool(0.2) {
        later.extend_from_slice(b"what comes after the records");
    }
    Ok(later)
}

/// The first value of these bytes.
fn value_at(bytes: &[u8]) -> Result<&[u8], decode::Error> {
    let mut decoder = Decoder::new(bytes);
    decoder.skip()?;
    Ok(&bytes[..decoder.position()])
}

/// The fields of a map of known length.
fn fields(map: &[u8]) -> Result<Vec<(u64, &[u8])>, decode::Error> {
    let mut decoder = Decoder::new(map);
    let count = decoder.map()?.unwrap_or_default();
    let mut fields = Vec::new();
    for _ in 0..count {
        let tag = decoder.u64()?;
        let value = value_at(&map[decoder.position()..])?;
        decoder.skip()?;
        fields.push((tag, value));
    }
    Ok(fields)
}

fn field(map: &[u8], wanted: u64) -> Result<Option<&[u8]>, decode::Error> {
    Ok(fields(map)?.into_iter().find(|(tag, _)| *tag == wanted).map(|(_, value)| value))
}

/// The same map with other bytes in a field that is a byte string.
fn replaced(map: &[u8], wanted: u64, bytes: &[u8]) -> Result<Vec<u8>, decode::Error> {
    let mut value = Vec::new();
    written(Encoder::new(&mut value).bytes(bytes));
    with_value(map, wanted, &value)
}

fn with_value(map: &[u8], wanted: u64, value: &[u8]) -> Result<Vec<u8>, decode::Error> {
    let fields = fields(map)?;
    let fields =
        fields.into_iter().map(|(tag, old)| (tag, (if tag == wanted { value } else { old }).to_vec()));
    Ok(joined(&fields.collect::<Vec<_>>()))
}

/// The same map with fields of tomorrow before, after and between its own, and in those maps
/// within it.
fn widened(map: &[u8], nested: &[u64], rng: &mut StdRng) -> Result<Vec<u8>, decode::Error> {
    let mut later = Vec::new();
    for (tag, value) in fields(map)? {
        let is_map = nested.contains(&tag) && Decoder::new(value).datatype()? == minicbor::data::Type::Map;
        later.push((tag, if is_map { widened(value, &[], rng)? } else { value.to_vec() }));
    }
    for tag in 0..rng.random_range(0..3) {
        let at = rng.random_range(0..=later.len());
        later.insert(at, (200 + tag, something(rng)));
    }
    Ok(joined(&later))
}

fn joined(fields: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let mut encoder = Encoder::new(Vec::new());
    written(encoder.map(fields.len() as u64));
    for (tag, value) in fields {
        written(encoder.u64(*tag));
        encoder.writer_mut().extend_from_slice(value);
    }
    encoder.into_writer()
}

/// Some value, of any type there is.
fn something(rng: &mut StdRng) -> Vec<u8> {
    let mut encoder = Encoder::new(Vec::new());
    written(match rng.random_range(0..6) {
        0 => encoder.u64(rng.random()),
        1 => encoder.str("something of tomorrow"),
        2 => encoder.bytes(&[7; 40]),
        3 => encoder
            .map(1)
            .and_then(|e| e.str("a"))
            .and_then(|e| e.array(2))
            .and_then(|e| e.null())
            .and_then(|e| e.f64(0.5)),
        4 => encoder.begin_array().and_then(|e| e.bool(true)).and_then(|e| e.end()),
        _ => encoder.tag(minicbor::data::Tag::new(999)).and_then(|e| e.i64(-5)),
    });
    encoder.into_writer()
}

fn written<T>(result: Result<T, encode::Error<Infallible>>) {
    drop(result.expect("writing to memory cannot fail"));
}
