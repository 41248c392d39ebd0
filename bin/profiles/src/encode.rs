//! A profile of the heap as `profile.proto`, which [pprof](https://github.com/google/pprof) reads.

use std::collections::BTreeMap;

use pprof::protos::{Function, Line, Location, Message as _, Profile, Sample, ValueType};

use crate::{heap::SAMPLE_BYTES, table::Stack};

/// Whether a function is the outermost of those that every noted allocation goes through: they hold nothing.
fn is_way_to_the_note(function: &str) -> bool {
    ["spegel_profiles::allocator::Allocator", "__rust_alloc", "__rust_realloc"]
        .iter()
        .any(|way| function.contains(way))
}

/// All stacks with their functions by name. Reads the symbols of this program.
pub(crate) fn encode(stacks: &[Stack], now_unix_ns: i64) -> Vec<u8> {
    let mut encoder = Encoder::default();
    // The first text must be empty.
    encoder.text("");
    let value_type =
        |encoder: &mut Encoder, ty, unit| ValueType { ty: encoder.text(ty), unit: encoder.text(unit) };
    for (ty, unit) in [
        ("alloc_objects", "count"),
        ("alloc_space", "bytes"),
        ("inuse_objects", "count"),
        ("inuse_space", "bytes"),
    ] {
        let value_type = value_type(&mut encoder, ty, unit);
        encoder.profile.sample_type.push(value_type);
    }
    encoder.profile.period_type = Some(value_type(&mut encoder, "space", "bytes"));
    encoder.profile.period = SAMPLE_BYTES as i64;
    encoder.profile.default_sample_type = encoder.text("inuse_space");
    encoder.profile.time_nanos = now_unix_ns;
    for stack in stacks {
        let value = [stack.allocated.objects, stack.allocated.bytes, stack.live.objects, stack.live.bytes];
        let places: Vec<Place> = stack.frames.iter().map(|address| encoder.place(*address)).collect();
        let holders = places.iter().rposition(|place| place.is_way).unwrap_or_default();
        let location_id = places[holders..].iter().filter_map(|place| place.location).collect();
        let value = value.map(|value| value as i64).to_vec();
        encoder.profile.sample.push(Sample { location_id, value, label: Vec::new() });
    }
    encoder.profile.encode_to_vec()
}

/// Where a function called another.
#[derive(Clone, Copy)]
struct Place {
    /// Nothing where that is only on the way to the note.
    location: Option<u64>,
    /// Whether it is on that way, so that whatever is inside of it is, too.
    is_way: bool,
}

#[derive(Default)]
struct Encoder {
    profile: Profile,
    texts: BTreeMap<String, i64>,
    /// By address.
    places: BTreeMap<usize, Place>,
    /// By the number of their name.
    functions: BTreeMap<i64, u64>,
}

impl Encoder {
    fn text(&mut self, text: &str) -> i64 {
        if let Some(number) = self.texts.get(text) {
            return *number;
        }
        let number = self.profile.string_table.len() as i64;
        self.profile.string_table.push(text.to_owned());
        self.texts.insert(text.to_owned(), number);
        number
    }

    fn function(&mut self, name: &str, mangled: &str) -> u64 {
        let (name, system_name) = (self.text(name), self.text(mangled));
        if let Some(id) = self.functions.get(&name) {
            return *id;
        }
        let id = self.profile.function.len() as u64 + 1;
        self.profile.function.push(Function { id, name, system_name, ..Function::default() });
        self.functions.insert(name, id);
        id
    }

    /// The functions at an address: more than one where some are inlined, the innermost first.
    fn place(&mut self, address: usize) -> Place {
        if let Some(known) = self.places.get(&address) {
            return *known;
        }
        let (mut line, mut is_way) = (Vec::new(), false);
        // The address is that of the instruction after the call, which may be of another function.
        backtrace::resolve(std::ptr::without_provenance_mut(address.saturating_sub(1)), |symbol| {
            let Some(name) = symbol.name() else { return };
            let text = format!("{name:#}");
            if is_way_to_the_note(&text) {
                is_way = true;
                return line.clear();
            }
            // Tools leave names alone that differ from those of the linker.
            let function_id = self.function(&text, name.as_str().unwrap_or_default());
            line.push(Line { function_id, line: symbol.lineno().map_or(0, i64::from) });
        });
        // Tools ask who sent a profile for names that it lacks.
        if !is_way && line.is_empty() {
            let name = format!("{address:#x}");
            line.push(Line { function_id: self.function(&name, &name), line: 0 });
        }
        let location = (!line.is_empty()).then(|| {
            let id = self.profile.location.len() as u64 + 1;
            self.profile.location.push(Location { id, address: address as u64, line, ..Location::default() });
            id
        });
        let place = Place { location, is_way };
        self.places.insert(address, place);
        place
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Amount;

    /// The C library has no symbols, and tools ask for the names of places that have none.
    #[test]
    fn place_of_no_known_function_is_named_by_its_address() {
        let allocated = Amount { objects: 1, bytes: 1 };
        let stack = Stack { frames: vec![0x10], live: allocated, allocated };
        let profile = Profile::decode(&*encode(&[stack], 0)).unwrap();
        let [location] = profile.location.as_slice() else { panic!("{profile:?}") };
        let [line] = location.line.as_slice() else { panic!("{location:?}") };
        let function = &profile.function[usize::try_from(line.function_id).unwrap() - 1];
        assert_eq!(profile.string_table[usize::try_from(function.name).unwrap()], "0x10");
    }
}
