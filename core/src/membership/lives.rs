//! Which life of which peer is known to go on: what most packets repeat is told from news by one
//! look, and the views of two nodes are compared by one number.

use std::{
    collections::HashSet,
    hash::{BuildHasherDefault, DefaultHasher},
};

use crate::{Member, message::Fingerprint};

/// A set of lives, at most one of each peer.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Lives {
    fingerprint: Fingerprint,
    /// Looked up for every record of every packet, so not a tree; never iterated.
    numbers: HashSet<u128, BuildHasherDefault<DefaultHasher>>,
}

impl Lives {
    /// Takes in a life that was not in the set.
    pub(super) fn put(&mut self, member: &Member) {
        self.fingerprint.put(number(member));
        self.numbers.insert(number(member));
    }

    /// Takes out a life that was in the set.
    pub(super) fn take(&mut self, member: &Member) {
        self.fingerprint.take(number(member));
        self.numbers.remove(&number(member));
    }

    pub(super) fn contains(&self, member: &Member) -> bool {
        self.numbers.contains(&number(member))
    }

    /// Of these lives and one more. Two sets that differ have, but for chance, different ones.
    pub(super) fn fingerprint_with(&self, member: &Member) -> Fingerprint {
        let mut fingerprint = self.fingerprint;
        fingerprint.put(number(member));
        fingerprint
    }
}

impl<'a> FromIterator<&'a Member> for Lives {
    fn from_iter<T: IntoIterator<Item = &'a Member>>(members: T) -> Self {
        let mut lives = Self::default();
        members.into_iter().for_each(|member| lives.put(member));
        lives
    }
}

/// A number for one life of one peer. Public keys are uniform; multiplying makes each generation
/// change it everywhere, so that exchanged generations of two peers do not cancel each other.
///
/// Two lives with one number have keys that agree in eight bytes: nobody can make up a life that
/// hides another's.
fn number(member: &Member) -> u128 {
    let mut key = [0; 16];
    key.copy_from_slice(&member.peer.public_key()[..16]);
    let mixed = (u128::from_be_bytes(key) ^ u128::from(member.generation))
        .wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
    mixed ^ (mixed >> 64)
}
