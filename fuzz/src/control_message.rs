use spegel_core::{Announce, Compared, Fingerprint, Key, MESSAGE_SIZE_MAX, PeerId, Reply, Request};

use crate::bytes::Bytes;

/// Control messages: bytes of a peer are a message or an error, and what is understood is
/// understood the same after it was spelled again; so is every message made up from the bytes.
pub fn control_message(data: &[u8]) {
    if let Ok(request) = Request::decode(data) {
        survives_request(&request);
    }
    if let Ok(reply) = Reply::decode(data) {
        survives_reply(&reply);
    }
    let mut bytes = Bytes::new(data);
    survives_request(&request_of(&mut bytes));
    survives_reply(&reply_of(&mut bytes));
}

fn survives_request(request: &Request) {
    let message = request.encode();
    assert!(message.len() <= MESSAGE_SIZE_MAX);
    assert_eq!(Request::decode(&message).as_ref(), Ok(request));
}

fn survives_reply(reply: &Reply) {
    let message = reply.encode();
    assert!(message.len() <= MESSAGE_SIZE_MAX);
    assert_eq!(Reply::decode(&message).as_ref(), Ok(reply));
}

fn request_of(bytes: &mut Bytes<'_>) -> Request {
    match bytes.below(5) {
        4 => Request::Compare {
            view: Fingerprint { count: bytes.number(), xor: bytes.number().into() },
            after: bytes.flag().then(|| PeerId::from_public_key([bytes.byte(); 32])),
        },
        0 => Request::Swim(bytes.some().to_vec()),
        1 => Request::Lookup { key: Key::of_digest(&digest_of(bytes)) },
        2 => Request::Goodbye { generation: bytes.flag().then(|| bytes.number()) },
        _ => {
            let keys = |bytes: &mut Bytes<'_>| {
                let count = bytes.byte() % 8;
                (0..count).map(|_| Key::of_digest(&digest_of(bytes))).collect()
            };
            let xor = u128::from(bytes.number()) << 64 | u128::from(bytes.number());
            Request::Announce(Announce {
                reset: bytes.flag(),
                add: keys(bytes),
                remove: keys(bytes),
                complete: bytes.flag(),
                holds: Fingerprint { count: bytes.number(), xor },
                wants: bytes.flag(),
            })
        }
    }
}

fn digest_of(bytes: &mut Bytes<'_>) -> spegel_core::oci::Digest {
    spegel_core::oci::Digest::sha256_of(&[bytes.byte()])
}

fn reply_of(bytes: &mut Bytes<'_>) -> Reply {
    match bytes.below(6) {
        5 => Reply::Compared(Compared {
            agrees: bytes.flag(),
            complete: bytes.flag(),
            more: bytes.flag(),
            page: bytes.some().to_vec(),
        }),
        0 => Reply::Unsupported,
        1 => Reply::Ack,
        2 => Reply::Swim(bytes.some().to_vec()),
        3 => Reply::Announced { synced: bytes.flag() },
        _ => {
            let count = bytes.byte() % 17;
            let holders = (0..count).map(|_| PeerId::from_public_key([bytes.byte(); 32])).collect();
            Reply::Found { holders, knows: bytes.flag() }
        }
    }
}
