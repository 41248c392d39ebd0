//! Each part of the directory beside a naive statement of what it must do.

mod announce;
mod ledger;
mod lookup;
mod owners;

use crate::{Key, PeerId, Zone};

fn peer(number: u8) -> PeerId {
    PeerId::from_public_key([number; 32])
}

fn key(number: u8) -> Key {
    Key::of(&number.to_string())
}

fn zone(number: u8) -> Option<Zone> {
    Zone::new(["", "a", "b"][usize::from(number) % 3])
}
